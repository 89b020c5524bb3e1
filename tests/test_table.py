import contextlib
import csv
import dataclasses
import functools
import io
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.console import Console
from scipy import special
from typer.testing import CliRunner

from keras_noisylb import matched_multiplier, models
from keras_noisylb.experiments import folders, records
from keras_noisylb.experiments.queue import execute, plan, process
from keras_noisylb.experiments.queue.run import KEYS, RUN, Run
from keras_noisylb.experiments.records import CompareError
from keras_noisylb.experiments.regimes import choose
from keras_noisylb.experiments.tables import paper as paper_table
from keras_noisylb.experiments.tables.text import markdown, to_csv
from noisylb.main import app
from noisylb.protocol import paper
from noisylb.protocol.recipe import SCALES, WHOLE, Scale

ROW, EPOCHS = "small-mlp", 4
REGIMES = ("lb", "lb-diagonal")


def small(regime):
    return dataclasses.replace(
        paper.RECIPES[f"mnist-mlp/{regime}"],
        row=ROW, dataset="fashion_mnist_small", large_batch_size=256, small_batch_size=32,
        ghost_batch_size=32, learning_rate=0.01,
    )  # fmt: skip


def add_small(setitem=dict.__setitem__):
    """A row that trains in seconds; the processes of the queue know no row by its name."""
    setitem(paper.TABLES, "2", ((ROW,), REGIMES))
    for regime in REGIMES:
        setitem(paper.RECIPES, f"{ROW}/{regime}", small(regime))
    setitem(SCALES, "tiny", Scale("tiny", epochs=EPOCHS / 200, train_size=512))


def trust_the_data():
    """Skip the process that looks for the data sets; another test runs it."""
    execute.ask = lambda *arguments: ""


@pytest.fixture
def small_row(monkeypatch):
    """The row, and for what is trained in this process a network of one hidden layer."""
    add_small(monkeypatch.setitem)
    small_mlp = functools.partial(models.MLP, hidden_units=(16,))
    monkeypatch.setattr(models, "get", lambda name: small_mlp)
    monkeypatch.setenv("COLUMNS", "200")


def table(output, *arguments):
    common = ("--preset", "tiny", "--seeds", "1", "--output", str(output))
    return CliRunner().invoke(app, ["table", "2", *common, *arguments])


def wait(condition):
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def running(process):
    with contextlib.suppress(OSError):
        return (
            pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    return False


@pytest.mark.slow
def test_a_killed_queue_repeats_nothing(tmp_path, small_row, monkeypatch):
    """kill -9 of the command within the second run; then a record that was damaged since."""
    code = "import test_table; from noisylb.main import main; test_table.add_small(); "
    code += "test_table.trust_the_data(); main()"
    common = ("--preset", "tiny", "--seeds", "1", "--output", str(tmp_path))
    folder = tmp_path / "tiny" / ROW
    first, second = (folder / f"{regime}-seed0" for regime in REGIMES)
    with subprocess.Popen(
        [sys.executable, "-c", code, "table", "2", *common],
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent)},
        stdout=subprocess.PIPE,
    ) as command:
        wait(lambda: command.poll() is not None or list(second.glob("checkpoint*")))
        children = pathlib.Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text()
        command.kill()
    assert command.returncode == -9
    wait(lambda: not any(running(child) for child in children.split()))
    before = (first / "run.json").read_bytes()
    assert not (second / "run.json").exists()
    done = Run(small("lb-diagonal"), (0,), second).done()
    assert 1 <= done < EPOCHS

    monkeypatch.setattr(execute, "ask", lambda *arguments: "")
    result = table(tmp_path)
    assert result.exit_code == 0, result.output
    assert "2 runs, 1 of them finished before." in result.output
    assert f"[1/1] {ROW}/lb-diagonal, seed 0: " in result.output
    assert f"Continues after epoch {done}." in (second / "log.txt").read_text()
    assert (first / "run.json").read_bytes() == before
    for run in (first, second):
        files = {path.name for path in run.iterdir()}
        assert files == {"config.json", "run.json", "model.keras", "log.txt"}
    record = json.loads((second / "run.json").read_text())
    assert set(record) == {*KEYS, "num_microbatches"}
    assert record["config"]["learning_rate"] == 0.01 and record["seed"] == 0
    assert not {"batch_loss", "step_seconds"} & record["history"].keys()
    assert len(record["history"]["epochs"]) == EPOCHS and record["history"]["noise_steps"] == 2
    assert record["versions"]["keras"] and record["device"]
    assert record["wall_seconds"] > record["metrics"]["seconds"]
    percent = 100 * record["metrics"]["test_accuracy"]
    assert f"{percent:.2f}" in result.output
    assert f"| {percent:.2f} | 1 |" in (tmp_path / "tiny" / "table2.md").read_text()

    damaged = (second / "run.json").read_bytes()[:1000]
    (second / "run.json").write_bytes(damaged)
    said = []
    runs = plan.plan("2", SCALES["tiny"], tmp_path, seeds=1)
    assert [run.folder for run in execute.prepare(runs, said.append)] == [second]
    assert said[0] == (
        f"{second / 'run.json'} cannot be read; it was renamed to run.json.aside and its run "
        "starts again."
    )
    assert (second / "run.json.aside").read_bytes() == damaged
    assert (first / "run.json").read_bytes() == before


