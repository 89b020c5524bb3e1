import dataclasses
import functools
import importlib
import itertools
import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

from keras_noisylb import data, gradients, models
from keras_noisylb.experiments import folders, records, splits
from keras_noisylb.experiments.figures import (
    figure1,
    figure2,
    figure3,
    figure4,
    figure5a,
    figure5b,
    training,
)
from keras_noisylb.experiments.figures import make as figures
from keras_noisylb.experiments.journal import Journal
from keras_noisylb.experiments.records import CompareError
from keras_noisylb.experiments.regimes import choose
from keras_noisylb.models import MLP
from keras_noisylb.quadratic import Quadratic, noise_factor
from noisylb.main import app
from noisylb.protocol.figures import FIGURES, PRESETS, FigureSetup
from noisylb.protocol.options import Options


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    """Blurred classes, so that nothing is learnt in one step and no run is ever perfect."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(150) % 10)
    images = rng.normal(size=(150, 6, 6, 1)) + np.eye(36)[3 * labels].reshape(-1, 6, 6, 1) * 5
    images = images.astype("float32")
    arrays = (images[:100], labels[:100]), (images[100:], labels[100:])
    monkeypatch.setattr(data, "load", lambda name, data_dir=None: arrays)
    monkeypatch.setattr(models, "get", lambda name: functools.partial(MLP, hidden_units=(8,)))


SIZE = {
    "runs": 200, "partly": 1, "draws": 3, "updates": 6, "every": 2, "rate": 0.02,
    "measured_epochs": (0, 2), "fisher_examples": 20, "hessian_examples": 20,
}  # fmt: skip


def tiny(output, **size):
    options = Options(
        model="mlp", normalization="none", epochs=2, large_batch_size=40, small_batch_size=10,
        learning_rate="0.01", multiplier=1.0, pool=2, seeds="1", output=str(output), quiet=True,
    )  # fmt: skip
    return FigureSetup(options, {**SIZE, **size})


def make(number, setup):
    return figures.make(number, setup, f"noisylb figure {number}", lambda line: None)


def test_noise_of_figure_1_is_that_of_its_population():
    x, y = figure1.examples(0, number=400_000)
    turn = np.array([[np.cos(np.pi / 6), -0.5], [0.5, np.cos(np.pi / 6)]])
    hessian = turn @ np.diag([1.0, 0.1]) @ turn.T
    for theta in ([1.0, 0.0], [0.3, 2.0], [-2.0, 1.0]):
        gradient, found = figure1.covariances(x, y, np.array(theta))
        slope = hessian @ theta
        # E[(xᵀθ)² x xᵀ] of a Gaussian x, and the targets' noise.
        fisher = 2 * np.outer(slope, slope) + (theta @ slope + 0.09) * hessian
        expected = {"full": fisher, "diagonal": np.diag(np.diag(fisher))}
        for name, covariance in expected.items():
            covariance = (1 / figure1.SMALL - 1 / len(x)) * covariance
            assert figure1.alignment(gradient, found[name])[0] == pytest.approx(
                figure1.alignment(slope, covariance)[0], abs=0.5
            )
            assert np.trace(found[name]) == pytest.approx(np.trace(covariance), rel=0.02)
        wrong = figure1.alignment(slope, np.linalg.inv(fisher))[0]
        assert abs(figure1.alignment(gradient, found["full"])[0] - wrong) > 10


def test_noise_of_figure_1_is_the_packages():
    x, y = figure1.examples(1, number=40)
    theta = np.array([0.5, -1.0])
    _, found = figure1.covariances(x, y, theta)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([theta[:, None]])

    def half_square(y_true, y_pred):
        return 0.5 * keras.ops.square(y_pred - y_true)[:, 0]

    x, y = x.astype("float32"), y.astype("float32")[:, None]
    (each,) = gradients.per_example_gradients(model, half_square, x, y)
    each = np.asarray(each)[..., 0]
    scale = 1 / figure1.SMALL - 1 / 40
    np.testing.assert_allclose(found["full"], scale * each.T @ each / 40, rtol=1e-4)
    np.testing.assert_allclose(
        np.diag(found["diagonal"]), scale * np.mean(np.square(each), axis=0), rtol=1e-4
    )


def test_sgd_of_figure_1_draws_batches_without_replacement():
    x, y = figure1.examples(2, number=7)
    gradient, found = figure1.covariances(x, y, np.ones(2), small=3)
    each = (x @ np.ones(2) - y)[:, None] * x
    means = [each[list(batch)].mean(axis=0) for batch in itertools.combinations(range(7), 3)]
    np.testing.assert_allclose(found["sgd"], np.cov(np.transpose(means), ddof=0))
    np.testing.assert_allclose(gradient, np.mean(means, axis=0))


def test_points_of_figure_1_lie_on_one_contour():
    x, y = figure1.examples(3)
    losses = [np.mean((x @ theta - y) ** 2) / 2 for theta in figure1.contour(x, y, 9)]
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(losses, np.mean((x @ best - y) ** 2) / 2 + figure1.EXCESS_LOSS)


def test_the_picture_of_figure_1_shows_the_angles_of_its_text():
    numbers = {"seeds": {seed: angles(seed) for seed in range(2)}}
    found = figure1.verdict(numbers)[0]["found"]
    titles = [panel.get_title() for panel in figure1.draw(numbers).axes]
    for name, title in (("normal", "full Fisher"), ("diagonal Fisher", "diagonal Fisher")):
        (degrees,) = re.findall(rf"{name}:? median (\d+)°", found)
        assert f"{title}: {degrees}° to the normal (median)" in titles


def angles(seed):
    """What figure 1 measures, far from what its examples give."""
    each = {"along_normal": [0.5] * 3, "trace": [1.0] * 3}
    return {
        name: {"angle": [place + seed, place + seed + 1, place], **each}
        for place, name in zip((20, 30, 50, 70), figure1.TITLES, strict=True)
    }


@pytest.mark.parametrize("structure", ["full", "diagonal"])
def test_runs_of_figure_4_have_the_exact_moments(structure):
    found = figure4.measure(structure, (4.0, 3.0), runs=4000, seed=0, steps=60)
    mean, error = (np.array(found[key]) for key in ("mean_loss", "mean_loss_standard_error"))
    assert np.max(np.abs(mean - found["expected_loss"])[1:] / error[1:]) < 5
    other = {"full": "diagonal", "diagonal": "full"}[structure]
    wrong = Quadratic(figure4.HESSIAN, noise_factor(figure4.HESSIAN, other))
    wrong = wrong.expected_losses((4.0, 3.0), 60, figure4.STEP_SIZE)
    assert np.max(np.abs(mean - wrong)[1:] / error[1:]) > 8


def test_first_update_below_a_loss():
    losses = np.array([[3.0, 3.0, 1.0], [2.0, 0.5, 2.0], [0.9, 2.0, 0.1], [2.0, 0.1, 0.1]])
    assert figure4.first_below(losses, 1.0).tolist() == [2, 1, 0]
    assert figure4.first_below(losses, 0.01).tolist() == [4, 4, 4]


def test_figure_4_says_for_which_starts_diagonal_is_sooner(tmp_path):
    numbers = make("4", tiny(tmp_path, runs=1500))["numbers"]
    full, diagonal, error = figure4.lead(numbers, "(3, -3)", 0.01)
    assert full - diagonal > 3 * error
    full, diagonal, error = figure4.lead(numbers, "(3, 3)", 0.03)
    assert diagonal - full > 3 * error


def test_stream_visits_every_example_once_per_pass():
    x, y = np.arange(10.0)[:, None, None, None], np.arange(10)
    stream = training.Stream(x, y, batch_size=4, every=2, seed=5, augment=False)
    visited = []
    for epoch in range(5):
        stream.start(epoch)
        assert len(stream) == 2
        for images, labels in stream.dataset().as_numpy_iterator():
            np.testing.assert_array_equal(images.ravel(), labels)
            visited += labels.tolist()
    passes = np.reshape(visited, (4, 10))
    assert np.array_equal(np.sort(passes), np.tile(y, (4, 1)))
    assert len({tuple(p) for p in passes}) == 4
    again = training.Stream(x, y, batch_size=4, every=2, seed=5, augment=False)
    again.start(3)
    _, (_, labels) = again.dataset().as_numpy_iterator()
    assert labels.tolist() == visited[28:32]


@pytest.mark.parametrize(("batch_size", "every"), [(10, 3), (40, 3)])
def test_epochs_of_equally_many_updates(small_data, batch_size, every):
    (x, y), (x_test, y_test) = data.load("any")
    whole = splits.Split(x, y, x_test, y_test, 10)
    view = training.EqualUpdates.of(whole, batch_size, every)
    assert len(view.x_train) == len(view.y_train) == batch_size * every
    assert len(view.batches(batch_size, 0, augment=False)) == every


def test_images_are_reduced_to_means(tmp_path):
    options = tiny(tmp_path).options
    whole = training.load(dataclasses.replace(options, pool=1))
    reduced = training.load(options)
    assert reduced.x_train.shape == (100, 3, 3, 1)
    np.testing.assert_allclose(reduced.x_test[0, 1, 2, 0], whole.x_test[0, 2:4, 4:].mean())
    assert whole.x_train.shape == (100, 6, 6, 1)


def trained_at_once(folder, build, regime, rate, options, seed, split, say, callbacks):
    epoch = {"accuracy": 0.5 + rate, "loss": 1.0, "test_accuracy": 0.5}
    return {"diverged_epoch": None}, {"epochs": [epoch] * options.epochs}


@pytest.mark.parametrize("number", ["1", "2", "3", "4", "5a", "5b"])
def test_every_figure_is_written_and_drawn_again(tmp_path, monkeypatch, number):
    if number == "3":  # trained in earnest below
        monkeypatch.setattr(training, "train_run", trained_at_once)
    monkeypatch.setattr(figure5b, "NAMES", ("lb", "lb-diagonal", "sb"))
    result = make(number, tiny(tmp_path))
    written = json.loads((tmp_path / f"figure{number}.json").read_text())
    assert written == json.loads(json.dumps(result))
    assert all(c["seen"] in {"yes", "partly", "no"} and c["found"] for c in written["claims"])
    assert written["options"]["seeds"] == [0] and written["command"] == f"noisylb figure {number}"
    png, svg = (tmp_path / f"figure{number}.{kind}" for kind in ("png", "svg"))
    assert png.read_bytes().startswith(b"\x89PNG") and "<svg" in svg.read_text()
    png.unlink()
    monkeypatch.setattr(f"keras_noisylb.experiments.figures.figure{number}.compute", None)
    again = figures.make(number, tiny(tmp_path), "another", lambda line: None)
    assert json.loads(json.dumps(again)) == written and png.exists()


def stop_at(monkeypatch, owner, name, call):
    """Let a function be interrupted at its `call`-th call."""
    original, calls = getattr(owner, name), itertools.count(1)

    def interrupted(*arguments, **options):
        if next(calls) == call:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize(
    ("number", "owner", "name"),
    [("2", figure2, "gradient_variance"), ("3", records, "write_text"),
     ("5a", records, "write_text"), ("5b", Journal, "on_epoch_begin")],
)  # fmt: skip
def test_interrupted_equals_uninterrupted(tmp_path, monkeypatch, number, owner, name):
    figure = importlib.import_module(f"keras_noisylb.experiments.figures.figure{number}")
    # Fewer regimes than the claims are about.
    names = ("lb", "lb-diagonal") if number == "2" else ("lb-diagonal",)
    monkeypatch.setattr(figure, "NAMES", names, raising=False)
    monkeypatch.setattr(figure, "verdict", lambda numbers: [])
    whole = make(number, tiny(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stop_at(patch, owner, name, call=2 if number in {"2", "5b"} else 4)
        with pytest.raises(KeyboardInterrupt):
            make(number, tiny(tmp_path / "parts"))
    assert not (tmp_path / "parts" / f"figure{number}.json").exists()
    parts = make(number, tiny(tmp_path / "parts"))
    assert parts["numbers"] == whole["numbers"]


def test_figure_5a_does_not_invent_norms_of_a_finished_training(tmp_path):
    make("5a", tiny(tmp_path))
    for name in ("figure5a.json", "norms-seed0.json"):
        (tmp_path / name).unlink()
    with pytest.raises(CompareError, match=r"lacks the norms of the epochs \[0, 2\]"):
        make("5a", tiny(tmp_path))


def test_figure_3_judges_the_order_of_the_regimes():
    def numbers(**errors):
        regimes = {
            name: [{"train_error": [errors.get(name, 20.0)] * 8, "seed": 0}]
            for name in figure3.NAMES
        }
        return {"regimes": regimes, "updates": 16, "every": 2}

    diagonal = {name: 6.0 for name in figure3.NAMES if "diagonal" in name}
    seen = [claim["seen"] for claim in figure3.verdict(numbers(lb=5.0, **diagonal))]
    assert seen == ["yes", "yes", "yes"]
    seen = [claim["seen"] for claim in figure3.verdict(numbers(lb=5.0))]
    assert seen == ["yes", "yes", "no"]
    diagonal["lb-diagonal"] = 19.0
    found = figure3.verdict(numbers(lb=5.0, **diagonal))
    assert [claim["seen"] for claim in found] == ["yes", "yes", "partly"]
    assert figure3.verdict(numbers(lb=20.0))[0]["seen"] == "no"


def test_other_options_are_refused(tmp_path):
    make("4", tiny(tmp_path))
    with pytest.raises(CompareError, match=r"runs \(there 200, now 300\)"):
        make("4", tiny(tmp_path, runs=300))
    with pytest.raises(CompareError, match=r"figure \(there '4', now '1'\)"):
        make("1", tiny(tmp_path))


@pytest.mark.parametrize("name", ["command", "versions"])
def test_numbers_without_their_origin_are_computed_again(tmp_path, name):
    written, said = make("4", tiny(tmp_path)), []
    path = tmp_path / "figure4.json"
    path.write_text(json.dumps({key: value for key, value in written.items() if key != name}))
    assert figures.make("4", tiny(tmp_path), written["command"], said.append) == written
    assert said[0].startswith(f"{path} cannot be read; it was renamed to figure4.json.aside")


def test_two_figures_in_one_folder_are_refused(tmp_path):
    with folders.alone(tmp_path), pytest.raises(CompareError, match="Another `noisylb` process"):
        make("4", tiny(tmp_path))


def test_numbers_of_unknown_options_are_refused(tmp_path):
    make("4", tiny(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(CompareError, match=r"config\.json is missing, .*figure4\.json are"):
        make("4", tiny(tmp_path, runs=300))


def test_presets_can_be_run():
    assert list(FIGURES) == ["1", "2", "3", "4", "5a", "5b", "temperature"]
    for name in FIGURES:
        sizes = getattr(figures.module_of(name), "SIZES", None)
        assert (sizes is None) == (name == "temperature")
        assert sizes is None or sizes.keys() == PRESETS.keys() == FIGURES[name].minutes.keys()
        assert FIGURES[name].minutes == getattr(figures.module_of(name), "MINUTES", {})
        json.dumps(sizes)
    for preset, options in PRESETS.items():
        size = figure3.SIZES[preset]
        assert size["updates"] % size["every"] == 0
        assert figure5a.SIZES[preset]["measured_epochs"][-1] == options.epochs
        for name in {*figure2.NAMES, *figure3.NAMES}:
            chosen = dataclasses.replace(options, regimes=name)
            ((regime, rate),) = choose(chosen).values()
            assert rate > 0 and (regime.noise(chosen) is None) == (name in {"sb", "lb"})


def test_help_loads_no_framework():
    code = """
