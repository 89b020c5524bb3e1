"""Custom data sets: `.npz` files, and other prepared TensorFlow Datasets copies."""

import os
import zipfile

import numpy as np

from keras_noisylb.data.arrays import standardised
from keras_noisylb.data.catalogue import names as known_names
from noisylb.protocol.names import nearest

HELD_OUT = 0.2  # fraction of the training set that is held out if there is no test set
WHOLE, PARTS = {"x", "y"}, {"x_train", "y_train"}


def read_npz(path):
    """The arrays of a file written by `numpy.savez`, unchanged.

    Args:
        path: path of a file with `x_train`, `y_train` and optionally `x_test`, `y_test`; or with
            `x` and `y`.

    Returns:
        Tuple `(train, test)` of tuples `(x, y)`; `test` is `None` if there is none.

    Raises:
        ValueError: if the file contains other arrays.
        OSError: if the file cannot be read.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"--dataset received {path!r}, expected a file, but there is none.")
    try:
        with np.load(path) as file:
            names = set(file.files)
            accepted = (WHOLE, PARTS, PARTS | {"x_test", "y_test"})
            if names not in accepted:
                raise ValueError(
                    f"--dataset received {path!r} with the arrays {', '.join(sorted(names))}, "
                    "expected x_train, y_train, x_test and y_test, or the first two, or x and y."
                )
            arrays = {name: file[name] for name in names}
    except (zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise OSError(f"--dataset received {path!r}, expected a file of numpy.savez.") from error
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise ValueError(
            f"--dataset received {path!r}, expected arrays of numbers that numpy can read without "
            f"pickle ({error})."
        ) from error
    if names == WHOLE:
        return (arrays["x"], arrays["y"]), None
    test = (arrays["x_test"], arrays["y_test"]) if "x_test" in names else None
    return (arrays["x_train"], arrays["y_train"]), test


def read_prepared(name, data_dir):
    """The arrays of any prepared TensorFlow Datasets copy with inputs and labels.

    Images are standardised as in `data.load`; other inputs are returned unchanged. The test set is
    the split "test", or "validation" if there is no "test".

    Args:
        name: name of the data set, stored in `data_dir/name/version`.
        data_dir: directory of prepared copies; `None` as in `data.load`.

    Returns:
        Tuple `(train, test)` of tuples `(x, y)`; `test` is `None` if there is none.

    Raises:
        ValueError: if there is no prepared copy, or it has no inputs and labels.
        OSError: if the files are damaged.
    """
    # Imported here, so that only loading a data set imports TensorFlow Datasets.
    from keras_noisylb.data import prepared

    if not prepared.is_prepared(name, data_dir):
        raise ValueError(
            f"Unknown data set {name!r}. Known data sets: {', '.join(known_names())}; a file "
            "FILE.npz; or the name of a prepared TensorFlow Datasets copy in --data-dir."
            f"{nearest(name, known_names())}"
        )
    train, test = prepared.read_supervised(name, data_dir)
    (x, y), shape = train, train[0].shape
    if x.dtype != np.uint8 or len(shape) != 4:
        return train, test
    parts = standardised(x, *([] if test is None else [test[0]]))
    return (parts[0], y), None if test is None else (parts[1], test[1])