def test_a_record_of_another_run_is_set_aside(tmp_path, small_row):
    """One that was copied into the folder of this one, say: it can be read."""
    run = Run.of(SCALES["tiny"].apply(small("lb")), 0, tmp_path)
    run.folder.mkdir(parents=True)
    other = record(run, 0.5)
    (run.folder / RUN).write_text(json.dumps(other))
    said = []
    assert run.record(said.append) == other and said == []
    other["config"]["momentum"] = 0.8
    (run.folder / RUN).write_text(json.dumps(other))
    assert run.record(said.append) is None
    path = run.folder / RUN
    assert said == [
        f"{path} is of a run with other options: momentum (there 0.8, now 0.9); it was renamed to "
        "run.json.aside and its run starts again."
    ]
    assert json.loads(path.with_name("run.json.aside").read_text()) == other
    assert [path.name for path in run.folder.iterdir()] == ["run.json.aside"]


@pytest.mark.parametrize("accuracy", ["1.5", '"high"', "NaN", "true", "-0.1"])
def test_a_record_of_an_impossible_result_is_set_aside(tmp_path, small_row, accuracy):
    run = Run.of(SCALES["tiny"].apply(small("lb")), 0, tmp_path)
    run.folder.mkdir(parents=True)
    text = json.dumps(record(run, 0.25)).replace("0.25", accuracy)
    (run.folder / RUN).write_text(text)
    said = []
    assert run.record(said.append) is None
    assert said[0].startswith(f"{run.folder / RUN} cannot be read; it was renamed to")
    assert (run.folder / f"{RUN}.aside").read_text() == text


def test_missing_data_is_said_before_anything_is_written(tmp_path, small_row):
    result = table(tmp_path / "out", "--data-dir", str(tmp_path / "nothing"))
    assert result.exit_code == 2
    assert "No prepared copy of fashion_mnist_small in" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--num-microbatches", "9"),
            "--num-microbatches received 9, expected at most 8: small-mlp",
        ),
        (("--num-microbatches", "0"), "--num-microbatches received 0, expected a number that is 1"),
        (("--jobs", "0"), "--jobs received 0, expected 1 or more"),
        (("--regimes", "lb-diagnal"), "Did you mean lb-diagonal? Change --regimes."),
    ],
)
def test_what_no_run_could_use_is_refused_at_once(tmp_path, small_row, arguments, words):
    for more in ((), ("--dry-run",)):
        result = table(tmp_path / "out", *arguments, *more)
        assert result.exit_code == 2 and words in result.stderr
        assert result.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_folder_of_other_recipes_is_refused(tmp_path, small_row, monkeypatch):
    monkeypatch.setattr(execute, "ask", lambda *arguments: "")
    runs = plan.plan("2", SCALES["tiny"], tmp_path, seeds=1)
    assert execute.prepare(runs, print) == runs
    changed = dataclasses.replace(small("lb"), learning_rate=0.02)
    monkeypatch.setitem(paper.RECIPES, f"{ROW}/lb", changed)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CompareError, match=r"learning_rate \(there 0.01, now 0.02\)"):
        execute.prepare(plan.plan("2", SCALES["tiny"], tmp_path, seeds=1), print)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_two_queues_in_one_folder_are_refused(tmp_path, small_row, monkeypatch):
    monkeypatch.setattr(execute, "ask", lambda *arguments: "")
    monkeypatch.setattr(execute, "train", lambda *arguments: "not reached")
    with folders.alone(tmp_path / "tiny"):
        result = table(tmp_path)
    assert result.exit_code == 2 and "Another `noisylb` process works in" in result.stderr
    assert [path.name for path in (tmp_path / "tiny").iterdir() if path.is_dir()] == []
    assert "not reached" in table(tmp_path).output  # the lock has ended with the block


