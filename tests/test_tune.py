import dataclasses
import json
import re

import pytest
from test_table import REGIMES, ROW, record, small_row  # noqa: F401 -- a fixture
from typer.testing import CliRunner

from keras_noisylb import data
from keras_noisylb.experiments import splits
from keras_noisylb.experiments.queue import execute, plan
from keras_noisylb.experiments.queue.run import RUN, examples
from keras_noisylb.experiments.records import CompareError
from keras_noisylb.experiments.tune import rates
from noisylb.main import app
from noisylb.protocol.recipe import SCALES

# Held-out accuracy by regime, rate and seed; `None` diverged.
FOUND = {
    "lb": {0.005: (0.5, 0.7), 0.01: (0.8, 0.6), 0.02: (0.9, None)},
    "lb-diagonal": {0.005: (0.4, 0.4), 0.01: (0.5, 0.5), 0.02: (0.6, 0.5)},
}


def run(output, *arguments):
    common = ("--preset", "tiny", "--output", str(output))
    return CliRunner().invoke(app, ["tune", "2", *common, *arguments])


@pytest.fixture
def trained(small_row, monkeypatch):
    """Runs whose accuracy is looked up, and the recipes that were asked for."""
    asked = []

    def train(run, settings, watch, stop, jobs):
        recipe = run.recipe
        asked.append(recipe)
        accuracy = FOUND[recipe.regime][recipe.learning_rate][run.seeds[0]]
        found = record(run, accuracy or 0.1, None if accuracy else 2)
        (run.folder / RUN).write_text(json.dumps(found))

    monkeypatch.setattr(execute, "train", train)
    monkeypatch.setattr(execute, "ask", lambda *arguments: "")
    return asked


def test_the_best_rate_by_the_mean_over_the_seeds(tmp_path, trained):
    result = run(tmp_path, "--seeds", "2")
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "tiny" / "tuned.json").read_text())
    assert written["rates"] == {f"{ROW}/lb": 0.01, f"{ROW}/lb-diagonal": 0.02}
    accuracies = dict(written["accuracies"][f"{ROW}/lb"])
    assert accuracies == {0.005: pytest.approx(0.6), 0.01: pytest.approx(0.7), 0.02: None}
    assert re.search(r"0\.005: 60\.00, 0\.01: 70\.00, 0\.02: diverged +0\.01 *\n", result.output)
    assert "0.02 (end)" in result.output and "widen --factors" in result.output
    assert len(trained) == 2 * 3 * 2
    path = tmp_path / "tiny" / "tuned.json"
    found, then = result.output.splitlines()[-2:]
    assert found == f"Results: {path}, and a folder of each run"
    assert then == f"Next: noisylb table 2 --preset tiny --rates {path}"

    again = run(tmp_path, "--seeds", "2")
    assert "12 runs, 12 of them finished before." in again.output and len(trained) == 12


def test_a_wider_grid_adds_to_what_was_found(tmp_path, trained):
    assert run(tmp_path, "--factors", "0.5,1", "--regimes", "lb").exit_code == 0
    result = run(tmp_path, "--factors", "2")
    assert result.exit_code == 0 and len(trained) == 4
    written = json.loads((tmp_path / "tiny" / "tuned.json").read_text())
    assert written["rates"] == {f"{ROW}/lb": 0.02, f"{ROW}/lb-diagonal": 0.02}
    assert [rate for rate, _ in written["accuracies"][f"{ROW}/lb"]] == [0.005, 0.01, 0.02]

    path = tmp_path / "tiny" / ROW / "lb-rate0.02-seed0" / RUN
    changed = json.loads(path.read_text())
    changed["config"]["momentum"] = 0.8
    path.write_text(json.dumps(changed))
    result = run(tmp_path, "--factors", "1", "--regimes", "lb")
    assert f"{path} is of a recipe that was changed or renamed since: left out." in result.output
    written = json.loads((tmp_path / "tiny" / "tuned.json").read_text())
    assert written["rates"] == {f"{ROW}/lb": 0.01, f"{ROW}/lb-diagonal": 0.02}


@pytest.mark.parametrize("change", [{"row": "old"}, {"regime": "old"}, {"old_field": 1}])
def test_records_of_renamed_recipes_are_left_out(tmp_path, trained, change):
    assert run(tmp_path, "--regimes", "lb").exit_code == 0
    path = tmp_path / "tiny" / ROW / "lb-rate0.02-seed0" / RUN
    renamed = tmp_path / "tiny" / "old" / "lb-rate0.02-seed0" / RUN
    old = json.loads(path.read_text())
    old["config"] |= change
    old["metrics"]["test_accuracy"] = 1.0
    renamed.parent.mkdir(parents=True)
    renamed.write_text(json.dumps(old))
    result = run(tmp_path, "--regimes", "lb")
    assert result.exit_code == 0, result.output
    assert f"{renamed} is of a recipe that was changed or renamed since: left out." in result.output
    assert json.loads((tmp_path / "tiny" / "tuned.json").read_text())["rates"] == {
        f"{ROW}/lb": 0.02
    }


