"""Data sets of users: `.npz` files, and other prepared TensorFlow Datasets copies."""

import os
import zipfile

import numpy as np

from keras_noisylb.data.arrays import standardised
from keras_noisylb.data.catalogue import names as known_names

HELD_OUT = 0.2  # part of a training set that has no test set
WHOLE, PARTS = {"x", "y"}, {"x_train", "y_train"}


def read_npz(path):
    """The arrays of a file that `numpy.savez` has written, as they are.

    Args:
        path: of a file with `x_train`, `y_train` and, if it has a test set, `x_test`, `y_test`; or
            with `x` and `y`.

    Returns:
        Tuple `(train, test)` of tuples `(x, y)`; `test` is `None` if there is none.

    Raises:
        ValueError: if it holds other arrays.
        OSError: if it cannot be read.
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

    Images are standardised as those of `data.load`; other inputs are taken as they are. The test
    set is the split "test", or else "validation".

    Args:
        name: of the data set, `data_dir/name/version`.
        data_dir: directory of prepared copies; `None` is as in `data.load`.

    Returns:
        Tuple `(train, test)` of tuples `(x, y)`; `test` is `None` if there is none.

    Raises:
        ValueError: if there is no such copy, or it has no pair of inputs and labels.
        OSError: if it is damaged.
    """
    # Here, so that TensorFlow Datasets is imported by those who load a data set only.
    from keras_noisylb.data import prepared

    if not prepared.is_prepared(name, data_dir):
        raise ValueError(
            f"Unknown data set {name!r}. Known data sets: {', '.join(known_names())}; a file "
            "FILE.npz; or the name of a prepared TensorFlow Datasets copy in --data-dir."
        )
    train, test = prepared.read_supervised(name, data_dir)
    (x, y), shape = train, train[0].shape
    if x.dtype != np.uint8 or len(shape) != 4:
        return train, test
    parts = standardised(x, *([] if test is None else [test[0]]))
    return (parts[0], y), None if test is None else (parts[1], test[1])
