"""The time that a command names before it begins, and the question whether to begin."""

import dataclasses
import functools
import json
import types

import pytest
import typer
from test_compare import options, use_small_data
from test_table import REGIMES, ROW, small, small_row, table  # noqa: F401 -- a fixture
from typer.testing import CliRunner

from keras_noisylb import models
from keras_noisylb.experiments import compare, estimate, folders
from keras_noisylb.experiments.estimate import LENET, Size, Speed, in_parallel, training
from keras_noisylb.experiments.queue import execute, jobs, plan
from keras_noisylb.experiments.queue.run import Run
from keras_noisylb.experiments.regimes import REGIMES as ALL
from keras_noisylb.experiments.tune.search import Search
from noisylb import planning
from noisylb.main import app
from noisylb.protocol.options import Options
from noisylb.protocol.recipe import SCALES
from noisylb.protocol.small import SMALL
from noisylb.table_command import SCALES_HELP

SPEED = Speed(update=0.5, example=0.001, graph=2.0, start=5.0, device="an abacus")
LOOK = 10_000 * 0.001 / 3  # an evaluation by LeNet


def test_the_seconds_of_a_training():
    chosen = Options(epochs=4, noise_fraction=0.25, large_batch_size=1000, small_batch_size=100)

    def seconds(regime, size=LENET, chosen=chosen):
        return training(chosen, ALL[regime], size, 6500, SPEED)

    data = 4 * 6.5  # LeNet's multiplications
    graphs, epochs = seconds("lb")
    assert (graphs, epochs) == (2.0, pytest.approx(4 * 7 * 0.5 + data + 4 * LOOK))
    assert seconds("sb")[1] == pytest.approx(4 * 65 * 0.5 + data + 4 * LOOK)
    assert seconds("batch-change")[1] == pytest.approx((65 + 3 * 7) * 0.5 + data + 4 * LOOK)
    assert seconds("lb-diagonal")[1] == pytest.approx((14 + data) * 1.1 + 4 * LOOK)
    assert seconds("lb-diagonal")[0] > graphs < seconds("batch-change")[0]
    assert seconds("lb", Size(2 * LENET.millions, LENET.layers))[1] == pytest.approx(
        14 + 2 * data + 8 * LOOK
    )
    deep = seconds("lb", Size(LENET.millions, 3 * LENET.layers))
    assert deep == pytest.approx((6.0, 42 + data + 4 * LOOK))
    rarely = dataclasses.replace(chosen, validation_freq=3)
    assert seconds("lb", chosen=rarely)[1] == pytest.approx(14 + data + 2 * LOOK)


def test_runs_at_a_time_share_the_cores(monkeypatch):
    monkeypatch.setattr(estimate.os, "cpu_count", lambda: 4)
    assert in_parallel([3.0] * 8, 2) == 12.0
    assert in_parallel([3.0] * 8, 16) == 6.0
    assert in_parallel([9.0, 1.0], 2) == 9.0
    assert in_parallel([], 1) == 0.0


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp", (28, 28, 1)),
        ("vgg7", (32, 32, 3)),
        pytest.param("resnet44", (32, 32, 3), marks=pytest.mark.slow),
    ],
)
def test_the_table_of_networks(name, shape):
    network = models.get(name)(num_classes=10, input_shape=shape, ghost_batch_size=32)
    found = estimate.size_of(network, types.SimpleNamespace(shape=(1, *shape), dtype="float32"))
    assert found == (pytest.approx(estimate.SIZES[name].millions, rel=0.05), found.layers)
    assert found.layers == estimate.SIZES[name].layers
    whole = SMALL["cifar10-small/lb/rate0.4"]
    assert whole.pool == 2
    assert estimate.size_of_recipe(whole).millions == estimate.SIZES["resnet8"].millions / 4


def test_a_machine_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(
        models, "get", lambda name: functools.partial(models.MLP, hidden_units=(8,))
    )
    monkeypatch.setattr(estimate, "TIMED_STEPS", 1)
    jobs.measure()
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    speed = Speed(**answer["speed"])
    assert min(speed.example, speed.graph) > 0 <= speed.update and speed.device
    assert answer["took"] > speed.graph
    monkeypatch.setattr(execute, "ask", lambda job, jobs: json.dumps(answer | {"took": -100.0}))
    assert execute.measured_speed() == dataclasses.replace(speed, start=pytest.approx(100, abs=9))


def test_only_what_may_be_long_is_measured():
    def measured():
        return SPEED

    short, long = (lambda speed, s=s: s for s in (estimate.SURE - 1, estimate.SURE))
    assert estimate.speed_for(short, measured) == estimate.REFERENCE
    assert estimate.speed_for(long, measured) == SPEED


def test_what_is_done_costs_nothing(tmp_path, small_row):
    recipe = SCALES["tiny"].apply(small("lb"))
    run = Run.of(recipe, 0, tmp_path)
    graphs, epochs = run.training(SPEED)
    assert run.seconds_left(SPEED) == pytest.approx(5 + graphs + epochs)
    run.folder.mkdir(parents=True)
    (run.folder / "checkpoint-0003.keras").touch()
    assert run.seconds_left(SPEED) == pytest.approx(5 + graphs + epochs / 4)
    (run.folder / "run.json").touch()
    assert run.seconds_left(SPEED) == 0
    search = Search(recipe, (0, 1), tmp_path / "search", ("momentum",), 3)
    assert search.seconds_left(SPEED) == pytest.approx(5 + 6 * (graphs + epochs))


