"""Loading data sets as standardised arrays."""

import dataclasses
import os

import numpy as np

from keras_noisylb.types import Examples

BUNDLED = "fashion_mnist_small"


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a data set looks like.

    Args:
        image_shape: (height, width, channels).
        num_classes: number of labels.
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
    """The data sets that `load` knows."""
    return list(_DATASETS)


def info(name: str) -> DatasetInfo:
    """Image shape and number of classes of a data set, without loading it.

    Args:
        name: one of `names()`.

    Returns:
        A `DatasetInfo`.

    Raises:
        ValueError: for another name.

    Example:
    >>> info("cifar10").image_shape
    (32, 32, 3)
    """
    if name not in _DATASETS:
        raise ValueError(f"Unknown data set {name!r}. Known data sets: {', '.join(names())}")
    return _DATASETS[name]


def load(
    name: str = BUNDLED, *, data_dir: str | os.PathLike[str] | None = None
) -> tuple[Examples, Examples]:
    """Load a data set as arrays.

    Pixels are divided by 255; then each channel has the mean of the *training* images subtracted
    and is divided by their standard deviation, in both splits.

    Args:
        name: `"fashion_mnist_small"` (10,000 training and 5,000 test images, balanced by class,
            part of this package) or, through TensorFlow Datasets, `"mnist"`, `"fashion_mnist"`,
            `"cifar10"` or `"cifar100"`.
        data_dir: directory of prepared TensorFlow Datasets copies, `data_dir/name/version/...`.
            `None` is the package itself for `"fashion_mnist_small"`, and for the others the
            environment variable `TFDS_DATA_DIR` or else `~/tensorflow_datasets`. A data set that
            is not there is downloaded into it.

    Returns:
        `(x_train, y_train), (x_test, y_test)`: images float32 (N, height, width, channels), labels
        int64 (N,).

    Raises:
        ValueError: for an unknown name.
        FileNotFoundError: if there is neither a prepared copy nor a way to download one.
        OSError: if the files are damaged.

    Example:
    ```python
    (x_train, y_train), (x_test, y_test) = load("fashion_mnist_small")
    ```
    """
    info(name)
    # Here, so that TensorFlow Datasets is imported by those who load a data set only.
    from keras_noisylb.data.prepared import read

    (x_train, y_train), (x_test, y_test) = read(name, data_dir)
    x_train, x_test = standardised(x_train, x_test)
    return (x_train, y_train), (x_test, y_test)


def standardised(x_train, *others):
    """Images whose channels have the mean 0 and the standard deviation 1 in the training set.

    Args:
        x_train: array (N, height, width, channels) of bytes.
        *others: further ones, which the same is done to.

    Returns:
        List of float32 arrays.
    """
    # Sums over the bytes themselves: `std` would copy the images as float64, 1.2 GB for CIFAR.
    count = x_train[..., 0].size
    mean = x_train.sum(axis=(0, 1, 2), dtype="float64") / count
    square = np.einsum("nhwc,nhwc->c", x_train, x_train, dtype="float64") / count
    std = np.sqrt(square - mean**2)
    mean, std = mean.astype("float32"), std.astype("float32")
    return [_standardise(images, mean, std) for images in (x_train, *others)]


def _standardise(images, mean, std):
    """The division by 255 cancels: mean and standard deviation are those of the bytes."""
    images = images.astype("float32")
    images -= mean
    images /= std
    return images


def check_arrays(x: np.ndarray, y: np.ndarray) -> None:
    """Check that images and labels can be trained on.

    Args:
        x: images, examples first.
        y: labels, examples first.

    Raises:
        ValueError: if there are no examples, not one label for each, or values that are not finite.
    """
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(
            "Expected at least one example and one label for each. Received: "
            f"{len(x)} examples and {len(y)} labels"
        )
    for values, what in ((np.asarray(x), "examples"), (np.asarray(y), "labels")):
        if not np.isfinite([values.min(), values.max()]).all():  # NaN is both of them
            bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
            raise ValueError(
                f"Expected finite numbers. Received: {bad.sum()} of {len(values)} {what} with NaN "
                f"or infinite values, the first at index {bad.argmax()}. Remove or repair them."
            )


def split(
    x: np.ndarray, y: np.ndarray, fraction: float, seed: int = 0
) -> tuple[Examples, Examples]:
    """Hold out a part of a training set, with the same proportion of every class.

    Args:
        x: examples (N, ...).
        y: integer labels (N,).
        fraction: the part to hold out, between 0 and 1.
        seed: integer; the same seed gives the same split.

    Returns:
        `(x_kept, y_kept), (x_held_out, y_held_out)`.

    Raises:
        ValueError: if `fraction` is not between 0 and 1 or leaves one of the parts empty, if labels
            are not of shape (N,), or as `check_arrays`.

    Example:
    ```python
    (x_train, y_train), (x_val, y_val) = split(x_train, y_train, fraction=0.2)
    ```
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`fraction` must be between 0 and 1. Received: fraction={fraction}")
    check_arrays(x, y)
    x, y = np.asarray(x), np.asarray(y)
    if y.ndim != 1:
        raise ValueError(f"`y` must be integer labels of shape (N,). Received: y.shape={y.shape}")
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(y), bool)
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        held_out[members[: round(fraction * len(members))]] = True
    if not held_out.any() or held_out.all():
        raise ValueError(f"A fraction of {fraction} of {len(y)} examples leaves a part empty.")
    return (x[~held_out], y[~held_out]), (x[held_out], y[held_out])
