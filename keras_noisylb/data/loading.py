"""Loading a data set as standardised arrays."""

import os

from keras_noisylb.data.arrays import standardised
from keras_noisylb.data.catalogue import BUNDLED, info
from keras_noisylb.types import Examples


def load(
    name: str = BUNDLED, *, data_dir: str | os.PathLike[str] | None = None
) -> tuple[Examples, Examples]:
    """Load a data set as arrays.

    Each channel is standardised in both splits: the mean of the *training* images is subtracted,
    and the result is divided by their standard deviation.

    Args:
        name: `"fashion_mnist_small"` (10,000 training and 5,000 test images, balanced by class,
            part of this package); or, from TensorFlow Datasets, `"mnist"`, `"fashion_mnist"`,
            `"cifar10"` or `"cifar100"`.
        data_dir: directory of prepared TensorFlow Datasets copies, `data_dir/name/version/...`.
            With `None`, `"fashion_mnist_small"` is read from this package, and other data sets from
            the environment variable `TFDS_DATA_DIR`, or `~/tensorflow_datasets` if it is not set.
            A data set that is missing there is downloaded into this directory.

    Returns:
        `(x_train, y_train), (x_test, y_test)`: images float32 (N, height, width, channels), labels
        int64 (N,).

    Raises:
        ValueError: if the name is unknown, the prepared copy is of another data set, or it names a
            feature class that is not of TensorFlow Datasets.
        FileNotFoundError: if there is no prepared copy and none can be downloaded.
        OSError: if the files are damaged.

    Example:
    ```python
    (x_train, y_train), (x_test, y_test) = load("fashion_mnist_small")
    ```
    """
    info(name)
    # Imported here, so that only loading a data set imports TensorFlow Datasets.
    from keras_noisylb.data.prepared import read

    (x_train, y_train), (x_test, y_test) = read(name, data_dir)
    x_train, x_test = standardised(x_train, x_test)
    return (x_train, y_train), (x_test, y_test)