def test_the_table_takes_the_rates(tmp_path, trained):
    assert run(tmp_path / "tuning").exit_code == 0
    path = tmp_path / "tuning" / "tiny" / "tuned.json"
    written = json.loads(path.read_text())
    del written["rates"][f"{ROW}/lb-diagonal"]
    path.write_text(json.dumps(written))
    trained.clear()
    common = ("--preset", "tiny", "--seeds", "1", "--output", str(tmp_path / "table"))
    result = CliRunner().invoke(app, ["table", "2", *common, "--rates", str(path)])
    assert result.exit_code == 0, result.output
    assert [(r.regime, r.learning_rate) for r in trained] == [("lb", 0.02), ("lb-diagonal", 0.01)]
    assert [r.validation_fraction for r in trained] == [None, None]
    assert f"has no rate of {ROW}/lb-diagonal: the recipe's is taken." in result.output
    found, then = result.output.splitlines()[-2:]
    assert found.startswith(f"Results: {tmp_path / 'table' / 'tiny' / 'table2.md'}, table2.csv")
    assert then == f"Next: the same command with more --seeds adds runs to {tmp_path / 'table'}."
    assert "as given by --rates" in (tmp_path / "table" / "tiny" / "table2.md").read_text()


def test_the_table_takes_the_rates_at_any_multiplier(tmp_path):
    found = {"mnist-mlp/sb": 0.2, "mnist-mlp/lb-diagonal": 0.3}
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({"rates": found}))
    where = ("--output", str(tmp_path / "table"), "--rates", str(path), "--dry-run")
    cell = ("--rows", "mnist-mlp", "--regimes", "lb-diagonal", "--multiplier", "matched")
    result = CliRunner().invoke(app, ["table", "2", "--preset", "short", *cell, *where])
    assert result.exit_code == 0, result.output
    assert "mnist-mlp/lb-diagonal/lambdamatched" in result.output
    assert "has no rate" not in result.output
    cell = {"rows": "mnist-mlp", "regimes": "lb-diagonal", "multiplier": "matched"}
    (planned,) = plan.plan("2", SCALES["short"], "there", seeds=1, rates=found, **cell)
    assert (planned.recipe.learning_rate, planned.recipe.small_learning_rate) == (0.3, 0.2)


def test_nothing_of_the_test_set_is_looked_at(small_row):
    (tried, *_) = rates.grid("2", SCALES["tiny"], "there")
    whole = dataclasses.replace(tried.recipe, train_size=None)
    found = splits.load(whole.options(0))
    (x_train, _), (x_test, _) = data.load("fashion_mnist_small")

    def images(x):
        return {image.tobytes() for image in x}

    held_out, kept = images(found.x_test), images(found.x_train)
    assert held_out <= images(x_train) and not held_out & images(x_test)
    assert len(held_out & kept) <= len(x_train) - len(
        images(x_train)
    )  # images that are there twice
    # Each class is rounded by itself; the plan's number is for its estimate of time.
    assert abs(len(found.x_test) - len(x_train) / 6) <= 10
    assert abs(examples(whole) - len(found.x_train)) <= 10


def test_the_small_batches_of_batch_change_have_the_rate_of_sb():
    rates = {"cifar10-vgg16/sb": 0.07, "cifar10-vgg16/batch-change": 0.9}
    (run,) = plan.plan(
        "3",
        SCALES["short"],
        "",
        rows="cifar10-vgg16",
        regimes="batch-change",
        seeds=1,
        rates=rates,
    )
    assert (run.recipe.small_learning_rate, run.recipe.learning_rate) == (0.07, 0.9)


def test_refusals(tmp_path, small_row):
    for factors in ("no", "0", "-1,1", "", "inf"):
        result = run(tmp_path / "out", "--factors", factors)
        assert result.exit_code == 2 and "--factors received" in result.stderr, factors
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    result = CliRunner().invoke(app, ["tune", "small"])
    assert result.exit_code == 2 and "TABLE received 'small', expected one of 2, 3" in result.stderr
    path = tmp_path / "rates.json"
    for place, why in ((path, "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(CompareError, match=f"--rates received {place}, which cannot be.*{why}"):
            rates.read(place)
    for text in ("", "{}", '{"rates": 1}', '{"rates": {"mnist-mlp/lb": -1}}', "[]"):
        path.write_text(text)
        with pytest.raises(CompareError, match="--rates received"):
            rates.read(path)
    path.write_text('{"rates": {"mnist-mlp/lb": 0.4}}')
    assert rates.read(path) == {"mnist-mlp/lb": 0.4}


def test_every_cell_every_rate_every_seed(small_row):
    runs = rates.grid("2", SCALES["tiny"], "there", seeds=2, factors=(2.0, 1.0, 2.0))
    found = [(r.recipe.regime, r.recipe.learning_rate, *r.seeds) for r in runs]
    expected = [(regime, rate, s) for regime in REGIMES for rate in (0.01, 0.02) for s in (0, 1)]
    assert found == expected
    assert len({run.folder for run in runs}) == len(runs)
    assert runs[0].title == f"{ROW}/lb, rate 0.01, seed 0"
    lost = rates.Tuned("a/b", {0.1: None, 0.2: None})
    assert lost.learning_rate is None and not lost.at_an_end
