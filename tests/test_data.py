"""The bundled data set and other prepared copies, their errors, and splits."""

import http.server
import json
import pathlib
import re
import shutil
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_noisylb import data
from keras_noisylb.data.files import read_prepared
from keras_noisylb.data.prepared import reach

DIRECTORY = pathlib.Path(data.__file__).parent / "fashion_mnist_small"


@pytest.fixture(scope="module")
def loaded():
    return data.load("fashion_mnist_small")


@pytest.fixture(scope="module")
def raw():
    builder = tfds.builder_from_directory(DIRECTORY / "1.0.0")
    return {
        part: tfds.as_numpy(builder.as_dataset(part, batch_size=-1)) for part in builder.info.splits
    }


@pytest.fixture
def copy(tmp_path):
    """A copy of the bundled data set that a test may damage."""
    shutil.copytree(DIRECTORY, tmp_path / "fashion_mnist_small")
    return tmp_path / "fashion_mnist_small" / "1.0.0"


@pytest.fixture
def offline(monkeypatch):
    """Connections go to a port of this machine where nobody listens, so they fail at once."""
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)


def images(count, size=8, channels=3, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size, size, channels)).astype("float32")


# The bundled data set


def test_shapes_and_types(loaded):
    for (x, y), count in zip(loaded, (10_000, 5_000), strict=True):
        assert x.shape == (count, *data.info("fashion_mnist_small").image_shape)
        assert y.shape == (count,)
        assert x.dtype == np.float32 and y.dtype == np.int64


def test_stratified(loaded):
    for x, y in loaded:
        np.testing.assert_array_equal(np.bincount(y), [len(x) // 10] * 10)


def test_standardised_by_the_training_set(loaded, raw):
    train = raw["train"]["image"].astype("float64") / 255
    for (x, y), part in zip(loaded, ("train", "test"), strict=True):
        expected = (raw[part]["image"] / 255 - train.mean()) / train.std()
        np.testing.assert_allclose(x, expected, atol=1e-5)
        np.testing.assert_array_equal(y, raw[part]["label"])


def test_training_and_test_images_differ(raw):
    train, test = ({image.tobytes() for image in raw[part]["image"]} for part in ("train", "test"))
    assert not train & test


def test_small_enough_to_ship():
    sizes = [path.stat().st_size for path in DIRECTORY.rglob("*") if path.is_file()]
    assert sum(sizes) <= 10e6
    assert max(sizes) < 3e6
    assert "Copyright (c) 2017 Zalando SE" in (DIRECTORY / "LICENSE").read_text()


def test_description_names_no_path():
    description = (DIRECTORY / "1.0.0" / "dataset_info.json").read_text()
    assert re.findall(r'https?://[^"]+', description) == [
        "https://github.com/zalandoresearch/fashion-mnist"
    ]
    assert not re.search(r'"/|[A-Z]:\\|file:', description)


def test_channels_are_standardised_each_by_itself(tmp_path):
    bytes_ = np.random.default_rng(0).integers(
        [0, 100, 200], 256, size=(30, 32, 32, 3), dtype=np.uint8
    )
    labels_ = np.arange(30) % 10
    splits = {"train": slice(20), "test": slice(20, None)}
    for part, chosen in splits.items():
        examples = {"image": bytes_[chosen], "label": labels_[chosen]}
        splits[part] = tf.data.Dataset.from_tensor_slices(examples)
    write_cifar10(tmp_path, splits, version="1.2.3")
    (x_train, _), (x_test, y_test) = data.load("cifar10", data_dir=tmp_path)
    exact = x_train.astype("float64")
    np.testing.assert_allclose(exact.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(exact.std(axis=(0, 1, 2)), 1, atol=1e-5)
    train = bytes_[:20] / 255
    expected = (bytes_[20:] / 255 - train.mean(axis=(0, 1, 2))) / train.std(axis=(0, 1, 2))
    np.testing.assert_allclose(x_test, expected, atol=1e-5)
    np.testing.assert_array_equal(y_test, labels_[20:])


def write_cifar10(data_dir, splits, version):
    """A prepared directory in another version than the installed TensorFlow Datasets has."""
    tfds.dataset_builders.store_as_tfds_dataset(
        name="cifar10",
        version=version,
        data_dir=data_dir,
        features=tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }),
        split_datasets=splits,
        disable_shuffling=True,
    )


# Names and errors


def test_info():
    assert data.info("cifar100") == data.DatasetInfo(image_shape=(32, 32, 3), num_classes=100)
    assert "fashion_mnist_small" in data.names()


@pytest.mark.parametrize("function", [data.load, data.info])
def test_unknown_name(function):
    with pytest.raises(ValueError, match=r"'imagenet'.*fashion_mnist_small, mnist, .*cifar100"):
        function("imagenet")


def test_no_network_and_no_copy(tmp_path, offline):
    with pytest.raises(FileNotFoundError) as error:
        data.load("mnist", data_dir=tmp_path)
    for said in (
        str(tmp_path / "mnist"),
        "https://",
        "Connection refused",
        "Connect",
        "copy",
        "data_dir=",
        "--data-dir",
    ):
        assert said in str(error.value)
    assert not list(tmp_path.iterdir())


def test_default_directory(tmp_path, offline, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "cifar10"))):
        data.load("cifar10")


