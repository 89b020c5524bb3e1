"""`compare` and the command line on a user's function and data."""

import json
import pathlib
import sys
import textwrap

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import keras_noisylb as nlb
from keras_noisylb.data import files
from keras_noisylb.data.catalogue import BUNDLED
from keras_noisylb.data.prepared import PACKAGE
from keras_noisylb.experiments import batch_size
from keras_noisylb.experiments import problem as problems
from keras_noisylb.experiments.problem import Problem, labelled
from noisylb.main import app
from noisylb.protocol.options import Options

L = keras.layers
RNG = np.random.default_rng(0)
Y = RNG.permutation(np.arange(150) % 3)
X = (RNG.normal(size=(150, 4)) + np.eye(4)[Y]).astype("float32")
TRAIN, TEST = (X[:100], Y[:100]), (X[100:], Y[100:])


def net(num_classes, input_shape):
    return keras.Sequential([keras.Input(input_shape), L.Dense(8, "tanh"), L.Dense(num_classes)])


def wider(num_classes, input_shape):
    return keras.Sequential([keras.Input(input_shape), L.Dense(9, "tanh"), L.Dense(num_classes)])


def compare(output, build=net, train=TRAIN, test=TEST, **changes):
    values = dict(
        regimes=("sb", "lb-diagonal-split"), large_batch_size=40, small_batch_size=10,
        learning_rate={"sb": 0.02, "lb": 0.05}, epochs=2, quiet=True,
    )  # fmt: skip
    return nlb.compare(build, train, test, output=output, **{**values, **changes})


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_compare(tmp_path, capsys):
    folder = tmp_path / "run"
    rows = compare(folder)
    assert [row["steps"] for row in rows.values()] == [20, 6]
    assert (folder / "compare.png").exists() and "LB + diagonal" in (
        folder / "table.md"
    ).read_text()
    found = json.loads((folder / "config.json").read_text())["options"]
    assert found["model"] == f"{__name__}:net"
    assert len(found["model_sha256"]) == len(found["data_sha256"]) == 64
    assert found["normalization"] is None
    saved = keras.saving.load_model(folder / "sb-seed0" / "model.keras")
    accuracy = np.mean(np.argmax(saved.predict(TEST[0], verbose=0), axis=1) == TEST[1])
    assert rows["sb"]["test_accuracy"] == pytest.approx(accuracy)
    capsys.readouterr()
    assert compare(str(folder)) == rows
    assert capsys.readouterr().out.count("not trained again") == 2
    # Others are refused, and change nothing.
    before, changed = tree(folder), Y[:100].copy()
    changed[7] = (changed[7] + 1) % 3
    for other, word in (
        ({"train": (TRAIN[0], changed)}, "data_sha256"),
        ({"test": None}, "data_sha256"),
        ({"build": wider}, "model_sha256"),
        ({"epochs": 3}, "epochs"),
    ):
        with pytest.raises(ValueError, match=f"run of other options: .*{word}.*`output`"):
            compare(folder, **other)
    assert tree(folder) == before


def test_a_run_that_diverges_is_a_row(tmp_path):
    rows = compare(tmp_path, regimes="sb,lb", learning_rate={"sb": 1e38, "lb": 0.1}, epochs=1)
    assert rows["sb"]["diverged_epochs"] == [1] and rows["lb"]["diverged_epochs"] == []


def test_documented_example(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"compare": nlb.compare, "keras": keras}
    names |= {"x_train": TRAIN[0], "y_train": TRAIN[1], "x_test": TEST[0], "y_test": TEST[1]}
    code = nlb.compare.__doc__.split("```python")[1].split("```")[0]
    sizes = "epochs=1, large_batch_size=40, small_batch_size=10"
    exec(textwrap.dedent(code).replace("epochs=20", sizes), names)
    assert str(names["rows"]["lb"]["test_accuracy"]) in capsys.readouterr().out


def named(*names):
    """A function with these arguments that returns them."""
    scope = {}
    exec(f"def f({', '.join(names)}): return locals()", scope)
    return scope["f"]


OPTIONS = {"model": "m:f", "large_batch_size": 40, "small_batch_size": 10}


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        ([], {}, {}),
        (["num_classes"], {}, {"num_classes": 3}),
        (
            ["input_shape=None", "*rest", "**more"],
            {},
            {"input_shape": (4,), "rest": (), "more": {}},
        ),
        (["ghost_batch_size"], {}, {"ghost_batch_size": 10}),
        (["ghost_batch_size"], {"ghost_batch_size": 5}, {"ghost_batch_size": 5}),
        (["l2=0.5", "normalization='mine'"], {}, {"l2": 0.5, "normalization": "mine"}),
        (["l2=0.5"], {"l2": 0.1}, {"l2": 0.1}),
        (["normalization"], {"normalization": "none"}, {"normalization": None}),
        (["width=3", "*", "num_classes=9"], {}, {"width": 3, "num_classes": 3}),
    ],
)
def test_a_function_gets_the_arguments_that_it_names(names, options, expected):
    problem = Problem(named(*names), True, None)
    assert problem.builder(Options(**OPTIONS, **options), 3, (4,))() == expected


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["width"], {}, "cannot be called without width, expected.*defaults"),
        (["normalization"], {}, "cannot be called without normalization"),
        ([], {"normalization": "ghost"}, "--normalization received 'ghost', but m:f has no"),
        (["num_classes"], {"ghost_batch_size": 5}, "--ghost-batch-size received 5.*Leave"),
        (["num_classes"], {"l2": 0.1}, "--l2 received 0.1"),
    ],
)
def test_options_that_a_function_cannot_take(names, options, message):
    with pytest.raises(ValueError, match=message):
        Problem(named(*names), True, None).builder(Options(**OPTIONS, **options), 3, (4,))


