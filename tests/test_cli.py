import json
import subprocess
import sys
import types
from importlib import metadata

import pytest
from typer.testing import CliRunner

from keras_noisylb import DiagonalFisher, report
from keras_noisylb.experiments import progress
from keras_noisylb.experiments.regimes import REGIMES
from keras_noisylb.models import MLP
from noisylb.main import app

SMALL = [
    *("--model", "mlp", "--normalization", "none", "--train-size", "400"),
    *("--large-batch-size", "100", "--learning-rate", "0.01", "--seeds", "1", "--regimes", "lb"),
]


def invoke(*arguments):
    return CliRunner().invoke(app, arguments)


def test_help_loads_no_framework():
    code = """
import sys
from noisylb.main import main
try:
    main()
finally:
    print(sorted({"keras", "tensorflow", "keras_noisylb"} & set(sys.modules)))
"""
    for command in ([], ["compare"], ["report"], ["train"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True
        )
        assert done.returncode == 0
        assert done.stdout.strip().endswith("[]")
    assert "--noise-fraction" in done.stdout


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of Keras with NumPy
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--small-batch-size 2000", "--large-batch-size received 1000, expected more than"),
        ("--epochs 0", "--epochs received 0, expected a number that is 1 or more"),
        ("--momentum 1", "--momentum received 1.0"),
        ("--learning-rate fast", "--learning-rate received 'fast'"),
        ("--learning-rate sb=-1", "--learning-rate received 'sb=-1'"),
        ("--learning-rate big=1", "--learning-rate received 'big', expected one of sb"),
        ("--noise-fraction nan", "--noise-fraction received nan"),
        ("--seeds 0", "--seeds received '0'"),
        ("--seeds 9999999999999", "--seeds received '9999999999999', expected at most 1000 seeds"),
        ("--seeds 1,1", "--seeds received '1,1'"),
        ("--regimes ,", "--regimes received ','"),
        ("--regimes sb,huge", "--regimes received 'huge', expected one of sb, lb"),
        ("--regimes sb,lb-diag", "batch-change. Did you mean lb-diagonal"),
        ("--model LeNet5", "Did you mean lenet"),
        ("--model x", "6n + 2. Change --model."),
        ("--dataset letters", "Unknown data set 'letters'. Known data sets: "),
        ("--dataset cifar", "in --data-dir. Did you mean cifar10 or cifar100?"),
        ("--conv half", "--conv received 'half', expected exact or uncorrelated. Change --conv."),
        ("--conv exakt", "expected exact or uncorrelated. Did you mean exact? Change --conv."),
        ("--estimator best", "--estimator received 'best'"),
        ("--damping 0", "--damping received 0.0"),
        ("--global-clipnorm 0", "--global-clipnorm received 0.0, expected a positive number"),
        ("--regimes multiplicative --placement update", "placement="),
        ("--regimes lb-diagonal --conv uncorrelated --engine vectorized_map", "engine="),
        (
            "--regimes sb,lb-diagonal --normalization batch --engine vectorized_map",
            "normalises every example by the whole batch",
        ),
        ("--num-microbatches 50", "num_microbatches=50. Use at most num_microbatches=20"),
        ("--train-size 20000", "--train-size received 20000, expected at most 10000"),
        ("--train-size 400", "--large-batch-size received 1000, expected at most the 400"),
        ("--train-size 40", "--small-batch-size received 50, expected less than"),
    ],
)
def test_bad_options_are_refused_in_one_line(tmp_path, arguments, words):
    result = invoke("compare", "--output", str(tmp_path / "run"), *arguments.split())
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("noisylb: error: ")
    assert not (tmp_path / "run").exists()