def test_download_breaks_off(tmp_path, monkeypatch):
    def break_off(self, **kwargs):
        raise ConnectionError("the line went dead")

    monkeypatch.setattr("keras_noisylb.data.prepared.reach", lambda url: None)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", break_off)
    with pytest.raises(FileNotFoundError, match=r"the line went dead.*Connect.*or copy"):
        data.load("cifar10", data_dir=tmp_path)


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers that a HEAD request is not allowed."""

    def do_HEAD(self):
        self.send_error(405)

    def log_message(self, *arguments):
        pass


def test_a_server_that_answers_is_reached(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        reach(f"http://127.0.0.1:{port}/file")
        reach(f"https://127.0.0.1:{port}/file")  # it speaks no TLS, but it is there
        server.shutdown()
    with pytest.raises(OSError, match="refused"):
        reach(f"http://127.0.0.1:{port}/file")


def test_bundled_data_set_is_not_downloaded(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"leave data_dir .*--data-dir.* out"):
        data.load("fashion_mnist_small", data_dir=tmp_path)


SHARD = "fashion_mnist_small-train.tfrecord-00001"


@pytest.mark.parametrize(
    ("name", "size"),
    [(SHARD, 700_000), (SHARD, 0), ("dataset_info.json", 100), ("features.json", 100)],
)
def test_truncated_file(copy, name, size):
    (copy / name).write_bytes((copy / name).read_bytes()[:size])
    with pytest.raises(OSError, match=rf"{re.escape(str(copy))} cannot be read.*Delete"):
        data.load("fashion_mnist_small", data_dir=copy.parent.parent)


def test_missing_shard(copy):
    (copy / SHARD).unlink()
    with pytest.raises(OSError, match=f"train split.*{SHARD}"):
        data.load("fashion_mnist_small", data_dir=copy.parent.parent)


def test_damaged_installation_names_its_mend(copy, monkeypatch):
    (copy / SHARD).write_bytes(b"")
    monkeypatch.setattr("keras_noisylb.data.prepared.PACKAGE", tfds.core.Path(copy.parent.parent))
    with pytest.raises(OSError, match="Reinstall keras_noisylb"):
        data.load()


def renamed(copy, name):
    """The bundled data set as a prepared copy of another name; returns its directory."""
    for path in copy.iterdir():
        path.rename(copy / path.name.replace("fashion_mnist_small", name))
    description = copy / "dataset_info.json"
    text = description.read_text().replace('"name": "fashion_mnist_small"', f'"name": "{name}"')
    description.write_text(text)
    return copy


def moved(copy, name):
    (copy.parent).rename(copy.parent.parent / name)
    return copy.parent.parent / name / copy.name


@pytest.mark.parametrize(
    ("folder", "own", "received", "expected"),
    [
        ("mnist", "fashion_mnist_small", "fashion_mnist_small, images of shape", "mnist, images"),
        ("cifar10", "cifar10", r"\(28, 28, 1\), 10 classes", r"\(32, 32, 3\), 10 classes"),
    ],
)
def test_another_data_set_is_refused(copy, folder, own, received, expected):
    directory = moved(renamed(copy, own), folder)
    message = f"holds another data set. Received: .*{received}.*Expected: .*{expected}"
    with pytest.raises(ValueError, match=message):
        data.load(folder, data_dir=directory.parent.parent)


def test_a_copy_of_its_own_name_is_read(copy, loaded):
    directory = moved(renamed(copy, "mnist"), "mnist")
    (x, y), _ = data.load("mnist", data_dir=directory.parent.parent)
    np.testing.assert_array_equal(x, loaded[0][0])
    np.testing.assert_array_equal(y, loaded[0][1])


LABEL = "tensorflow_datasets.core.features.class_label_feature.ClassLabel"
INNER = json.dumps({"features": {"x": {"pythonClassName": "evilmod.Evil"}}})
EVIL = {
    "class": lambda text: text.replace(LABEL, "evilmod.Evil"),
    "other spelling": lambda text: text.replace(
        f'"pythonClassName": "{LABEL}"', '"python_class_name": "evilmod.Evil"'
    ),
    "old form": lambda text: json.dumps({"type": "evilmod.Evil", "content": {}}),
    "within a string": lambda text: json.dumps({
        "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "content": INNER,
        "proto_cls": "tensorflow_datasets.FeaturesDict",
    }),
}


@pytest.mark.parametrize("way", [*EVIL, "description"])
@pytest.mark.parametrize("own", [False, True])
def test_data_run_no_code(copy, way, own, tmp_path, monkeypatch):
    """Neither a data set of the package nor a user's own imports a module that its files name."""
    (tmp_path / "evilmod.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evilmod", raising=False)
    features = copy / "features.json"
    if way == "description":
        description = json.loads((copy / "dataset_info.json").read_text())
        description["features"] = json.loads(EVIL["class"](features.read_text()))
        (copy / "dataset_info.json").write_text(json.dumps(description))
    else:
        features.write_text(EVIL[way](features.read_text()))
    with pytest.raises(
        ValueError, match=r"Received: evilmod.Evil. Expected: classes of tensorflow"
    ):
        if own:
            read_prepared("fashion_mnist_small", tmp_path)
        else:
            data.load("fashion_mnist_small", data_dir=tmp_path)
    assert not (tmp_path / "ran").exists()


