"""The comparison of the paper's regimes on a user's model and data."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras

from keras_noisylb.noise.base import positive_integer
from keras_noisylb.types import Examples
from noisylb.protocol.extra import check_cli


def compare(
    build: Callable[..., keras.Model],
    train: Examples,
    test: Examples | None = None,
    *,
    regimes: str | Iterable[str] = ("sb", "lb", "lb-diagonal-split", "lb-full-split"),
    large_batch_size: int = 1000,
    small_batch_size: int = 50,
    learning_rate: float | Mapping[str, float] | None = None,
    epochs: int = 8,
    seeds: int | Iterable[int] = 1,
    output: str = "results/compare",
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Train a model under several regimes for equal epochs, side by side.

    This is `noisylb compare`: it trains every regime with every seed, and writes a table, a picture
    and records to the folder `output`. Finished runs in that folder are not trained again, and
    interrupted runs continue. A folder of another model, other data or other options is refused;
    only regimes and seeds may be added. The record names the function and holds hashes of its
    source, its weights' shapes, and the arrays. A run that diverges is a row of the table.

    The loss is the cross-entropy of logits and integer labels. The learning rate warms up and falls
    to a tenth after a half and three quarters of the updates.

    Args:
        build: function that returns a new, uncompiled Keras model whose outputs are logits. It
            receives those of the arguments `num_classes`, `input_shape`, `normalization`,
            `ghost_batch_size` and `l2` that it has. The first two come from the data, the others
            from the options; `ghost_batch_size` is the small batch size unless it is given, and
            `l2` comes only if it is not 0. `l2` and its other arguments need defaults.
        train: tuple `(x, y)`: array (N, ...), taken as it is, so standardise it first, and integer
            labels (N,) counted from 0.
        test: the same, to report on; `None` holds out a fifth of the training set, with the same
            proportion of each class.
        regimes: their names, or one string of names separated by commas.
        large_batch_size: M_L.
        small_batch_size: M_S, of regime `"sb"` and what the noise imitates.
        learning_rate: peak rate, one number for all regimes or a dictionary such as
            `{"sb": 0.02, "lb": 0.2}`; regimes with large batches that it does not name take that of
            `"lb"`. `None` takes these two numbers, which suit LeNet.
        epochs: of every regime.
        seeds: number of seeds, or several seeds.
        output: folder of the results.
        **options: further options of `noisylb compare`, with underscores: `multiplier=0.3`,
            `momentum=0.9`, `optimizer="adamw"`, `noise_fraction=0.5`, `train_size=1000`,
            `quiet=True`, …

    Returns:
        Dictionary of regime name to the numbers of its row in the table.

    Raises:
        ImportError: if the extra `cli` is not installed.
        TypeError: for an option that does not exist.
        ValueError: if it cannot be run as asked; nothing was written then.
        OSError: if the results cannot be written; what was finished is kept.

    Example:
    ```python
    def build(num_classes, input_shape):
        layers = keras.layers
        return keras.Sequential(
            [keras.Input(input_shape), layers.Flatten(), layers.Dense(num_classes)]
        )

    rows = compare(build, (x_train, y_train), (x_test, y_test), regimes="sb,lb", epochs=20)
    print(rows["lb"]["test_accuracy"])
    ```
    """
    check_cli()
    # Imported here: they need packages that only a comparison needs.
    from keras_noisylb.experiments import compare as comparison
    from keras_noisylb.experiments.problem import Problem, labelled
    from noisylb.protocol.options import Options

    if not callable(build) or isinstance(build, keras.Model):
        raise ValueError(
            "`build` must be a function that returns a new Keras model, as every run needs one. "
            f"Received: {build!r}"
        )
    for name, value in (
        ("large_batch_size", large_batch_size),
        ("small_batch_size", small_batch_size),
        ("epochs", epochs),
    ):
        positive_integer(name, value, "as in `noisylb compare`")
    for name in ("model", "dataset", "data_dir"):
        if name in options:
            raise TypeError(f"compare() has no option {name!r}: pass `build`, `train` and `test`.")
    values = {
        "regimes": regimes if isinstance(regimes, str) else ",".join(regimes),
        "seeds": str(seeds) if isinstance(seeds, int) else "".join(f"{seed}," for seed in seeds),
        "model": f"{build.__module__}:{getattr(build, '__qualname__', type(build).__qualname__)}",
        "dataset": "arrays",
        **options,
    }
    if learning_rate is not None:
        values["learning_rate"] = (
            ",".join(f"{name}={rate}" for name, rate in learning_rate.items())
            if isinstance(learning_rate, Mapping)
            else str(learning_rate)
        )
    try:
        chosen = Options(
            large_batch_size=large_batch_size,
            small_batch_size=small_batch_size,
            epochs=epochs,
            output=str(output),
            **values,
        )
        problem = Problem(build, True, labelled(train, test, "these arrays"))
        return comparison.compare(chosen, problem)
    except (ValueError, comparison.CompareError) as error:
        raise ValueError(_in_python(str(error))) from error


def _in_python(message):
    """A message of the command line, with arguments in place of its flags."""
    names = {"model": "build", "regimes": "regimes"}

    def argument(match):
        name = match[1].replace("-", "_")
        return f"`{names.get(name, name)}`"

    return re.sub(r"--([a-z][a-z0-9-]*)", argument, message)