def lacking(num_classes):
    return keras.Sequential([keras.Input((4,)), L.Dense(num_classes - 1)])


def probabilities():
    return keras.Sequential([keras.Input((4,)), L.Dense(3, "softmax")])


def failing():
    raise KeyError("weights.h5")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"build": net(3, (4,))}, "`build` must be a function that returns a new Keras model"),
        ({"build": lambda: 3}, "`build` received .*lambda.*returns 3, expected a keras.Model"),
        ({"build": failing}, "failing, which fails .KeyError: 'weights.h5'.*expected a function"),
        ({"build": lacking}, r"outputs have the shape \(8, 2\).*expected \(8, 3\).*last layer"),
        ({"build": probabilities}, "outputs add up to 1, expected logits. Drop the softmax"),
        ({"train": (X[:100, :3], Y[:100])}, r"of shape \(3,\) and test examples of shape \(4,\)"),
        ({"train": (X, Y[:9])}, "one label per example. Received: 150 examples and 9 labels"),
        ({"train": (X, X)}, r"labels of type float32 and shape \(150, 4\), expected integers"),
        ({"train": (X, Y - 1)}, "label -1, expected classes counted from 0"),
        ({"train": (X.astype(str), Y)}, "type <U.*expected an array of numbers"),
        ({"train": (X * np.nan, Y)}, "150 of 150 examples with NaN"),
        ({"small_batch_size": 40}, "`large_batch_size` received 40, expected more than small"),
        ({"small_batch_size": 2.5}, "`small_batch_size` must be a positive integer.*2.5"),
        ({"learning_rate": 0}, "`learning_rate` received '0', expected positive numbers"),
        ({"learning_rate": {"sb": -1}}, "`learning_rate` received 'sb=-1'"),
        ({"learning_rate": {"huge": 1}}, "`learning_rate` received 'huge', expected one of sb"),
        ({"regimes": ["lb", "huge"]}, "`regimes` received 'huge'"),
        ({"seeds": [1, 1]}, "`seeds` received '1,1,'"),
        ({"pool": 2}, r"`pool` is for images.*shape \(4,\). Leave `pool` out"),
        ({"augment": True}, "`augment` is for images"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        compare(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_options_that_do_not_exist(tmp_path):
    for name in ("model", "speed"):
        with pytest.raises(TypeError, match=name):
            compare(tmp_path, **{name: 1})


# --- files


def test_arrays_of_a_file(tmp_path):
    path = str(tmp_path / "a.npz")
    np.savez(path, x_train=TRAIN[0], y_train=TRAIN[1], x_test=TEST[0], y_test=TEST[1])
    found = labelled(*files.read_npz(path), path)
    for pair, right in ((found.train, TRAIN), (found.test, TEST)):
        np.testing.assert_array_equal(pair[0], right[0])
        np.testing.assert_array_equal(pair[1], right[1])
    assert found.num_classes == 3
    for names in (("x", "y"), ("x_train", "y_train")):
        np.savez(path, **dict(zip(names, (X, Y[:, None]), strict=True)))
        again = labelled(*files.read_npz(path), path)
        assert [len(again.train[1]), len(again.test[1])] == [120, 30]
        np.testing.assert_array_equal(np.bincount(again.test[1]), [10, 10, 10])
        rows = {row.tobytes() for row in np.concatenate([again.train[0], again.test[0]])}
        assert rows == {row.tobytes() for row in X}
    assert again.digest != found.digest


def test_a_prepared_copy_of_another_name(tmp_path):
    (tmp_path / "mine").symlink_to(PACKAGE / BUNDLED)
    options = Options(dataset="mine", data_dir=str(tmp_path))
    found = problems.named(options).examples
    (x, y), (x_test, y_test) = nlb.data.load()
    for array, right in ((found.train[0], x), (found.test[0], x_test)):
        np.testing.assert_array_equal(array, right)
    for array, right in ((found.train[1], y), (found.test[1], y_test)):
        np.testing.assert_array_equal(array, right)
    assert found.num_classes == 10
    assert problems.named(Options()).examples is None


# --- the command line


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current directory with a module and data, which is not on the path yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    source = pathlib.Path("own_nets")
    source.mkdir()
    (source / "small.py").write_text(
        "import keras\n\n\ndef net(num_classes):\n"
        "    dense = keras.layers.Dense\n"
        "    return keras.Sequential([keras.Input((4,)), dense(5, 'tanh'), dense(num_classes)])\n"
        "\n\nnumber = 3\n"
    )
    (source / "broken.py").write_text("import a_module_that_is_not_there\n")
    np.savez("d.npz", x=X, y=Y)
    np.savez("other.npz", inputs=X)
    np.savez("objects.npz", x=np.array([{}, {}]), y=Y)
    pathlib.Path("text.npz").write_text("x, y")
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "own_nets"]:
        del sys.modules[name]


def invoke(command, *arguments):
    sizes = {"compare": ["--small-batch-size", "10", "--large-batch-size", "40"]}
    return CliRunner().invoke(app, [command, *sizes.get(command, []), *arguments])


OWN = ["--model", "own_nets.small:net", "--dataset", "d.npz"]


def test_the_command_compares(folder):
    more = ["--regimes", "lb", "--epochs", "1", "--quiet", "--output", "run"]
    result = invoke("compare", *OWN, *more)
    assert result.exit_code == 0, result.output
    assert "own_nets.small:net on d.npz" in " ".join(result.output.split())
    found = json.loads(pathlib.Path("run/config.json").read_text())["options"]
    assert (found["model"], found["dataset"]) == ("own_nets.small:net", "d.npz")
    np.savez("d.npz", x=X + 1, y=Y)
    result = invoke("compare", *OWN, *more)
    assert result.exit_code == 2 and "other options: data_sha256" in result.stderr
    result = invoke("report", *OWN, "--regime", "lb-diagonal")
    assert result.exit_code == 0 and "dense" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--model own_nets.small:", "received 'own_nets.small:', expected package.module:function"),
        ("--model nets:net", "no module 'nets' is in the current directory or installed"),
        ("--model own_nets.large:net", "no module 'own_nets.large' is in the current"),
        ("--model own_nets.broken:net", "cannot be imported (ModuleNotFoundError: No module"),
        ("--model own_nets.small:network", "own_nets.small has no function 'network'"),
        ("--model own_nets.small:number", "own_nets.small has no function 'number'"),
        ("--model own_nets.small:net --normalization ghost", "--normalization received 'ghost'"),
        ("--dataset none.npz", "--dataset received 'none.npz', expected a file, but there is"),
        ("--dataset other.npz", "with the arrays inputs, expected x_train, y_train"),
        ("--dataset objects.npz", "expected arrays of numbers that numpy can read without pickle"),
        ("--dataset text.npz", "'text.npz', expected"),
        ("--dataset data/d.csv", "--dataset received 'data/d.csv', expected one of fashion"),
        ("--dataset letters", "Unknown data set 'letters'. Known data sets: fashion"),
        ("--large-batch-size 10", "--large-batch-size received 10, expected more than"),
    ],
)
def test_bad_options_are_refused_in_one_line(folder, arguments, words):
    before = tree(folder)
    result = invoke("compare", *OWN, *arguments.split(), "--output", "run")
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("noisylb: error: ")
    assert {p for p in tree(folder) if p.suffix != ".pyc"} == before.keys()


