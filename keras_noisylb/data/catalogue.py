"""Names and shapes of the data sets that `load` supports."""

import dataclasses

BUNDLED = "fashion_mnist_small"


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Image shape and number of classes of a data set.

    Args:
        image_shape: (height, width, channels).
        num_classes: number of classes.
    """

    image_shape: tuple[int, int, int]
    num_classes: int


_DATASETS = {
    BUNDLED: DatasetInfo((28, 28, 1), 10),
    "mnist": DatasetInfo((28, 28, 1), 10),
    "fashion_mnist": DatasetInfo((28, 28, 1), 10),
    "cifar10": DatasetInfo((32, 32, 3), 10),
    "cifar100": DatasetInfo((32, 32, 3), 100),
}


def names() -> list[str]:
    """The names of the data sets that `load` supports."""
    return list(_DATASETS)


def info(name: str) -> DatasetInfo:
    """Image shape and number of classes of a data set, without loading it.

    Args:
        name: one of `names()`.

    Returns:
        A `DatasetInfo`.

    Raises:
        ValueError: if the name is unknown.

    Example:
    >>> info("cifar10").image_shape
    (32, 32, 3)
    """
    if name not in _DATASETS:
        raise ValueError(f"Unknown data set {name!r}. Known data sets: {', '.join(names())}")
    return _DATASETS[name]
