"""The examples run, at a reduced size, and show what they say; the notebooks belong to their files.

The notebooks' py:percent files are run as scripts, so that no Jupyter is needed. Examples that
repeat, as whole programs, what the tests of their parts check are slow.
"""

import ast
import base64
import inspect
import json
import pathlib
import re
import runpy
import subprocess
import sys

import few_images
import keras
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import oracle
import pytest
import sampling
import tensorflow as tf

import keras_noisylb as nlb

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
# What the pages of the API list, and the forms of a block, which docs/contributing.md explains.
PUBLIC = {"keras_noisylb", "keras_noisylb.tuning", "keras_noisylb.gradients.blocks"} | {
    f"keras_noisylb.{name}" for name in nlb.__all__ if inspect.ismodule(getattr(nlb, name))
}
NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.py"))
# Absolute paths, log lines and progress bars.
NOT_IN_OUTPUTS = re.compile(r"(?<![\w.:])/\w+/\w|INFO:|WARNING:|━|it/s\]")


@pytest.fixture(autouse=True)
def few_test_images(monkeypatch):
    few_images.use(monkeypatch)


@pytest.fixture(autouse=True)
def pictures():
    matplotlib.use("Agg")
    yield
    plt.close("all")
    keras.utils.clear_session()


def run_script(name, monkeypatch, *arguments):
    """Run a script in this process.

    Args:
        name: of the script.
        monkeypatch: the fixture.
        arguments: of its command line.

    Returns:
        Its names.
    """
    path = EXAMPLES / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    return runpy.run_path(str(path), run_name="__main__")


