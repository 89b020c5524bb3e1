"""Checks of a prepared copy: that it runs no foreign code, and is the data set of its folder."""

import inspect
import json

import tensorflow_datasets as tfds

from keras_noisylb.data.catalogue import info

FEATURES = {
    f"{value.__module__}.{value.__name__}"
    for value in vars(tfds.features).values()
    if inspect.isclass(value)
}
NAMES = ("pythonClassName", "python_class_name")


def unknown_features(directory):
    """The feature classes that a prepared copy names and TensorFlow Datasets does not have.

    TensorFlow Datasets would import their modules: files of data would run code.

    Args:
        directory: `tfds.core.Path` of one version.

    Returns:
        Sorted list of names.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if a file is no JSON.
    """
    found = set()
    # In features.json, versions of TensorFlow Datasets before 4.5 call the class "type".
    for file, keys in (("dataset_info.json", NAMES), ("features.json", (*NAMES, "type"))):
        if (directory / file).exists():
            found |= set(_class_names(json.loads((directory / file).read_text()), keys))
    return sorted(found - FEATURES)


def _class_names(value, keys):
    if isinstance(value, dict):
        for key, part in value.items():
            if key in keys and isinstance(part, str):
                yield part
            elif key == "content" and isinstance(part, str):  # features as JSON in a string
                yield from _class_names(json.loads(part), keys)
            else:
                yield from _class_names(part, keys)
    elif isinstance(value, list):
        for part in value:
            yield from _class_names(part, keys)


def check_data_set(builder, name):
    """Check that a prepared copy is the data set that its folder is named after.

    Args:
        builder: the TensorFlow Datasets builder of the copy.
        name: one of `names()`.

    Raises:
        ValueError: if its name, the shape of its images or its number of classes is another.
    """
    expected, features = info(name), builder.info.features
    shape = getattr(features["image"], "shape", None) if "image" in features else None
    classes = getattr(features["label"], "num_classes", None) if "label" in features else None
    wanted = (name, expected.image_shape, expected.num_classes)
    received = (builder.name, shape, classes)
    if received != wanted:
        raise ValueError(
            f"{builder.data_path} holds another data set. Received: {_described(*received)}. "
            f"Expected: {_described(*wanted)}. Move it to the folder of its own name, and copy "
            f"{name} there."
        )


def _described(name, shape, classes):
    return f"{name}, images of shape {shape}, {classes} classes"
