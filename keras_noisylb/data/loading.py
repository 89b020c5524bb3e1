"""Loads a data set as standardised arrays."""

import os

from keras_noisylb.data.arrays import standardised
from keras_noisylb.data.catalogue import BUNDLED, info
from keras_noisylb.types import Examples


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
