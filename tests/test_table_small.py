"""The recipes of `noisylb table small`, its table and its figure, from records made up here."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from keras_noisylb import matched_multiplier, noise_temperature
from keras_noisylb.experiments import folders, records
from keras_noisylb.experiments.figures import figure_temperature
from keras_noisylb.experiments.queue import plan
from keras_noisylb.experiments.queue.run import RUN, Run
from keras_noisylb.experiments.regimes import REGIMES, choose
from keras_noisylb.experiments.tables import small as small_table
from keras_noisylb.experiments.tables.text import to_csv
from noisylb.main import app
from noisylb.protocol.options import Options
from noisylb.protocol.recipe import WHOLE, Recipe
from noisylb.protocol.small import POINTS, RESNET8, SMALL, TRIALS, heated

LABELS = "rate0.4,rate0.4-lambda0.5-part0.5"


def metrics(accuracy, diverged=None):
    return {
        "diverged_epoch": diverged, "train_accuracy": 1.0, "test_accuracy": accuracy,
        "held_out_accuracy": accuracy - 0.01,
    }  # fmt: skip


def finished(folder, accuracies, labels=LABELS):
    """Write records: of LB 0.50, 0.52, ...; of the noises what `accuracies` says."""
    runs = plan.plan("small", WHOLE, folder, seeds=3, labels=labels)
    for run in runs:
        (seed,) = run.seeds
        accuracy = accuracies.get(run.recipe.regime, [None] * 3)[seed]
        if accuracy is None:
            continue
        write(run, metrics(accuracy, None if np.isfinite(accuracy) else 7))
    return runs


def write(run, values):
    """The record of a run with these metrics."""
    value = {
        "config": run.config, "versions": {"keras": "3"}, "seed": run.seeds[0], "device": "CPU",
        "metrics": values, "wall_seconds": 1.0, "history": {},
    }  # fmt: skip
    folders.open_folder(run.folder, run.config, ())
    records.write_json(run.folder / RUN, value)


def test_recipes_can_be_trained():
    assert len(SMALL) == sum(map(len, POINTS.values()))
    for recipe in SMALL.values():
        assert Recipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe
        options = recipe.options(0)
        ((regime, rate),) = choose(options).values()
        assert rate == recipe.learning_rate
        noise = regime.noise(options, rate)
        assert (noise is None) == (recipe.multiplier is None)
        epochs = recipe.noise_epochs or recipe.small_epochs or 0
        assert options.noise_fraction * options.epochs == pytest.approx(epochs)
        if noise is not None:
            assert noise.multiplier == recipe.multiplier


@pytest.mark.parametrize("row", ["cifar10-small-search", "cifar10-lenet-search"])
def test_a_search_that_is_stopped_is_the_same_effort_for_every_regime(row):
    recipes, trials = POINTS[row], []
    for start in range(0, len(recipes), 9):
        trials.append({(recipe.regime, recipe.conv) for recipe in recipes[start : start + 9]})
    assert all(trial == trials[0] for trial in trials)
    assert len(trials) == TRIALS == 5 and len(trials[0]) == 9
    assert "part1" not in "".join(r.label for r in recipes if r.regime == "batch-change")


def test_multipliers_of_a_search_are_matched():
    matched = matched_multiplier(512, 32, 0.4, RESNET8["small_learning_rate"])
    assert heated(RESNET8, 0.4, 1) == pytest.approx(matched, abs=0.005)
    assert heated(RESNET8, 3.2, 1) == 0 < heated(RESNET8, 3.2, 4)
    rows = {recipe.row for recipe in plan.cells("small", WHOLE)}
    assert rows == {"cifar10-small"}  # the others are longer, and are asked for


def test_matched_is_the_multiplier_at_the_rate_of_the_regime():
    recipe = SMALL["cifar10-small/lb-full-split/rate0.4-lambda0.5-part0.5"]
    options = recipe.options(0)
    for rate in (0.1, 0.4, 1.6):
        values = {**vars(options), "multiplier": "matched"}
        noise = REGIMES[recipe.regime].noise(type(options)(**values), rate)
        assert noise.multiplier == matched_multiplier(512, 32, rate, 0.1)


def test_matched_with_adamw_is_by_the_square_root():
    noisy = [r for r in POINTS["cifar10-lenet-adamw"] if r.multiplier is not None]
    for recipe in noisy:
        values = {**vars(recipe.options(0)), "multiplier": "matched"}
        noise = REGIMES[recipe.regime].noise(Options(**values), recipe.learning_rate)
        rates = recipe.learning_rate, recipe.small_learning_rate
        expected = matched_multiplier(2048, 32, *rates, scaling="square root")
        assert noise.multiplier == expected == pytest.approx(recipe.multiplier, abs=0.005)
    assert len(noisy) == 2


def test_temperatures_of_recipes():
    expected = {
        "cifar10-small/sb/rate0.1": noise_temperature(0.1, 32, momentum=0.9),
        "cifar10-small/lb/rate0.4": noise_temperature(0.4, 512, momentum=0.9),
        "cifar10-small/lb-full-split/rate0.4-lambda0.5-part0.5": noise_temperature(
            0.4, 512, small_batch_size=32, multiplier=0.5, momentum=0.9
        ),
    }
    for name, value in expected.items():
        assert small_table.temperature(SMALL[name]) == value


def test_the_gain_is_over_lb_with_the_same_warmup(tmp_path):
    names = ("lb/rate0.1", "lb-full-split/rate0.1-lambda0.25-part0.5", "lb/rate0.1-warmup0.25")
    runs = [Run(SMALL[f"cifar10-lenet-2048/{name}"], (0,), tmp_path) for name in names]
    found = [{"seed": 0, "metrics": metrics(accuracy)} for accuracy in (0.4, 0.5, 0.9)]
    noisy = small_table.summarize(runs, found)[1]
    assert noisy["gain"] == pytest.approx(10)


def test_the_gain_of_the_best_is_over_the_only_lb(tmp_path):
    def gains(*names):
        runs = [Run(SMALL[f"cifar10-lenet-2048/{name}"], (0,), tmp_path) for name in names]
        found = [{"seed": 0, "metrics": metrics(0.4 + 0.1 * k)} for k in range(len(runs))]
        return [line["gain"] for line in small_table.summarize(runs, found)]

    noisy = "lb-full-split/rate0.1-lambda0.25-part0.5"
    assert gains("lb/rate0.2", noisy) == [None, pytest.approx(10)]
    assert gains("lb/rate0.2", noisy, "lb/rate0.05") == [None] * 3


def test_clipped_recipes_say_their_norm(tmp_path):
    recipes = POINTS["cifar10-lenet-clipped"]
    for recipe in recipes:
        assert recipe.options(0).global_clipnorm == recipe.global_clipnorm
        assert f"clip{recipe.global_clipnorm:g}" in recipe.label
        (line,) = small_table.summarize([Run(recipe, (0,), tmp_path)], [None])
        header, (row,) = small_table.cells([line])
        assert row[header.index("clip")] == f"{recipe.global_clipnorm:g}"
    assert len({recipe.name for recipe in recipes}) == len(recipes)


def test_the_gain_is_over_lb_with_the_same_clipping(tmp_path):
    names = (
        "lb/rate0.2-clip1",
        "lb-full-split/rate0.2-lambda0.19-part0.5-clip1",
        "lb/rate0.2-clip0.3",
    )
    runs = [Run(SMALL[f"cifar10-lenet-clipped/{name}"], (0,), tmp_path) for name in names]
    found = [{"seed": 0, "metrics": metrics(accuracy)} for accuracy in (0.4, 0.5, 0.9)]
    assert small_table.summarize(runs, found)[1]["gain"] == pytest.approx(10)


def test_adamw_has_decoupled_decay_and_no_temperature(tmp_path):
    recipe = SMALL["cifar10-lenet-adamw/lb/rate0.002"]
    options = recipe.options(0)
    assert (options.optimizer, options.weight_decay, options.l2) == ("adamw", 0.05, 0.0)
    assert small_table.temperature(recipe) is None
    (line,) = small_table.summarize([Run(recipe, (0,), tmp_path)], [None])
    header, (row,) = small_table.cells([line])
    assert row[header.index("T, 10⁻³")] == "–"


def test_the_table_against_scipy(tmp_path):
    full = [0.55, 0.58, 0.57]
    runs = finished(tmp_path, {"lb": [0.50, 0.52, 0.54], "lb-full-split": full})
    found = [run.record(print) for run in runs]
    lines = {line["regime"]: line for line in small_table.summarize(runs, found)}
    line = lines["lb-full-split"]
    assert line["test"] == pytest.approx(100 * np.mean(full))
    assert line["test_std"] == pytest.approx(100 * np.std(full, ddof=1))
    assert line["held_out"] == pytest.approx(100 * np.mean(full) - 1)
    gains = np.array(full) - [0.50, 0.52, 0.54]
    assert line["gain"] == pytest.approx(100 * gains.mean())
    assert line["gain_se"] == pytest.approx(100 * stats.sem(gains))
    paired = stats.ttest_rel(full, [0.50, 0.52, 0.54], alternative="greater").pvalue
    welch = stats.ttest_ind(full, [0.50, 0.52, 0.54], equal_var=False, alternative="greater")
    assert line["paired_p"] == pytest.approx(paired)
    assert line["welch_p"] == pytest.approx(welch.pvalue)
    assert lines["lb"]["gain"] is None and lines["lb-diagonal-split"]["test"] is None
    rows = list(csv.DictReader(io.StringIO(to_csv(small_table.FIELDS, list(lines.values())))))
    assert [row["regime"] for row in rows] == list(lines)


def test_diverged_and_missing_seeds_are_left_out(tmp_path):
    runs = finished(tmp_path, {"lb": [0.5, 0.6, None], "lb-full-split": [0.7, np.nan, 0.9]})
    found = [run.record(print) for run in runs]
    lines = {line["regime"]: line for line in small_table.summarize(runs, found)}
    line = lines["lb-full-split"]
    assert (line["seeds"], line["diverged"], line["test"]) == (2, 1, pytest.approx(80))
    assert line["gain"] == pytest.approx(20) and line["paired_p"] is None
    _, rows = small_table.cells(list(lines.values()))
    assert any("2 (1 diverged)" in row for row in rows)


def test_the_figure_is_drawn_from_what_is_finished(tmp_path):
    def figure():
        arguments = ["figure", "temperature", "--tables", str(tmp_path), "--output"]
        return CliRunner().invoke(app, [*arguments, str(tmp_path / "picture")])

    result = figure()
    assert result.exit_code == 2 and "no run of cifar10-small or" in result.stderr
    assert not (tmp_path / "picture").exists()
    finished(tmp_path, {"lb": [0.5, 0.6, 0.7], "lb-full-split": [0.7, 0.8, None]})
    assert figure().exit_code == 0
    path = tmp_path / "picture" / "figure_temperature.json"

    def drawn():
        lines = json.loads(path.read_text())["numbers"]["lines"]
        return [(line["regime"], line["seeds"]) for line in lines]

    assert drawn() == [("lb", 3), ("lb-full-split", 2)]
    lines = json.loads(path.read_text())["numbers"]["lines"]
    for line, accuracies in zip(lines, ([50, 60, 70], [70, 80]), strict=True):
        assert figure_temperature.standard_error(line) == pytest.approx(stats.sem(accuracies))
        assert line["test_by_seed"] == pytest.approx(accuracies)
    assert path.with_suffix(".png").stat().st_size > 10_000
    shutil.rmtree(tmp_path / "small" / "cifar10-small" / "lb-rate0.4-seed0")
    assert figure().exit_code == 0 and drawn() == [("lb", 2), ("lb-full-split", 2)]


def test_of_the_clipped_recipes_the_figure_draws_one_norm_and_one_decay(tmp_path):
    for recipe in POINTS["cifar10-lenet-clipped"]:
        folder = tmp_path / "small" / recipe.row / f"{recipe.regime}-{recipe.label}"
        write(Run(recipe, (0,), folder), metrics(0.5))
    path = tmp_path / "picture" / "figure_temperature.json"
    arguments = ["figure", "temperature", "--tables", str(tmp_path), "--output", str(path.parent)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    lines = json.loads(path.read_text())["numbers"]["lines"]
    assert {(line["clipping"], line["weight_decay"]) for line in lines} == {(1.0, 2e-3)}
    regimes = [line["regime"] for line in lines]
    assert sorted(set(regimes)) == ["lb", "lb-diagonal-split", "lb-full-split", "sb"]
    assert all(regimes.count(regime) == 3 for regime in regimes)


def test_points_with_the_same_words_have_one_label():
    line = {"rate": 0.1, "warmup": 0.05, "multiplier": 0.25, "temperature": 0.002}
    parts = [{**line, "test_by_seed": [51.0]}, {**line, "test_by_seed": [52.0, 50.0]}]
    warmed = {**line, "warmup": 0.2, "multiplier": None, "test_by_seed": [10.0]}
    assert figure_temperature.labels([*parts, warmed], 0.05) == {
        ("η 0.1, λ 0.25", 2.0): [51.0, 52.0, 50.0],
        ("η 0.1, warm-up 0.2", 2.0): [10.0],
    }


def test_the_best_of_a_search_is_by_the_first_seed(tmp_path):
    """Held-out accuracies count, of the first seed: LB's at 0.8, and the noise's at 0.4."""
    row = ("--rows", "cifar10-small", "--regimes", "lb,lb-full-split", "--output", str(tmp_path))
    best = ["table", "small", *row, "--best", "--seeds", "2", "--dry-run"]
    runs = plan.plan("small", WHOLE, tmp_path, None, "lb,lb-full-split", seeds=2)
    held_out = {"rate0.8": 0.6, "rate0.4-lambda0.5-part0.5": 0.5, "rate0.4-lambda1-part0.5": 0.9}
    for run in runs:
        diverged = run.recipe.label == "rate0.4-lambda1-part0.5"
        first = metrics(0.9, 7 if diverged else None)
        first["held_out_accuracy"] = held_out.get(run.recipe.label, 0.4)
        write(run, first if run.seeds == (0,) else metrics(0.95 * (run.recipe.label == "rate0.4")))
    chosen = plan.best_of("small", runs, print)
    assert [(run.recipe.name.split("/", 1)[1], run.seeds) for run in chosen] == [
        ("lb-full-split/rate0.4-lambda0.5-part0.5", (0,)), ("lb/rate0.8", (0,)),
        ("lb-full-split/rate0.4-lambda0.5-part0.5", (1,)), ("lb/rate0.8", (1,)),
    ]  # fmt: skip
    result = CliRunner().invoke(app, best)
    assert result.exit_code == 0 and "4 runs" in result.output

    shutil.rmtree(runs[0].folder)
    result = CliRunner().invoke(app, best)
    assert result.exit_code == 2 and "1 of 9 with seed 0 are not finished" in result.stderr
    for run in runs[:9]:
        if run.recipe.regime == "lb":
            write(run, metrics(0.9, 7))
    result = CliRunner().invoke(app, best)
    assert result.exit_code == 2 and "all runs of LB in cifar10-small diverged" in result.stderr
    result = CliRunner().invoke(app, ["table", "2", "--best"])
    assert result.exit_code == 2 and "--best is an option of table small" in result.stderr


def test_labels_are_of_small_alone():
    result = CliRunner().invoke(app, ["table", "2", "--labels", "rate0.4"])
    assert result.exit_code == 2 and "--labels is an option of table small" in result.stderr
    result = CliRunner().invoke(app, ["table", "small", "--labels", "rate7"])
    assert result.exit_code == 2 and "--labels received 'rate7', expected" in result.stderr