def test_regimes_are_listed():
    result = CliRunner().invoke(app, ["regimes"], terminal_width=120, env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    for name, regime in REGIMES.items():
        (line,) = [line for line in result.output.splitlines() if line.split()[:1] == [name]]
        assert regime.title() in line and f"{regime.cost:g}" in line
    assert result.output.splitlines()[-1].startswith("Next: noisylb report --regime NAME")


def test_train_runs_one_regime(tmp_path):
    arguments = [a for a in SMALL if a not in {"--regimes", "lb"}]
    folder = tmp_path / "run"
    result = invoke("train", *arguments, "--epochs", "1", "--output", str(folder))
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["lb-full-split-seed0"]
    assert "Epoch 1/1: " in result.output and "LB + full (split)" in result.output
    found, then = result.output.splitlines()[-2:]
    assert found.startswith(f"Results: {folder / 'table.md'}, compare.png")
    assert (
        then
        == f"Next: the same command with more --seeds or another --regime adds runs to {folder}."
    )


def test_a_pipe_gets_one_line_an_epoch(tmp_path, monkeypatch):
    result = invoke("compare", *SMALL, "--epochs", "2", "--output", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output
    epochs = [line for line in result.output.splitlines() if line.startswith("Epoch")]
    assert [line.split(":")[0] for line in epochs] == ["Epoch 1/2", "Epoch 2/2"]
    history = json.loads((tmp_path / "run" / "lb-seed0" / "history.json").read_text())
    assert f"test_accuracy {history['epochs'][1]['test_accuracy']:.4g}" in epochs[1]
    assert "\x1b" not in result.output and "\b" not in result.output
    monkeypatch.setattr(sys, "stdout", types.SimpleNamespace(isatty=lambda: True))
    for name, value, bars in (("TERM", "xterm", True), ("NO_COLOR", "1", False)):
        monkeypatch.setenv(name, value)
        assert progress.has_bars() == bars
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not progress.has_bars()


def test_version_and_short_help():
    result = invoke("--version")
    assert (result.exit_code, result.output) == (
        0,
        f"noisylb {metadata.version('keras-noisylb')}\n",
    )
    for command in ([], ["compare"], ["table"]):
        assert invoke(*command, "-h").output == invoke(*command, "--help").output
        assert invoke(*command, "-h").exit_code == 0


@pytest.mark.parametrize("command", ["compare", "train", "table 2", "tune 2", "figure 1"])
def test_the_folder_of_the_results(tmp_path, monkeypatch, command):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    if command.split()[0] not in {"table", "tune"}:  # which look for their data first
        result = invoke(*command.split(), "--output", "~/file")
        assert f"{tmp_path / 'file'} cannot be written" in result.stderr
    result = invoke(*command.split(), "--output", "")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "--output received '', expected the name of a" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_report_tells_layer_by_layer():
    result = invoke("report", "--regime", "lb-kfac", "--ghost-batch-size", "50")
    assert result.exit_code == 0, result.output
    assert "Kronecker" in result.output and "work" in result.output
    assert "num_microbatches" not in result.output
    assert "\nNext: noisylb train --regime lb-kfac --model lenet" in result.output
    result = invoke("report", "--regime", "lb")
    assert result.exit_code == 2 and "one regime with noise" in result.stderr


def test_report_names_the_microbatches_that_fit():
    network = MLP(num_classes=10, ghost_batch_size=50)
    found = report(
        network, DiagonalFisher(50, estimator="split", multiplier=0.3), 1000, memory=0.05
    )
    assert found.num_microbatches > 1
    result = invoke("report", "--regime", "lb-diagonal-split", "--model", "mlp", "--memory", "0.05")
    assert result.exit_code == 0, result.output
    words = f"num_microbatches={found.num_microbatches} keeps a step within 0.05 GiB"
    assert words in result.output
    result = invoke("report", "--memory", "-1")
    assert result.exit_code == 2 and "`memory` must" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_option_is_named_as_it_was_given():
    for command in ("train", "report"):
        result = invoke(command, "--regime", "lb-ful")
        assert result.exit_code == 2 and result.stderr.count("\n") == 1
        assert "--regime received 'lb-ful'" in result.stderr and "Change --regime." in result.stderr
        assert "--regime received ','" in invoke(command, "--regime", ",").stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--seed -1", "--seed received -1, expected an integer from 0"),
        ("--batch-size 0", "--batch-size received 0"),
        ("--learning-rate nan", "--learning-rate received nan"),
        ("--highest-rate high", "--highest-rate received 'high', expected a number or measure"),
    ],
)
def test_bad_options_of_batch_size_are_refused_in_one_line(arguments, words):
    result = invoke("batch-size", *arguments.split())
    assert result.exit_code == 2 and words in result.stderr
    assert result.stderr.count("\n") == 1