def test_batch_size(folder):
    options = ["--batch-size", "8", "--updates", "10", "--highest-rate", "0.03", "--quiet"]
    result = invoke("batch-size", *OWN, *options)
    assert result.exit_code == 0, result.output
    shown = " ".join(result.output.split())
    assert "noise scale" in shown and "Largest batch that still pays: about" in shown
    for words, more in (
        ("--batch-size received 0, expected a positive number", ["--batch-size", "0"]),
        ("--learning-rate received -1.0", ["--learning-rate", "-1"]),
        ("--highest-rate received 'best', expected a number", ["--highest-rate", "best"]),
        ("at least 5 full batches", ["--batch-size", "50"]),
        ("`highest_rate` must be a positive number", ["--highest-rate", "0"]),
    ):
        result = invoke("batch-size", *OWN, *options, *more)
        assert result.exit_code == 2 and words in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_batch_size_trains_with_the_optimizer_of_the_options(folder, monkeypatch, optimizer):
    found = []

    def advise(*args, **kwargs):
        found.append(kwargs["optimizer"])
        raise ValueError("seen")

    monkeypatch.setattr(batch_size, "advise", advise)
    options = ["--optimizer", optimizer, "--learning-rate", "0.25", "--global-clipnorm", "0.5"]
    result = invoke("batch-size", *OWN, "--batch-size", "8", *options)
    assert result.exit_code == 2 and "seen" in result.stderr
    assert type(found[0]).__name__.lower() == optimizer
    assert (float(found[0].learning_rate), found[0].global_clipnorm) == (0.25, 0.5)
