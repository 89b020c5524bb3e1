import dataclasses
import errno
import json
import os
import shutil
import sys

import keras
import keras_tuner
import numpy as np
import pytest
from test_table import ROW, small_row  # noqa: F401 -- a fixture
from typer.testing import CliRunner

from keras_noisylb import data
from keras_noisylb.experiments import splits
from keras_noisylb.experiments.problem import builder
from keras_noisylb.experiments.records import CompareError
from keras_noisylb.experiments.regimes import choose
from keras_noisylb.experiments.train import train_run
from keras_noisylb.experiments.tune import search
from noisylb.main import app
from noisylb.protocol.paper import RECIPES
from noisylb.protocol.recipe import SCALES


def tiny(regime):
    recipe = SCALES["tiny"].apply(RECIPES[f"{ROW}/{regime}"])
    return dataclasses.replace(recipe, validation_fraction=1 / 6)


def tune(output, *arguments):
    common = ("--preset", "tiny", "--output", str(output))
    return CliRunner().invoke(app, ["tune", "2", *common, *arguments])


@pytest.mark.slow
def test_a_search_from_the_command_line(tmp_path, small_row):
    wanted = ("--regimes", "lb", "--parts", "learning_rate,momentum", "--seeds", "2")
    first = tune(tmp_path, *wanted, "--trials", "1")
    assert first.exit_code == 0, first.output
    path = tmp_path / "tiny" / ROW / "lb-search" / search.RECORD
    record = json.loads(path.read_text())
    (best,) = record["trials"]
    assert best["score"] == pytest.approx(np.mean(list(best["seed_scores"].values())), rel=1e-5)
    assert record["config"]["validation_fraction"] == pytest.approx(1 / 6)
    shown = f"{100 * best['score']:.2f} ± {100 * best['std']:.2f}"
    rate, momentum = best["values"]["learning_rate"], best["values"]["momentum"]
    assert shown in first.output
    assert f"learning_rate {rate:.4g}, momentum {momentum:.4g}" in first.output
    assert not list(tmp_path.glob("**/checkpoint*"))

    again = tune(tmp_path, *wanted, "--trials", "1")
    assert "1 run, 1 of them finished before." in again.output and shown in again.output
    plan = tune(tmp_path, *wanted, "--trials", "3", "--dry-run")
    assert "1 of 3 trials" in plan.output
    other = tune(tmp_path, *wanted, "--trials", "3", "--parts", "momentum")
    assert other.exit_code == 2 and "holds a run of other options: parts" in other.stderr
    assert json.loads(path.read_text()) == record


def test_a_search_goes_on_with_more_trials(tmp_path, small_row):
    recipe = dataclasses.replace(tiny("lb"), epochs=1)

    def run(name, max_trials):
        return search.run(tmp_path / name, recipe, ("learning_rate",), (0,), max_trials, {})

    before, after = run("a", 1), run("a", 2)
    assert len(before) == 1 and len(after) == 2 and before[0] in after
    assert after == sorted(after, key=lambda trial: -trial.score)
    assert run("b", 2) == after
    # The score is of the held-out images, whose number the training images do not share.
    found = splits.load(recipe.options(0))
    for images, whole in ((found.x_test, True), (found.x_train, False)):
        right = before[0].score * len(images)
        assert (abs(right - round(right)) < 1e-3) == whole


def test_rates_that_diverge_do_not_end_a_search(tmp_path, small_row):
    recipe = dataclasses.replace(tiny("lb"), learning_rate=1e37, warmup_epochs=0, epochs=1)
    found = search.run(
        tmp_path / "a", recipe, ("learning_rate",), (0,), 4, {}
    )  # KerasTuner ends after 3
    assert [trial.status for trial in found] == ["FAILED"] * 4
    assert all("diverged" in trial.reason for trial in found)


@pytest.mark.slow
def test_a_full_disk_ends_a_search_and_is_no_result(tmp_path, small_row, monkeypatch):
    recipe = dataclasses.replace(tiny("lb"), epochs=1)

    def run(name):
        return search.run(tmp_path / name, recipe, ("learning_rate",), (0,), 2, {})

    def full(self, *arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "save_weights", full)
        with pytest.raises(OSError, match="No space left"):
            run("a")
    found = run("a")
    assert [trial.status for trial in found] == ["COMPLETED"] * 2
    whole = run("b")
    assert found == whole
    for name in ("oracle.json", "tuner0.json", "trial_1/trial.json"):
        folder, said = tmp_path / name.replace("/", "-"), []
        shutil.copytree(tmp_path / "a", folder)
        (folder / name).write_text("{")
        asked = search.Search(recipe, (0,), folder, ("learning_rate",), 2)
        assert asked.record(said.append) is None
        assert len(said) == 1
        assert said[0].startswith(f"{folder / name} cannot be read; it was renamed to")
        assert (folder / f"{name}.aside").read_text() == "{"
        assert not [path for kind in search.TUNER_FILES for path in folder.glob(kind)]
    assert run("trial_1-trial.json") == whole


