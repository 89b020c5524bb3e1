"""Arrays of examples and labels: standardised, checked and split."""

import numpy as np

from keras_noisylb.types import Examples


def standardised(x_train, *others):
    """Standardise images: each channel has mean 0 and standard deviation 1 in the training set.

    Args:
        x_train: array (N, height, width, channels) of bytes.
        *others: further image arrays, standardised with the statistics of `x_train`.

    Returns:
        List of float32 arrays.
    """
    # Sums over the bytes: `std` would copy the images to float64, 1.2 GB for CIFAR.
    count = x_train[..., 0].size
    mean = x_train.sum(axis=(0, 1, 2), dtype="float64") / count
    square = np.einsum("nhwc,nhwc->c", x_train, x_train, dtype="float64") / count
    std = np.sqrt(square - mean**2)
    mean, std = mean.astype("float32"), std.astype("float32")
    return [_standardise(images, mean, std) for images in (x_train, *others)]


def _standardise(images, mean, std):
    """Standardise bytes with the statistics of the bytes: a division by 255 would cancel."""
    images = images.astype("float32")
    images -= mean
    images /= std
    return images


def check_arrays(x: np.ndarray, y: np.ndarray) -> None:
    """Check that images and labels can be used for training.

    Args:
        x: images, examples first.
        y: labels, examples first.

    Raises:
        ValueError: if there are no examples, if the numbers of examples and labels differ, or if
            values are not finite.
    """
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(
            "Expected at least one example, and one label per example. Received: "
            f"{len(x)} examples and {len(y)} labels"
        )
    for values, what in ((np.asarray(x), "examples"), (np.asarray(y), "labels")):
        if not np.isfinite([values.min(), values.max()]).all():  # min and max propagate NaN
            bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
            raise ValueError(
                f"Expected finite numbers. Received: {bad.sum()} of {len(values)} {what} with NaN "
                f"or infinite values, the first at index {bad.argmax()}. Remove or correct them."
            )


def split(
    x: np.ndarray, y: np.ndarray, fraction: float, seed: int = 0
) -> tuple[Examples, Examples]:
    """Hold out a fraction of a training set, with the same fraction of every class.

    Args:
        x: examples (N, ...).
        y: integer labels (N,).
        fraction: fraction of the examples to hold out, between 0 and 1.
        seed: integer; the same seed gives the same split.

    Returns:
        `(x_kept, y_kept), (x_held_out, y_held_out)`.

    Raises:
        ValueError: if `fraction` is not between 0 and 1 or leaves one part empty, if the shape of
            the labels is not (N,), or as in `check_arrays`.

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
        raise ValueError(
            "Both parts must have examples. Received: "
            f"fraction={fraction} of {len(y)} examples. Change `fraction`, or pass more examples."
        )
    return (x[~held_out], y[~held_out]), (x[held_out], y[held_out])
