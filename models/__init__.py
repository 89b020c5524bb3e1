"""Ordinary Keras models, with ghost batch normalisation by default."""

from keras_noisylb.models.lenet import LeNet
from keras_noisylb.models.mlp import MLP

_BUILDERS = {"lenet": LeNet, "mlp": MLP}

__all__ = ["MLP", "LeNet", "get", "names"]


def names():
    """The names that `get` knows."""
    return sorted(_BUILDERS)


def get(name):
    """The builder of the model called `name`.

    Args:
        name: one of `names()`.

    Returns:
        A function such as `LeNet`.

    Raises:
        ValueError: for another name.

    Example:
    >>> get("lenet")(num_classes=3).output_shape
    (None, 3)
    """
    if name not in _BUILDERS:
        raise ValueError(f"Unknown model {name!r}. Known models: {', '.join(names())}")
    return _BUILDERS[name]