import sys
from noisylb.main import main
sys.argv = ["noisylb", "figure", "--help"]
try:
    main()
finally:
    print(sorted({"keras", "tensorflow", "keras_noisylb"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--preset" in done.stdout
    assert done.stdout.strip().endswith("[]")


def invoke(*arguments):
    return CliRunner().invoke(app, ("figure", *map(str, arguments)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("6", "FIGURE received '6', expected one of 1, 2, 3, 4, 5a, 5b, temperature"),
        ("5", "FIGURE received '5'"),
        ("1 --preset qick", "expected one of quick, paper. Did you mean quick? Change --preset"),
        ("1 --seeds 0", "--seeds received '0'"),
    ],
)
def test_bad_options_are_refused_in_one_line(tmp_path, arguments, words):
    result = invoke(*arguments.split(), "--output", tmp_path / "run")
    assert result.exit_code == 2 and words in result.stderr
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("noisylb: error: ")
    assert not (tmp_path / "run").exists()


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    result = invoke("1", "--output", tmp_path / "file" / "run")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert str(tmp_path / "file") in result.stderr and "--output" in result.stderr


def test_data_that_cannot_be_had(tmp_path, monkeypatch):
    def absent(name, data_dir=None):
        raise FileNotFoundError(f"No prepared copy of {name} in {data_dir}. Pass data_dir.")

    monkeypatch.setattr(data, "load", absent)
    folder, nowhere = tmp_path / "run", tmp_path / "nowhere"
    arguments = ("3", "--preset", "paper", "--output", folder, "--data-dir", nowhere)
    result = invoke(*arguments)
    assert result.exit_code == 2 and "33.3 days is longer than 30.0 min" in result.stderr
    assert not folder.exists()
    result = invoke(*arguments, "--yes")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert f"No prepared copy of cifar10 in {nowhere}" in result.stderr


def test_command_says_what_is_seen(tmp_path):
    result = invoke("1", "--seeds", "4", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert "perpendicular to the contours. Seen: partly. Angle between" in result.output
    found, then = result.output.splitlines()[-2:]
    assert found == f"Results: {tmp_path}/figure1.png, .svg, .json"
    assert then == "Next: noisylb figure 2"
    written = json.loads((tmp_path / "figure1.json").read_text())
    assert written["command"] == "noisylb figure 1 --preset quick --seeds 4"
    assert list(written["numbers"]["seeds"]) == ["0", "1", "2", "3"]
