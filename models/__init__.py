"""Ordinary Keras models, with ghost batch normalisation by default.

A model is one file, whose `BUILDERS` hold its builders by name.
"""

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable

import keras

from keras_noisylb.models.alexnet import AlexNet
from keras_noisylb.models.lenet import LeNet
from keras_noisylb.models.mlp import MLP
from keras_noisylb.models.resnet import ResNet, ResNet44, ResNet44x2
from keras_noisylb.models.vgg import VGG, VGG16

__all__ = [
    "AlexNet", "LeNet", "MLP", "ResNet", "ResNet44", "ResNet44x2", "VGG", "VGG16", "get", "names",
]  # fmt: skip


_BUILDERS: dict[str, Callable[..., keras.Model]] = {}
for _file in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_file.name}")
    _BUILDERS |= getattr(_module, "BUILDERS", {})


def names() -> list[str]:
    """The names that `get` accepts, besides `ResNet`s of other depths and widths."""
    return list(_BUILDERS)


def get(name: str) -> Callable[..., keras.Model]:
    """The builder of the model called `name`.

    Args:
        name: one of `names()`, or for example "resnet20" or "resnet20x4" for another `ResNet`.

    Returns:
        A function such as `LeNet`.

    Raises:
        ValueError: if the name is unknown.

    Example:
    >>> get("lenet")(num_classes=3).output_shape
    (None, 3)
    """
    if name in _BUILDERS:
        return _BUILDERS[name]
    if match := re.fullmatch(r"resnet(\d+)(?:x(\d+))?", str(name)):
        depth, width = match.groups(default=1)
        return functools.partial(ResNet, depth=int(depth), width=int(width))
    raise ValueError(
        f"Unknown model {name!r}. Known models: {', '.join(names())}, and resnet<depth> or "
        "resnet<depth>x<width> with a depth of 6n + 2"
    )
