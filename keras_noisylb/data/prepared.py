"""Finding, downloading and reading prepared TensorFlow Datasets copies."""

import os
import ssl
import urllib.error
import urllib.request

import tensorflow_datasets as tfds

from keras_noisylb.data.catalogue import BUNDLED
from keras_noisylb.data.checks import check_data_set, unknown_features

PACKAGE = tfds.core.Path(__file__).parent


def read(name, data_dir):
    """The stored arrays of a data set, unchanged.

    Args:
        name: one of `names()`.
        data_dir: as in `load`.

    Returns:
        `(x_train, y_train), (x_test, y_test)`: images uint8, labels int64.

    Raises:
        ValueError: if the prepared copy is of another data set, or names an unknown feature class.
        FileNotFoundError: if there is no prepared copy and none can be downloaded.
        OSError: if the files are damaged.
    """
    builder = _builder(name, data_dir)
    check_data_set(builder, name)
    return _read(builder, "train"), _read(builder, "test")


def is_prepared(name, data_dir):
    """Whether there is a prepared copy of a data set.

    Args:
        name: name of the data set.
        data_dir: as in `load`.
    """
    return bool(_versions(_folder(name, data_dir)))


def read_supervised(name, data_dir):
    """The stored inputs and labels of any prepared copy, unchanged.

    Args:
        name: name of the data set.
        data_dir: as in `load`.

    Returns:
        Tuple `(train, test)` of tuples `(x, y)`; `test` is `None` if there is neither a split
        "test" nor "validation".

    Raises:
        ValueError: if there is no split "train", there are no inputs and labels, or an unknown
            feature class is named.
        OSError: if the files are damaged.
    """
    builder = _builder(name, data_dir)
    found, features = builder.info.splits, list(builder.info.features)
    keys = builder.info.supervised_keys or ("image", "label")
    if "train" not in found or len(keys) != 2 or not set(keys) <= set(features):
        raise ValueError(
            f"Expected a split train, an input and a label in {builder.data_path}. Received: the "
            f"splits {', '.join(found)} and the features {', '.join(features)}. Save the arrays "
            "as FILE.npz instead."
        )
    test = next((part for part in ("test", "validation") if part in found), None)
    return _read(builder, "train", keys), test and _read(builder, test, keys)


def _folder(name, data_dir):
    if data_dir is None and name == BUNDLED:
        data_dir = PACKAGE
    elif data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return tfds.core.Path(data_dir).expanduser() / name


def _builder(name, data_dir):
    """Open a prepared copy of any version from its files; download one if there is none."""
    folder = _folder(name, data_dir)
    if not _versions(folder):
        _download(name, folder)
    directory = folder / str(max(_versions(folder)))
    try:
        unknown = unknown_features(directory)
        builder = None if unknown else tfds.builder_from_directory(directory)
    except Exception as error:
        raise OSError(_damaged(directory, "description", error)) from error
    if unknown:
        raise ValueError(
            f"The data set in {directory} names feature classes that could run foreign code. "
            f"Received: {', '.join(unknown)}. Expected: classes of tensorflow_datasets.features. "
            "Delete this directory if you do not trust it, or save the arrays as FILE.npz."
        )
    return builder


def _versions(folder):
    names = [path.parent.name for path in folder.glob("*/dataset_info.json")]
    return [tfds.core.Version(name) for name in names if tfds.core.Version.is_valid(name)]


def _download(name, folder):
    if name == BUNDLED:
        raise FileNotFoundError(
            f"No prepared copy of {name} in {folder}. It is part of keras_noisylb: leave data_dir "
            "(in the command line --data-dir) out. If it is missing in the package too, reinstall "
            "keras_noisylb."
        )
    url = "the download address"
    try:
        builder = tfds.builder(name, data_dir=folder.parent)
        url = next(iter(builder.url_infos))
        # Fails fast: without a network, TensorFlow Datasets gives up only after minutes.
        reach(url)
        builder.download_and_prepare()
    except Exception as error:
        raise FileNotFoundError(
            f"No prepared copy of {name} in {folder}, and none could be downloaded from {url} "
            f"({type(error).__name__}: {error}). Connect to the internet and try again, or copy a "
            f"prepared TensorFlow Datasets directory to {folder}/<version>, or to "
            f"DIRECTORY/{name}/<version> and pass data_dir=DIRECTORY (in the command line "
            "--data-dir DIRECTORY)."
        ) from error


def reach(url):
    """Check that a server answers.

    An HTTP error counts as an answer. So does a certificate error, because TensorFlow Datasets uses
    its own certificates.

    Args:
        url: an address on the server.

    Raises:
        OSError: if there is no answer within 5 seconds.
    """
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        return
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):
            raise


def _read(builder, part, keys=("image", "label")):
    try:
        expected = builder.info.splits[part].num_examples
        # An automatic cache would keep a second copy in memory.
        config = tfds.ReadConfig(try_autocache=False)
        data = tfds.as_numpy(builder.as_dataset(split=part, batch_size=-1, read_config=config))
        images, labels = (data[key] for key in keys)
    except Exception as error:
        raise OSError(_damaged(builder.data_path, f"{part} split", error)) from error
    if len(images) != expected:
        found = f"{len(images)} of {expected} examples"
        raise OSError(_damaged(builder.data_path, f"{part} split", found))
    return images, labels


def _damaged(directory, part, error):
    reason = str(error).rpartition("}} ")[2]  # without the names of TensorFlow's graph nodes
    if tfds.core.Path(directory).is_relative_to(PACKAGE):
        fix = "Reinstall keras_noisylb."
    else:
        fix = "Delete this directory, then load the data set again or copy it there again."
    return f"The {part} of the data set in {directory} cannot be read ({reason}). {fix}"