def run_process(name, *arguments):
    """What a script prints in a process of its own."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def run_notebook(name, **parameters):
    """Run a notebook's file with other values in its cell of parameters.

    Args:
        name: of the notebook.
        parameters: values by name.

    Returns:
        Its names.
    """
    path = EXAMPLES / "notebooks" / f"{name}.py"
    code, assigned = path.read_text(), parameter_cell(path)
    assert parameters.keys() <= assigned.keys()
    for parameter, value in parameters.items():
        code = code.replace(assigned[parameter], f"{parameter} = {value!r}", 1)
    names = {"__name__": "__main__"}
    exec(compile(code, path, "exec"), names)
    return names


def parameter_cell(path):
    """Names and assignments of the cell of parameters, the one cell with that tag."""
    (cell,) = [source for _, source, tagged in percent_cells(path) if tagged]
    return {line.split(" = ")[0]: line.split("  #")[0] for line in cell.splitlines()}


def percent_cells(path):
    """Tuples (kind, source, whether it is tagged as parameters) of a py:percent file."""
    found = []
    for block in path.read_text().split("\n# %%")[1:]:
        header, _, source = block.partition("\n")
        source = source.strip("\n")
        kind = "markdown" if "[markdown]" in header else "code"
        if kind == "markdown":
            source = "\n".join(line[2:] for line in source.splitlines())
        found.append((kind, source, 'tags=["parameters"]' in header))
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_its_file_executed(path):
    notebook = path.with_suffix(".ipynb")
    cells = json.loads(notebook.read_text())["cells"]
    assert [
        (
            cell["cell_type"],
            "".join(cell["source"]),
            "parameters" in cell["metadata"].get("tags", ()),
        )
        for cell in cells
    ] == percent_cells(path)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs
    for output in outputs:
        assert output["output_type"] in {"stream", "display_data"}
        assert output.get("name") != "stderr"
        assert not NOT_IN_OUTPUTS.search("".join(output.get("text", "")))
        picture = base64.b64decode("".join(output.get("data", {}).get("image/png", "")))
        assert len(picture) < 60_000
    assert notebook.stat().st_size < 300_000


def private_imports(source):
    """Modules from which a program imports, and which are no part of a public interface."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {
                node.module,
                *(f"{node.module}.{a.name}" for a in node.names if a.name[0] == "_"),
            }
    return {
        name
        for name in modules
        if re.search(r"(^|\.)(_|(src|python)(\.|$))", name)  # Keras' and TensorFlow's own folders
        or (name.startswith("keras_noisylb") and name not in PUBLIC)
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_imports_only_what_is_public(path):
    source = path.read_text(encoding="utf-8")
    assert "keras_noisylb" in source
    assert private_imports(source) == set()


@pytest.mark.parametrize(
    "line",
    [
        "from package.src.utils import x",
        "import package.python",
        "from keras_noisylb.experiments.figures import figure1",
        "import keras_noisylb.noise.base",
        "from keras_noisylb.noise import _x",
    ],
)
def test_a_private_import_is_found(line):
    assert private_imports(f"import keras_noisylb\n\ndef f():\n    {line}\n")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_ends_with_what_was_learned(path):
    text = path.read_text(encoding="utf-8")
    learned, _, following = text.partition("# ## What you have learned\n")[2].partition(
        "# ## What to try next\n"
    )
    assert all(f'"{number}. ' in learned for number in (1, 2, 3)) and '"4. ' not in learned
    assert following.count("\n# - ") >= 2


def test_quickstart(monkeypatch):
    history = run_script("quickstart", monkeypatch, "--examples", "500", "--epochs", "4")["history"]
    assert min(history["noise_norm"][:2]) > 0
    assert history["noise_norm"][2:] == [0, 0]
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.slow
def test_custom_loop(monkeypatch):
    names = run_script("custom_loop", monkeypatch, "--examples", "500", "--epochs", "3")
    gradient, noise = np.transpose(names["norms"])
    assert (gradient > 0).all()
    assert (noise > 0).tolist() == [True, True, False]
    assert names["losses"][-1] < names["losses"][0]


@pytest.mark.slow
def test_own_statistic(monkeypatch, capsys, float64, rng):
    names = run_script("own_statistic", monkeypatch, "--examples", "400", "--steps", "8")
    norms = np.array(list(names["norms"].values()))
    assert (np.diff(norms) > 0).all()
    assert names["history"]["loss"][-1] < names["history"]["loss"][0]
    printed = capsys.readouterr().out
    assert "2 directions of 8 microbatches" in printed and "has rank 2" in printed

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    x, y = rng.standard_normal((17, 3)), rng.standard_normal((17, 2))
    gradients = oracle.one_by_one(model, keras.losses.mean_squared_error, x, y)
    rows = sampling.matrix(gradients)
    # 17 examples are cut into six microbatches, of which the first has two and the others three.
    parts = np.split(rows, range(2, 17, 3))
    vectors = np.stack([len(p) ** 0.5 * (p.mean(0) - rows.mean(0)) for p in parts])
    whole = vectors.T @ vectors / 5
    _, directions = np.linalg.eigh(whole)
    projection = directions[:, -2:] @ directions[:, -2:].T
    scale = 1 / 4 - 1 / 17
    leading = scale * projection @ whole @ projection
    noise = names["LowRank"](small_batch_size=4, rank=2)
    samples = sampling.draw(noise, model, keras.losses.mean_squared_error, x, y)
    sampling.assert_only(samples, leading, scale * whole)


@pytest.mark.slow
def test_distributed():
    printed = run_process("distributed", "--examples", "200", "--epochs", "1")
    assert printed.startswith("2 devices: CPU:0, CPU:1\n")
    assert printed.endswith("copies of the first kernel equal: True\n")


@pytest.mark.slow
def test_multi_worker():
    printed = run_process("multi_worker", "--examples", "1000", "--epochs", "1")
    losses = re.findall(r"worker \d of 2: validation losses (.*)", printed)
    assert len(losses) == 2 and losses[0] == losses[1]


@pytest.mark.slow
def test_large_batch_on_small_memory():
    printed = run_process("large_batch_on_small_memory")
    rows = re.findall(
        r"num_microbatches=(\d+): peak memory rose by ([\d.]+) GiB, .*; losses of the updates (.*)",
        printed,
    )
    (one, at_once, losses), (several, in_parts, same_losses) = rows
    assert (int(one), int(several) > 1) == (1, True)
    assert float(in_parts) < 0.8 * float(at_once)
    limit, estimate = re.search(r"within ([\d.]+) GiB: ([\d.]+) GiB", printed).groups()
    assert float(in_parts) <= float(estimate) <= float(limit) < float(at_once)
    np.testing.assert_allclose(
        np.array(losses.split(", "), float), np.array(same_losses.split(", "), float), rtol=1e-3
    )


@pytest.mark.slow
def test_fine_tune(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where it writes its results
    options = ("--examples", "100", "--first-epochs", "1", "--epochs", "2", "--regimes", "lb")
    options += ("--held-out", "30", "--global-clipnorm", "1")
    names = run_script("fine_tune", monkeypatch, *options, "--large-batch-size", "50")
    assert names["rows"]["lb"]["test_accuracy"] > 0
    run = pathlib.Path("results/fine_tune/lb-seed0")
    record = json.loads((run / "record.json").read_text())
    assert 0 < record["held_out_accuracy"] < 1
    config = json.loads((run.parent / "config.json").read_text())["options"]
    assert (config["held_out"], config["global_clipnorm"]) == (30, 1)
    labels = names["y"]
    assert set(labels) == set(range(5)) and len(labels) == len(names["x"])
    old, new = (n.get_weights() for n in (names["before"], names["build"](5, (28, 28, 1))))
    equal = [np.array_equal(a, b) for a, b in zip(old, new, strict=True)]
    assert all(equal[:-2]) and not equal[-2]  # the last layer's bias starts with zeros
    again = run_script("fine_tune", monkeypatch, *options, "--large-batch-size", "50")
    for a, b in zip(old, again["before"].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_tune(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)  # where it keeps the search
    names = run_script("tune", monkeypatch, "--examples", "500", "--trials", "2", "--epochs", "1")
    printed = capsys.readouterr().out
    for trial in names["results"](names["tuner"]):
        scores = list(trial.seed_scores.values())
        assert trial.status == "COMPLETED" and len(scores) == 2
        mean, spread = np.mean(scores), np.std(scores, ddof=1)
        assert f"{mean:.3f} ± {spread:.3f}" in printed
    assert list(tmp_path.glob("results/tune/trial_*/trial.json"))


@pytest.mark.slow
def test_batch_size_notebook():
    names = run_notebook(
        "01_batch_size", num_examples=500, updates=10, tried=(25, 100), target=2.2, epochs=2
    )
    assert names["tried"] == [25, 100]
    assert min(names["numbers"]) > 0
    assert names["final"].lower < names["final"].value < names["final"].upper
    assert len(names["along"]) == 2


@pytest.mark.slow
def test_gradients_notebook():
    names = run_notebook(
        "02_per_example_gradients", num_examples=400, batch_size=20, repetitions=1, epochs=1
    )
    assert max(names["differences"]) < 1e-5
    each, lengths = names["each"], names["lengths"]
    before, after = lengths(each), lengths(names["clipped"](each, 1.0))
    np.testing.assert_allclose(after, np.minimum(before, 1), rtol=1e-5)
    assert {points.shape for points in names["curves"].values()} == {(4, 2)}


@pytest.mark.slow
def test_quick_start_notebook():
    history = run_notebook("03_quick_start", num_examples=800, large_batch_size=400, epochs=4)[
        "history"
    ]
    assert history["noise_to_gradient"][0] > 0
    assert history["noise_to_gradient"][-1] == 0
    assert history["loss"][-1] < history["loss"][0]


def test_noise_notebook():
    names = run_notebook("04_the_noise", num_runs=200)
    runs, exact = names["runs"], names["exact"]
    error = runs[1:].std(axis=1, ddof=1) / np.sqrt(200)
    assert (np.abs(runs[1:].mean(axis=1) - exact[1:]) < 5 * error).all()
    other = names["bowls"]["full"].expected_losses(names["start"], 80, 0.11)
    assert (np.abs(runs[1:].mean(axis=1) - other[1:]) > 5 * error).any()
    medians = {name: np.median(found) for name, found in names["angles"].items()}
    assert medians["full"] < 15 < medians["diagonal"]


@pytest.mark.slow
def test_gap_notebook():
    names = run_notebook(
        "05_generalisation_gap", num_examples=400, large_batch_size=400, epochs=2, seeds=(0, 1)
    )
    assert names["gain"] == pytest.approx(4.1, abs=0.1)  # as in docs/results.md
    assert len(names["verdicts"]) == 3
    compare, (one, other) = names["compare"], np.array([[0.5, 0.51, 0.52], [0.4, 0.412, 0.419]])
    found = compare("a", "b", {"a": one, "b": other}, images=0.01)
    assert found.startswith("clear: a over b +10.0 (± 0.1 by seeds, p = ")
    assert found.endswith("; ± 1.0 by images)")
    uncertain = {"a": one, "b": other[::-1] + 0.08}
    assert compare("a", "b", uncertain, images=0.001).startswith("not clear: ")
    assert compare("a", "b", {"a": one, "b": other}, images=0.06).startswith("not clear: ")


@pytest.mark.slow
def test_sharpness_notebook():
    names = run_notebook(
        "06_sharpness",
        num_examples=400,
        num_measured=100,
        target=1.0,
        noisy_updates=5,
        seeds=(0,),
    )
    assert names["change"] < 1e-4
    lb, halved = (found.largest_eigenvalue for found in names["pair"].values())
    np.testing.assert_allclose(halved, lb, rtol=0.01)
    assert abs(names["raw"].eigenvalues[0] / names["plain"] - 1) > 0.05
    for network, _ in names["trained"].values():
        assert 0.5 < names["training_loss"](network) < 1.0


@pytest.mark.slow
def test_own_model_notebook():
    names = run_notebook("07_your_own", num_examples=800, batch_size=400, epochs=3)
    for a, b in zip(names["by_rules"], names["one_by_one"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.max(b))
    noise = np.transpose(names["norms"])[1]
    assert noise[0] > 0
    assert noise[-1] == 0
    assert names["losses"][-1] < names["losses"][0]


@pytest.mark.slow
def test_devices_notebook(monkeypatch):
    # TensorFlow runs already, on the logical devices that conftest.py has made.
    monkeypatch.setattr(tf.config, "set_logical_device_configuration", lambda *arguments: None)
    names = run_notebook("08_many_devices", num_examples=500, epochs=1, num_updates=100)
    assert np.array_equal(names["first"], names["second"])
    ratio, error = names["mean"], names["error"]
    assert abs(ratio) < 4 * error
    assert abs(ratio - np.log(2)) > 4 * error  # what noise that is not scaled would give


@pytest.mark.slow
def test_searching_notebook():
    names = run_notebook("09_searching", num_examples=800, epochs=1, max_trials=2)
    trials = names["trials"]
    assert [trial.status for trial in trials] == ["COMPLETED"] * 2
    for trial in trials:
        assert trial.score == pytest.approx(np.mean(list(trial.seed_scores.values())))
    assert names["runner_up_lead"] >= 0
    assert set(names["on_test"]) == {"default", "best trial"}
