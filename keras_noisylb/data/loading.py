"""Loading data sets as standardised arrays."""

import dataclasses
import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

BUNDLED = pathlib.Path(__file__).parent / "fashion_mnist_small" / "1.0.0"


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
    "fashion_mnist_small": DatasetInfo((28, 28, 1), 10),
    "mnist": DatasetInfo((28, 28, 1), 10),
    "fashion_mnist": DatasetInfo((28, 28, 1), 10),
    "cifar10": DatasetInfo((32, 32, 3), 10),
    "cifar100": DatasetInfo((32, 32, 3), 100),
}


def names():
    """The data sets that `load` knows."""
    return list(_DATASETS)


def info(name):
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


def load(name="fashion_mnist_small", data_dir=None):
    """Load a data set as arrays.

    Pixels are divided by 255; then each channel has the mean of the *training* images subtracted
    and is divided by their standard deviation, in both splits.

    Args:
        name: `"fashion_mnist_small"` (10,000 training and 5,000 test images, balanced by class,
            part of this package) or, through TensorFlow Datasets, `"mnist"`, `"fashion_mnist"`,
            `"cifar10"` or `"cifar100"`.
        data_dir: directory of prepared TensorFlow Datasets copies; `None` is their default,
            `~/tensorflow_datasets`. A data set that is not there is downloaded into it.

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
    builder = _bundled() if name == "fashion_mnist_small" else _prepared(name, data_dir)
    (x_train, y_train), (x_test, y_test) = (_read(builder, part) for part in ("train", "test"))
    mean = x_train.mean(axis=(0, 1, 2), dtype="float64").astype("float32")
    std = x_train.std(axis=(0, 1, 2), dtype="float64").astype("float32")
    return ((x_train - mean) / std, y_train), ((x_test - mean) / std, y_test)


def _bundled():
    try:
        return tfds.builder_from_directory(BUNDLED)
    except Exception as error:
        raise OSError(
            f"the bundled data set in {BUNDLED} cannot be read ({error}). Reinstall keras_noisylb."
        ) from error


def _prepared(name, data_dir):
    builder = tfds.builder(name, data_dir=data_dir)
    if not tf.io.gfile.exists(str(builder.data_path)):
        try:
            builder.download_and_prepare()
        except Exception as error:
            raise FileNotFoundError(
                f"{name} is not in {builder.data_path} and could not be downloaded "
                f"({type(error).__name__}: {error}). Either connect to the internet and try again, "
                "or copy a prepared TensorFlow Datasets directory that holds "
                f"{name}/{builder.version} here and pass its parent as data_dir."
            ) from error
    return builder


def _read(builder, part):
    expected = builder.info.splits[part].num_examples
    try:
        data = tfds.as_numpy(builder.as_dataset(split=part, batch_size=-1))
        images, labels = data["image"], data["label"]
    except (tf.errors.OpError, KeyError) as error:
        raise OSError(_damaged(builder, part, error)) from error
    if len(images) != expected:
        raise OSError(_damaged(builder, part, f"{len(images)} of {expected} examples"))
    return images.astype("float32") / 255, labels.astype("int64")


def _damaged(builder, part, error):
    return (
        f"the {part} split in {builder.data_path} cannot be read ({error}). Delete that directory "
        "and load the data set again; for the bundled one, reinstall keras_noisylb."
    )


def check_arrays(x, y):
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
    bad = ~np.isfinite(x).reshape(len(x), -1).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{bad.sum()} of {len(x)} examples have values that are not finite, the first at index "
            f"{bad.argmax()}. Remove or repair them."
        )


def split(x, y, fraction, seed=0):
    """Hold out a part of a training set, with the same proportion of every class.

    Args:
        x: examples (N, ...).
        y: integer labels (N,).
        fraction: the part to hold out, between 0 and 1.
        seed: integer; the same seed gives the same split.

    Returns:
        `(x_kept, y_kept), (x_held_out, y_held_out)`.

    Raises:
        ValueError: if `fraction` is not between 0 and 1, or leaves one of the parts empty.

    Example:

    ```python
    (x_train, y_train), (x_val, y_val) = split(x_train, y_train, fraction=0.2)
    ```
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`fraction` must be between 0 and 1. Received: fraction={fraction}")
    check_arrays(x, y)
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(y), bool)
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        held_out[members[: round(fraction * len(members))]] = True
    if not held_out.any() or held_out.all():
        raise ValueError(f"A fraction of {fraction} of {len(y)} examples leaves a part empty.")
    return (x[~held_out], y[~held_out]), (x[held_out], y[held_out])
