"""Kills, full disks and damaged files: finished results are kept, and the rest continues."""

import contextlib
import errno
import os
import pathlib
import resource
import subprocess
import sys

import keras
import pytest
from test_compare import assert_same_results, load, options, small_data, tree  # noqa: F401
from typer.testing import CliRunner

from keras_noisylb import models
from keras_noisylb.experiments import compare, journal, records, train
from keras_noisylb.experiments.regimes import REGIMES
from keras_noisylb.training.model import NoisyModel
from noisylb.main import app

SMALL = [
    *("--model", "mlp", "--normalization", "none", "--learning-rate", "0.01", "--seeds", "1"),
    *("--large-batch-size", "40", "--small-batch-size", "10", "--quiet"),
]


def command_line(command, folder, *arguments):
    return [command, *SMALL, "--output", str(folder), *arguments]


def test_a_killed_command_continues(tmp_path):
    """kill -9 in the second of two runs, against a command that nothing disturbs."""
    arguments = ("--regimes", "lb,lb-diagonal", "--epochs", "3", "--noise-fraction", "0.9")
    folder, other = tmp_path / "killed", tmp_path / "whole"
    # One thread, as in this process: the order of a sum is then always the same.
    environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": "1"}
    script = pathlib.Path(__file__).with_name("killed_command.py")
    command = [sys.executable, script, *command_line("compare", folder, *arguments)]
    assert subprocess.run(command, env=environment).returncode == -9
    before, old = tree(folder / "lb-seed0"), load(folder / "lb-diagonal-seed0" / "history.json")
    assert len(old["epochs"]) == 1
    for output in (folder, other):
        result = invoke("compare", output, *arguments)
        assert result.exit_code == 0
        assert result.output.count("not trained again") == (output == folder)
        assert ("Continues after epoch 1." in result.output) == (output == folder)
    assert tree(folder / "lb-seed0") == before
    new = load(folder / "lb-diagonal-seed0" / "history.json")
    assert new["epochs"][:1] == old["epochs"]  # the seconds too: this epoch was not repeated
    assert new["step_seconds"][:3] == old["step_seconds"]
    assert_same_results(folder, other)


# Writes in the order in which they fail; how many epochs are in the history then; what the command
# says of what it found.
FAULTS = [
    ("config.json", 0, ""),
    ("checkpoint-0001.keras", 0, ""),
    ("history.json", 0, ""),
    ("checkpoint-0002.keras", 1, ""),
    ("history.json", 1, "Continues after epoch 1."),
    ("model.keras", 2, "Continues after epoch 1."),
    ("record.json", 2, "Continues after epoch 2."),
    ("summary.json", 2, "Continues after epoch 2."),
    ("table.md", 2, "not trained again"),
    ("compare.png", 2, "not trained again"),
]


def test_a_disk_that_is_full_at_any_write(tmp_path, monkeypatch, capsys):
    whole, parts = (
        options(tmp_path, output=str(tmp_path / n), regimes="lb", epochs=2) for n in "ab"
    )
    compare.compare(whole)
    folder, replace = tmp_path / "b", os.replace
    for name, epochs, said in FAULTS:

        def full(source, target, name=name):
            if pathlib.Path(target).name == name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            replace(source, target)

        before = tree(folder)
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(OSError, match="No space left"):
                compare.compare(parts)
        assert said in capsys.readouterr().out
        after = tree(folder)
        changing = ("checkpoint", "history", "model")
        assert {p: b for p, b in before.items() if not p.name.startswith(changing)}.items() <= (
            after.items()
        )
        assert not [path for path in after if path.name.startswith("unfinished")]
        history = folder / "lb-seed0" / "history.json"
        assert (len(load(history)["epochs"]) if epochs else history.exists()) == epochs
    compare.compare(parts)
    assert_same_results(folder, tmp_path / "a")
    assert {path.relative_to(folder) for path in tree(folder)} == {
        path.relative_to(tmp_path / "a") for path in tree(tmp_path / "a")
    }


