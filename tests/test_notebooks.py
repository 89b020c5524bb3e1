"""The notebooks belong to their files, run at a reduced size, and show what they say.

Their py:percent files are run as scripts, so that no Jupyter is needed. Notebooks that repeat, as
whole programs, what the tests of their parts check are slow.
"""

import ast
import base64
import inspect
import json
import re

import numpy as np
import pytest
import tensorflow as tf
from test_examples import EXAMPLES, few_test_images, pictures  # noqa: F401 -- of every test

import keras_noisylb as nlb

# What the pages of the API list, and the forms of a block, which docs/contributing.md explains.
PUBLIC = {"keras_noisylb", "keras_noisylb.tuning", "keras_noisylb.gradients.blocks"} | {
    f"keras_noisylb.{name}" for name in nlb.__all__ if inspect.ismodule(getattr(nlb, name))
}
NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.py"))
# Absolute paths, log lines and progress bars.
NOT_IN_OUTPUTS = re.compile(r"(?<![\w.:])/\w+/\w|INFO:|WARNING:|━|it/s\]")


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