@pytest.fixture
def slow_machine(small_row, monkeypatch):
    """A start of a process takes an hour."""
    slow = dataclasses.replace(SPEED, start=3600.0)
    monkeypatch.setattr(execute, "measured_speed", lambda jobs: slow)
    monkeypatch.setattr(estimate, "SURE", 0)
    monkeypatch.setattr(execute, "check_data", lambda runs, settings: None)
    monkeypatch.setattr(execute, "train", lambda *arguments: "no luck")


def test_a_dry_run_writes_nothing(tmp_path, slow_machine):
    result = table(tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.output
    assert f"{ROW}/lb-diagonal, seed 0" in result.output and "0 of 4" in result.output
    assert "2 runs, about 2.0 h with --jobs 1 on an abacus.\nNothing was trained" in result.output
    assert result.output.endswith("Next: the same command without --dry-run.\n")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_the_small_table(tmp_path, slow_machine):
    arguments = ("--regimes", "lb-full-split", "--output", str(tmp_path / "out"), "--dry-run")
    result = CliRunner().invoke(app, ["table", "small", *arguments])
    assert result.exit_code == 0, result.output
    assert "Nothing was trained" in result.output and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["table", "tune"])
def test_a_long_command_needs_yes(tmp_path, slow_machine, command):
    def call(*arguments):
        common = ("--preset", "tiny", "--seeds", "1", "--output", str(tmp_path / "out"))
        return CliRunner().invoke(app, [command, "2", *common, *arguments])

    number = {"table": 2, "tune": 6}[command]
    result = call()
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert f"{number} runs with --jobs 1 on an abacus: about {number}.0 h." in result.stdout
    assert "about" in result.stderr and "Give --yes to begin." in result.stderr
    assert result.stderr.count("\n") == 1
    assert f"[{number}/{number}]" in call("--yes").output


def test_a_folder_of_another_run_is_refused_before_the_question(tmp_path, slow_machine):
    folders.open_folder(tmp_path / "tiny" / ROW / "lb-seed0", {"epochs": 1}, ())
    for arguments in ((), ("--dry-run",)):
        result = table(tmp_path, *arguments)
        assert result.exit_code == 2 and "holds a run of other options" in result.stderr
        assert "about" not in result.output.replace(result.stderr, "")


def test_a_question_in_a_terminal(monkeypatch, capsys):
    terminal = types.SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(planning, "sys", types.SimpleNamespace(stdin=terminal, stdout=terminal))
    asked, answer = [], True
    monkeypatch.setattr(typer, "confirm", lambda text: asked.append(text) or answer)
    planning.confirm("All", planning.LONG - 1, yes=False)
    planning.confirm("All", planning.LONG, yes=True)
    assert asked == []
    planning.confirm("All", planning.LONG, yes=False)
    assert asked == ["Begin?"]
    answer = False
    with pytest.raises(typer.Exit):
        planning.confirm("All", planning.LONG, yes=False)
    assert "All: about 30.0 min." in capsys.readouterr().out


def test_compare_estimates_what_is_left(tmp_path, monkeypatch):
    use_small_data(monkeypatch)
    asked = []

    def confirm(what, seconds):
        asked.append((what, seconds))
        raise typer.Exit(1)

    for seeds, names in (("1", "sb,lb"), ("3", "lb")):
        with pytest.raises(typer.Exit):
            compare.compare(options(tmp_path, seeds=seeds, regimes=names), confirm=confirm)
    assert not (tmp_path / "run").exists()
    assert [what.split(" on ")[0] for what, _ in asked] == ["2 runs", "3 runs"]
    (tmp_path / "run" / "lb-seed1").mkdir(parents=True)
    (tmp_path / "run" / "lb-seed1" / "record.json").touch()
    left = compare.expected(
        tmp_path / "run", options(tmp_path, seeds="2"), {"lb": (ALL["lb"], 1)}, LENET, 100
    )
    assert left[0] == 1
    monkeypatch.setattr(estimate, "REFERENCE", dataclasses.replace(SPEED, example=100.0))
    monkeypatch.setattr(estimate, "measure", lambda: dataclasses.replace(SPEED, example=100.0))
    arguments = ("--model", "mlp", "--normalization", "none", "--large-batch-size", "60")
    output = ("--output", str(tmp_path / "long"))
    result = CliRunner().invoke(app, ["compare", *arguments, *output])
    assert result.exit_code == 2 and "Give --yes to begin." in result.stderr
    assert not (tmp_path / "long").exists()


def test_the_times_in_the_help():
    days = []
    for scale in SCALES.values():
        runs = plan.plan("2", scale, "there")
        days.append(sum(run.seconds_left(estimate.REFERENCE) for run in runs) / 86_400)
    words = ", ".join(f"{number:.0f}" for number in days[:-1]) + f" or {days[-1]:.0f} days"
    assert list(SCALES) == ["probe", "short", "long", "sample", "paper"] and words in SCALES_HELP