@contextlib.contextmanager
def files_of_at_most(size):
    """What a full disk does to HDF5 and all others: a write fails halfway."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def invoke(command, folder, *arguments):
    return CliRunner().invoke(app, command_line(command, folder, *arguments))


def assert_refused(result, *words):
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if "error" in line.lower()]
    assert line.startswith("noisylb: error: ")
    for word in (*words, "What was finished is kept", "another --output"):
        assert word in line


def test_a_write_that_fails_halfway(tmp_path):
    folder = tmp_path / "run"
    with files_of_at_most(10_000):
        result = invoke("train", folder, "--regime", "lb", "--epochs", "1")
    assert_refused(result, str(folder), "File too large")
    assert {path.name for path in tree(folder)} == {"config.json", ".lock"}
    result = invoke("train", folder, "--regime", "lb", "--epochs", "1")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", ["compare", "train"])
def test_a_folder_that_cannot_be_written(tmp_path, command):
    (tmp_path / "file").write_text("mine")
    assert_refused(invoke(command, tmp_path / "file" / "run"), str(tmp_path / "file"))
    assert_refused(invoke(command, tmp_path / "file"), str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


def prepared(tmp_path):
    """A compiled model, and a run of it that was interrupted after an epoch: its checkpoint."""
    chosen = options(tmp_path)
    network = models.get("mlp")(num_classes=4, input_shape=(6, 6, 1), normalization=None)
    model, _ = train.compiled(network, REGIMES["lb-diagonal"], 0.1, chosen, 100, seed=0)
    model.optimizer.build(model.trainable_variables)
    path = journal.checkpoint(tmp_path, 1)
    model.save(path)
    records.write_json(
        path.with_name("history.json"), {**journal.HISTORY, "epochs": [{"epoch": 1}]}
    )
    return model, path


def one_bit(model, path):
    content = bytearray(path.read_bytes())
    content[content.index(model.weights[0].numpy().tobytes())] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "truncated": lambda model, path: path.write_bytes(path.read_bytes()[:-2000]),
    "empty": lambda model, path: path.write_bytes(b""),
    "one bit": one_bit,
    "no optimizer": lambda model, path: NoisyModel(model.model).save(path),
    "no file": lambda model, path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside(tmp_path, damage):
    model, path = prepared(tmp_path)
    said = []
    assert len(journal.resume(model, tmp_path, said.append)["epochs"]) == 1
    assert said == ["Continues after epoch 1."]
    DAMAGES[damage](model, path)
    before = tree(tmp_path)
    said.clear()
    assert journal.resume(model, tmp_path, said.append) is None
    *first, last = said
    assert len(first) == (path in before)
    assert all(line.startswith(f"{path} cannot be loaded (") for line in first)
    history = path.with_name("history.json")
    assert last.startswith(f"{history} has no checkpoint-0001.keras that can be loaded; it was")
    assert all(line.endswith("and its run starts again.") for line in said)
    assert tree(tmp_path) == {p.with_name(f"{p.name}.aside"): b for p, b in before.items()}


def test_what_was_set_aside_stays(tmp_path):
    chosen = options(tmp_path, regimes="lb", epochs=1)
    aside = journal.checkpoint(tmp_path / "run" / "lb-seed0", 1)
    aside = aside.with_name(f"{aside.name}.aside")
    aside.parent.mkdir(parents=True)
    aside.write_bytes(b"mine")
    compare.compare(chosen)
    assert aside.read_bytes() == b"mine"


def test_a_checkpoint_that_cannot_be_opened_now_is_not_damaged(tmp_path, monkeypatch):
    model, _ = prepared(tmp_path)
    before = tree(tmp_path)

    def locked(self, path):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(keras.Model, "load_weights", locked)
    with pytest.raises(BlockingIOError):
        journal.resume(model, tmp_path, print)
    assert tree(tmp_path) == before