def test_a_run_that_fails_does_not_stop_the_rest(tmp_path, small_row, monkeypatch):
    def train(run, settings, watch, stop, jobs):
        watch(1)
        if run.recipe.regime == "lb":
            return "no luck"
        (run.folder / RUN).write_text(json.dumps(record(run, 0.5)))

    monkeypatch.setattr(execute, "train", train)
    monkeypatch.setattr(execute, "ask", lambda *arguments: "")
    result = table(tmp_path)
    assert result.exit_code == 2
    assert f"[1/2] {ROW}/lb, seed 0: failed: no luck" in result.output
    assert f"[2/2] {ROW}/lb-diagonal, seed 0: 50.00 %" in result.output
    assert "1 failed: small-mlp/lb, seed 0" in result.stderr and "tries them again" in result.stderr
    lines = list(csv.DictReader((tmp_path / "tiny" / "table2.csv").open()))
    assert [line["mean"] for line in lines] == ["", "50.0"]


def test_why_a_process_ended():
    assert process.reason(-9, io.BytesIO(), "Buy some.").endswith("memory runs out. Buy some.")

    def advice(regime, *arguments):
        return execute.memory_advice(paper.RECIPES[f"mnist-mlp/{regime}"], *arguments)

    assert advice("sb", None, 1) == "If so, use a machine with more memory."
    assert advice("sb", 8, 2) == "If so, lower --jobs or use a machine with more memory."
    assert advice("lb", None, 1).startswith("If so, give --num-microbatches 8 or")
    assert advice("lb", 8, 1).startswith("If so, give --num-microbatches 16 or")
    assert (
        process.reason(1, io.BytesIO(b"Traceback\n  line\nValueError: bad\n\n"))
        == "ValueError: bad"
    )
    assert process.reason(3, io.BytesIO()) == "its process ended with code 3."


def test_the_plan():
    runs = plan.plan("3", SCALES["paper"], "there", rows="cifar10-vgg16", regimes="lb,sb", seeds=2)
    assert [run.title for run in runs] == [
        f"cifar10-vgg16/{regime}, seed {seed}" for seed in (0, 1) for regime in ("sb", "lb")
    ]
    assert runs[1].folder == pathlib.Path("there/paper/cifar10-vgg16/lb-seed0")
    assert len(plan.plan("2", SCALES["sample"], "there")) == 9 * 6 * 3
    assert len(plan.plan("3", SCALES["sample"], "there", seeds=1)) == 4 * 9
    listed = plan.plan("2", SCALES["paper"], "", rows="mnist-mlp", regimes="sb", seeds="0,4")
    assert [run.seeds for run in listed] == [(0,), (4,)]
    for arguments, words in (
        ({"table": "4"}, "TABLE received '4', expected one of 2, 3, small"),
        ({"rows": "cifar10-vg16"}, "cifar100-resnet44x2. Did you mean cifar10-vgg16"),
        ({"regimes": ""}, "--regimes received ''"),
        ({"seeds": 0}, "--seeds received '0'"),
        ({"seeds": 10**13}, "--seeds received '10000000000000', expected at most 1000 seeds"),
    ):
        with pytest.raises(CompareError, match=words.split("'")[0]) as error:
            plan.plan(**{"table": "3", "scale": SCALES["sample"], "output": "", **arguments})
        assert words in str(error.value)


def test_a_history_keeps_six_digits():
    value = {"loss": [1 / 3, 12345678.9, 0.1, float("inf")], "epoch": 1234567, "name": "a"}
    kept = {"loss": [0.333333, 12345700.0, 0.1, float("inf")], "epoch": 1234567, "name": "a"}
    assert records.rounded(value) == kept


def test_welch_by_hand():
    first, second = [93.1, 92.7, 93.4], [91.9, 92.5, 91.2, 91.6]
    parts = [np.var(x, ddof=1) / len(x) for x in (first, second)]
    t = (np.mean(first) - np.mean(second)) / sum(parts) ** 0.5
    df = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 3)
    p = special.betainc(df / 2, 0.5, df / (df + t**2)) / 2
    assert paper_table.welch(first, second) == pytest.approx((t, df, p))
    assert paper_table.welch(second, first) == pytest.approx((-t, df, 1 - p))
    assert paper_table.welch([1.0], second) is None
    assert paper_table.welch([1.0, 1.0], [0.0, 0.0]) is None


