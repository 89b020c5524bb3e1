"""Which figures there are, and what they are computed from."""

import ast
import importlib.util
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from noisylb.protocol.options import Options


class Figure(NamedTuple):
    """A figure: the name of its module, what it shows, and the minutes of a seed by preset."""

    module: str
    shows: str
    minutes: Mapping[str, float]


def find_figures():
    """The figures: the files `figure*.py` of `keras_noisylb/experiments/figures`.

    The first line of such a file, "Figure NAME: what it shows.", and its `MINUTES` are read without
    importing it, so that the help of the command line needs no Keras.

    Returns:
        Dictionary of name to `Figure`.
    """
    package = pathlib.Path(importlib.util.find_spec("keras_noisylb").origin).parent
    figures = {}
    for path in sorted((package / "experiments" / "figures").glob("figure*.py")):
        source = ast.parse(path.read_text(encoding="utf-8"))
        first, *_ = ast.get_docstring(source).splitlines()
        name, _, shows = first.removeprefix("Figure ").partition(": ")
        figures[name] = Figure(path.stem, shows.removesuffix("."), constant(source, "MINUTES"))
    return figures


def constant(source, name):
    """The dictionary that a module gives a name; empty if it has none.

    Args:
        source: the module as `ast` parsed it.
        name: of the constant.
    """
    for node in source.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    return {}


FIGURES = find_figures()


@dataclass(frozen=True)
class FigureSetup:
    """What a figure is computed from.

    Args:
        options: model, data, training and seeds.
        size: the figure's own numbers, one entry of its `SIZES`.
        tables: output folder of `noisylb table`, for a figure of finished runs.
    """

    options: Options
    size: Mapping[str, Any] = field(default_factory=dict)
    tables: str = "results/tables"


# The learning rates are those of Figure 5b.
PRESETS = {
    # A ResNet8 on images of 14 x 14 pixels: each figure takes minutes on two cores.
    "quick": Options(
        model="resnet8",
        large_batch_size=512,
        small_batch_size=32,
        epochs=20,
        learning_rate="sb=0.05,lb=0.2",
        multiplier=1.0,
        train_size=4096,
        pool=2,
        seeds="3",
    ),
    # As published; what the paper does not state is Hoffer et al.'s. In 16 microbatches a step of
    # exact per-example squares takes 5 GiB.
    "paper": Options(
        model="resnet44",
        dataset="cifar10",
        large_batch_size=4096,
        small_batch_size=128,
        epochs=200,
        learning_rate="sb=0.1,lb=3.2,lb-diagonal=1.6,lb-diagonal-a5=1.6,lb-diagonal-split=1.6",
        multiplier=1.0,
        num_microbatches=16,
        l2=5e-5,  # a weight decay of 1e-4: the gradient of l2 w² is 2 l2 w
        augment=True,
        seeds="3",
    ),
}
