"""The example scripts run, at a reduced size, and show what they say.

Scripts that repeat, as whole programs, what the tests of their parts check are slow.
"""

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

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


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
def test_fine_tune(monkeypatch, tmp_path, rng):
    monkeypatch.chdir(tmp_path)  # where it writes its results
    options = ("--examples", "100", "--first-epochs", "1", "--epochs", "2", "--regimes", "lb")
    options += ("--held-out", "30", "--global-clipnorm", "1")
    names = run_script("fine_tune", monkeypatch, *options, "--large-batch-size", "30")
    assert names["rows"]["lb"]["test_accuracy"] > 0
    run = pathlib.Path("results/fine_tune/lb-seed0")
    record = json.loads((run / "record.json").read_text())
    assert 0 < record["held_out_accuracy"] < 1
    assert record["steps"] == 8  # two epochs of about 100 examples, beside those held out
    config = json.loads((run.parent / "config.json").read_text())["options"]
    assert (config["held_out"], config["global_clipnorm"]) == (30, 1)
    labels = names["y"]
    assert not names["build"](5, (28, 28, 1)).losses and names["build"](5, (28, 28, 1), 0.1).losses
    x = rng.normal(size=(2, 4, 4, 1)).astype("float32")
    names["args"].pool = 2
    tiles, _ = names["of_classes"]((x, np.array([0, 1])), np.arange(2))
    np.testing.assert_allclose(tiles, x.reshape(2, 2, 2, 2, 2, 1).mean(axis=(2, 4)), rtol=1e-5)
    assert set(labels) == set(range(5)) and len(labels) == len(names["x"])
    old, new = (n.get_weights() for n in (names["before"], names["build"](5, (28, 28, 1))))
    equal = [np.array_equal(a, b) for a, b in zip(old, new, strict=True)]
    assert all(equal[:-2]) and not equal[-2]  # the last layer's bias starts with zeros
    again = run_script("fine_tune", monkeypatch, *options, "--large-batch-size", "30")
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