def test_another_multiplier_has_runs_of_its_own():
    rates = {"mnist-mlp/sb": 0.1, "mnist-mlp/lb-diagonal": 0.2828}
    of = {"table": "2", "scale": SCALES["short"], "output": "", "seeds": 1, "rates": rates}
    of |= {"rows": "mnist-mlp", "regimes": "lb,lb-diagonal"}
    paper, hot = (plan.plan(**of, multiplier=given) for given in (None, "matched"))
    assert paper[0] == hot[0] and paper[1].folder != hot[1].folder  # LB is the same run
    noisy = hot[1].recipe
    options = noisy.options(0)
    ((regime, rate),) = choose(options).values()
    assert rate == 0.2828
    assert regime.noise(options, rate).multiplier == matched_multiplier(4096, 128, rate, 0.1)
    assert plan.plan(**of, multiplier=0.5)[1].recipe.label == "lambda0.5"
    assert "λ: matched." in paper_table.caption("2", SCALES["short"], True, "matched")
    with pytest.raises(CompareError, match=r"--multiplier .* --labels"):
        plan.plan("small", WHOLE, "", multiplier=0.5)


def record(run, test_accuracy, diverged=None):
    metrics = {"test_accuracy": test_accuracy, "diverged_epoch": diverged}
    rest = {"versions": {}, "seed": 0, "device": "", "wall_seconds": 1.0, "history": {}}
    return {"config": run.config, "metrics": metrics, **rest}


def test_markdown_and_csv():
    runs = plan.plan(
        "2",
        SCALES["paper"],
        "",
        rows="cifar10-resnet44",
        regimes="lb,lb-trace,lb-diagonal,lb-full-split",
    )
    found = {
        "lb": (0.919, 0.920, 0.918),
        "lb-trace": (0.92, None, 0.92),
        "lb-diagonal": (0.928, 0.930, 0.929),
    }
    taken = [
        record(run, accuracies[run.seeds[0]], None if accuracies[run.seeds[0]] else 7)
        if (accuracies := found.get(run.recipe.regime))
        else None
        for run in runs
    ]
    lines = paper_table.summarize(runs, taken)
    words = paper_table.caption("2", SCALES["paper"], tuned=False)
    text = markdown(*paper_table.cells(lines), words)
    row = "| cifar10-resnet44 |"
    _, _, p = paper_table.welch([92.8, 93.0, 92.9], [91.9, 92.0, 91.8])
    assert text.splitlines()[2:6] == [
        f"{row} LB | 3.2 | 91.90 ± 0.10 | 3 | 91.93 | -0.03 |  |",
        f"{row} LB + trace (A.5) | 1.6 | 92.00 ± 0.00 (1 diverged) | 2 | 92.33 | -0.33 |  |",
        f"{row} LB + diagonal (A.5) | 1.6 | 92.90 ± 0.10 | 3 | 92.88 | +0.02 | yes, p = {p:.2g} |",
        f"{row} LB + full (split) | 1.6 | – | 0 | 93.22 | – |  |",
    ]
    assert text.endswith(f"\n\n{words}\n") and "Welch" in words and "at the paper's size" in words
    assert "preset sample: 0.1 of the epochs and 10000" in paper_table.caption(
        "2", SCALES["sample"], tuned=True
    )
    by_regime = {
        line["regime"]: line
        for line in csv.DictReader(io.StringIO(to_csv(paper_table.FIELDS, lines)))
    }
    diagonal = by_regime["lb-diagonal"]
    assert float(diagonal["mean"]) == pytest.approx(92.9)
    assert float(diagonal["std"]) == pytest.approx(0.1)
    assert float(diagonal["welch_t"]) == pytest.approx(1.0 / (2 * 0.01 / 3) ** 0.5)
    assert float(diagonal["welch_df"]) == pytest.approx(4)
    assert diagonal["beats_lb"] == "True" and by_regime["lb"]["beats_lb"] == ""
    assert by_regime["lb-trace"]["diverged"] == "1"
    one = paper_table.summarize(runs[:4], taken[:4])  # one seed
    assert paper_table.cells(one)[1][2][2:] == ("1.6", "92.80", "1", "92.88", "-0.08", "–")


def test_the_progress_is_shown_on_a_terminal(tmp_path, small_row, monkeypatch):
    def train(run, settings, watch, stop, jobs):
        watch(4)
        return "no luck"

    monkeypatch.setattr(execute, "train", train)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    runs = plan.plan("2", SCALES["tiny"], tmp_path, seeds=1)
    assert execute.work(runs, {}, console) == runs
    assert "left" in screen.getvalue() and "[2/2]" in screen.getvalue()


def test_the_commands_load_no_framework():
    code = (
        "import sys, noisylb.table_command; "
        "print({'keras', 'tensorflow', 'keras_noisylb'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
