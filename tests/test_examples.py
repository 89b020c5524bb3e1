"""The examples run, at a reduced size, and show what they say; the notebooks belong to their files.

The notebooks' py:percent files are run as scripts, so that no Jupyter is needed. Examples that
repeat, as whole programs, what the tests of their parts check are slow.
"""

import base64
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

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
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


def test_quickstart(monkeypatch):
    history = run_script("quickstart", monkeypatch, "--examples", "500", "--epochs", "4")["history"]
    assert history["noise_norm"][0] > 0
    assert history["noise_norm"][1:] == [0, 0, 0]
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.slow
def test_custom_loop(monkeypatch):
    names = run_script("custom_loop", monkeypatch, "--examples", "500", "--epochs", "3")
    gradient, noise = np.transpose(names["norms"])
    assert (gradient > 0).all()
    assert (noise > 0).tolist() == [True, False, False]
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
def test_quick_start_notebook():
    history = run_notebook("01_quick_start", num_examples=400, large_batch_size=200, epochs=4)[
        "history"
    ]
    assert history["noise_to_gradient"][0] > 0
    assert history["noise_to_gradient"][-1] == 0
    assert history["loss"][-1] < history["loss"][0]


def test_noise_notebook():
    names = run_notebook("02_the_noise", num_runs=200)
    runs, exact = names["runs"], names["exact"]
    error = runs[1:].std(axis=1, ddof=1) / np.sqrt(200)
    assert (np.abs(runs[1:].mean(axis=1) - exact[1:]) < 5 * error).all()
    other = names["bowls"]["full"].expected_losses(names["start"], 80, 0.11)
    assert (np.abs(runs[1:].mean(axis=1) - other[1:]) > 5 * error).any()
    medians = {name: np.median(found) for name, found in names["angles"].items()}
    assert medians["full"] < 15 < medians["diagonal"]


@pytest.mark.slow
def test_gap_notebook(capsys):
    names = run_notebook("03_generalisation_gap", num_examples=200, large_batch_size=100, epochs=1)
    assert set(names["runs"]) == {"SB", "LB", "LB + diagonal"}
    assert capsys.readouterr().out.count("two seeds of LB") == 2
    compare, some = names["compare"], np.arange(1000) < 100
    found = {"a": some, "b": some ^ (np.arange(1000) < 20), "c": some ^ (np.arange(1000) == 5)}
    assert compare("a", "b", found).endswith("This a network is better than this b network.")
    assert compare("b", "a", found).endswith("This a network is better than this b network.")
    assert compare("a", "c", found).endswith("cannot tell the two networks apart.")
    assert compare("a", "b", found).startswith("a − b: +2.00% ± 0.44%.")


@pytest.mark.slow
def test_sharpness_notebook():
    names = run_notebook("04_sharpness", num_examples=400, num_measured=100, epochs=3)
    assert names["change"] < 1e-4
    values = {name: found.largest_eigenvalue for name, found in names["measured"].items()}
    np.testing.assert_allclose(values["LB halved"], values["LB"], rtol=0.01)
    plain = names["pairs"]["LB"].eigenvalues[0]
    assert abs(names["raw"].eigenvalues[0] / plain - 1) > 0.05


@pytest.mark.slow
def test_own_model_notebook():
    names = run_notebook("05_your_own", num_examples=400, batch_size=200, epochs=3)
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
    names = run_notebook("06_many_devices", num_examples=500, epochs=1, num_updates=100)
    assert np.array_equal(names["first"], names["second"])
    ratio, error = names["mean"], names["error"]
    assert abs(ratio) < 4 * error
    assert abs(ratio - np.log(2)) > 4 * error  # what noise that is not scaled would give


@pytest.mark.slow
def test_searching_notebook():
    names = run_notebook("07_searching", num_examples=500, epochs=1, max_trials=2)
    trials = names["trials"]
    assert [trial.status for trial in trials] == ["COMPLETED"] * 2
    for trial in trials:
        assert trial.score == pytest.approx(np.mean(list(trial.seed_scores.values())))
    assert names["lead"] >= 0