# Arrays


@pytest.mark.parametrize("function", [data.check_arrays, lambda x, y: data.batches(x, y, 4)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(function, value):
    x = images(10)
    x[3, 0, 0, 0] = x[7, 1, 1, 1] = value
    with pytest.raises(ValueError, match=r"2 of 10 examples.*index 3"):
        function(x, np.zeros(10, int))
    with pytest.raises(ValueError, match=r"1 of 10 labels.*index 9"):
        function(images(10), np.array([0.0] * 9 + [value]))


@pytest.mark.parametrize("function", [data.check_arrays, lambda x, y: data.batches(x, y, 4)])
def test_empty_or_unequal(function):
    with pytest.raises(ValueError, match="0 examples and 0 labels"):
        function(images(0), np.zeros(0, int))
    with pytest.raises(ValueError, match="3 examples and 2 labels"):
        function(images(3), np.zeros(2, int))


def test_split_is_a_stratified_partition():
    y = np.repeat([0, 1, 2], [100, 40, 20])
    x = np.arange(160.0)  # an example is its own index
    (kept, y_kept), (held_out, y_held_out) = data.split(x, y, 0.25, seed=1)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held_out])), x)
    np.testing.assert_array_equal(np.bincount(y_held_out), [25, 10, 5])
    np.testing.assert_array_equal(y[held_out.astype(int)], y_held_out)
    np.testing.assert_array_equal(y[kept.astype(int)], y_kept)
    again, other = (data.split(x, y, 0.25, seed=seed)[1][0] for seed in (1, 2))
    np.testing.assert_array_equal(held_out, again)
    assert not np.array_equal(held_out, other)


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5, np.nan, 0.001])
def test_split_refuses(fraction):
    with pytest.raises(ValueError, match=f"{fraction}"):
        data.split(images(10), np.arange(10) % 2, fraction)


def test_split_refuses_one_hot_labels():
    with pytest.raises(ValueError, match=r"y.shape=\(10, 2\)"):
        data.split(images(10), np.ones((10, 2)), 0.5)


# Augmentation