@pytest.mark.parametrize("regime", ["sb", "lb", "lb-diagonal"])
def test_a_trial_is_the_training_of_the_table(regime, tmp_path, small_row):
    """All examples in one batch: the two ways to shuffle then give the same gradient and noise."""
    small = 240 if regime == "sb" else 20
    recipe = dataclasses.replace(
        RECIPES[f"mnist-mlp/{regime}"],
        dataset="fashion_mnist_small", validation_fraction=1 / 6, weight_decay=0.001,
        large_batch_size=241 if regime == "sb" else 240, small_batch_size=small,
        ghost_batch_size=240, learning_rate=0.01, epochs=8, warmup_epochs=2,
    )  # fmt: skip
    if regime == "lb-diagonal":
        recipe = dataclasses.replace(recipe, noise_epochs=4)
    options = recipe.options(3)
    whole = splits.load(options)
    split = dataclasses.replace(whole, x_train=whole.x_train[:240], y_train=whole.y_train[:240])
    kind, rate = choose(options)[regime]
    build = builder(options, 10, (28, 28, 1))
    _, history = train_run(tmp_path, build, kind, rate, options, 3, split, print)

    model, hp = search.hypermodel(recipe, (), (3,), {}), keras_tuner.HyperParameters()
    (trial,) = model.fit(
        hp,
        model.build(hp),
        split.x_train,
        split.y_train,
        epochs=recipe.epochs,
        validation_data=(split.x_test, split.y_test),
        validation_batch_size=1000,
        verbose=0,
    )
    losses = [epoch["test_loss"] for epoch in history["epochs"]]
    assert trial.history["val_loss"] == pytest.approx(losses, rel=1e-4)
    # At this rate rounding does not grow to that, and the noise changes the loss by ten times more.


def test_images_are_augmented_where_the_recipe_says_so(tmp_path, small_row, monkeypatch):
    asked, batches = [], data.batches

    def recorded(*arguments, **options):
        asked.append(options)
        return batches(*arguments, **options)

    monkeypatch.setattr(data, "batches", recorded)
    short = dataclasses.replace(tiny("lb"), epochs=1)
    for augment, expected in ((False, []), (True, [{"augment": True}])):
        changed = dataclasses.replace(short, augment=augment)
        search.run(tmp_path / str(augment), changed, ("momentum",), (0,), 1, {})
        assert asked == expected


def test_every_cell_has_the_parts_of_its_regime():
    def space(name, parts=search.PARTS):
        model, hp = search.hypermodel(RECIPES[name], parts, (0,), {}), keras_tuner.HyperParameters()
        built = model.build(hp)
        return {p.name: p for p in hp.space}, built

    found, built = space("cifar10-vgg16/lb-diagonal")
    recipe = RECIPES["cifar10-vgg16/lb-diagonal"]
    assert found["multiplier"].values == [1.0, 0.3, 0.1]
    assert found["small_batch_size"].values == [128, 32, 512]
    assert found["noise_fraction"].values == [0.25, 0.5, 1.0]
    rates = found["learning_rate"]
    assert rates.min_value == recipe.learning_rate / 4
    assert rates.max_value == recipe.learning_rate * 4
    assert built.optimizer.noise.conv == recipe.conv == "uncorrelated"
    assert found["large_batch_size"].value == 4096
    found, built = space("mnist-mlp/sb")
    assert found["large_batch_size"].value == 128
    assert "multiplier" not in found and isinstance(built.optimizer, keras.optimizers.SGD)
    found, _ = space("mnist-mlp/lb", ("momentum",))
    assert type(found["learning_rate"]).__name__ == "Fixed"
    assert found["learning_rate"].value == pytest.approx(RECIPES["mnist-mlp/lb"].learning_rate)
    assert found["momentum"].values == [0.9, 0.0]
    (name,) = [n for n, r in RECIPES.items() if n.startswith("cifar10-vgg16/") and r.sigma]
    assert search.choices(RECIPES[name])["sigma"][0] == RECIPES[name].sigma


def test_refusals(tmp_path, small_row):
    for arguments, message in (
        (("--trials", "0"), "--trials received 0, expected 1 or more"),
        (("--trials", "2", "--parts", "sigma"), "of which small-mlp/lb has none"),
        (("--trials", "2", "--parts", "epochs"), "--parts received 'epochs', expected one of"),
        (("--trials", "2", "--factors", "1"), "Give one of them"),
        (("--parts", "momentum"), "Give --trials 20, say"),
    ):
        result = tune(tmp_path / "out", *arguments)
        assert result.exit_code == 2 and message in result.stderr, result.output
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(CompareError, match="batch-change, whose batch size changes"):
        search.searches("3", SCALES["probe"], "there", None, "batch-change", 1, None, 5)


def test_a_search_of_which_nothing_can_be_scored_says_why(small_row):
    found = search.Search(RECIPES[f"{ROW}/lb"], (0,), None, ("momentum",), 1)
    trial = {"score": None, "std": None, "reason": "The training diverged.", "values": {}}
    assert found.outcome({"trials": [trial]}) == (
        "no trial could be scored: The training diverged."
    )
    trial = {**trial, "score": 0.5}
    assert found.outcome({"trials": [trial, trial]}) == "best 50.00 % of 2 trials"


def test_a_record_of_another_search_is_set_aside(tmp_path):
    found = search.Search(RECIPES["mnist-mlp/lb"], (0,), tmp_path, ("momentum",), 1)
    record = dict.fromkeys(search.KEYS) | {"config": found.config, "max_trials": 1, "trials": []}
    path = tmp_path / search.RECORD
    path.write_text(json.dumps(record))
    assert found.record(print) == record
    said, other = [], dataclasses.replace(found, parts=("learning_rate",))
    assert other.record(said.append) is None
    assert "parts (there ['momentum'], now ['learning_rate'])" in said[0]
    assert json.loads(path.with_name(f"{path.name}.aside").read_text()) == record


def test_keras_tuner_is_an_extra(tmp_path, small_row, monkeypatch):
    for name in [n for n in sys.modules if n.startswith("keras_noisylb.tuning")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "keras_tuner", None)  # as if it were not installed
    result = tune(tmp_path / "out", "--trials", "2")
    assert result.exit_code == 2 and "pip install -e '.[tuner]'" in result.stderr
    assert not (tmp_path / "out").exists()
