"""What a command shows in a narrow terminal, at its start and when it is ended."""

import io
import os
import re
import signal
import time

import pytest
import typer
from rich.console import Console
from test_table import small_row  # noqa: F401 -- a fixture

from keras_noisylb.experiments.queue import execute, plan
from noisylb import process
from noisylb.app import work
from noisylb.protocol.recipe import SCALES
from noisylb.protocol.terminal import grid, print_table

HEADER = ("regime", "rate", "steps", "train loss", "test %", "step/LB")
NUMBERS = ("0.02", "20000", "0.36421", "83.76 ± 0.02", "1.03")


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_no_digit_is_cut(width):
    numbers = [*NUMBERS[:3], "83.76 ± 0.02 (1 of 3 seeds diverged at epoch 4)", NUMBERS[4]]
    rows = [("LB + diagonal (split)", *numbers), ("a group",)]
    screen = io.StringIO()
    table = grid(HEADER, rows, right=range(1, 6), caption="many words " * 20)
    print_table(Console(file=screen, width=width), table)
    lines = screen.getvalue().splitlines()
    (line,) = [line for line in lines if "20000" in line]
    for number in NUMBERS:
        assert re.search(rf"(^| ){re.escape(number)}( |$)", line)
    assert "…" not in screen.getvalue()
    assert max(map(len, lines)) <= max(width, 61)  # which the words and numbers need


def test_tensorflow_starts_quietly(monkeypatch, capfd):
    log = (
        b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
        b"I0000 00:00:1795904038.445653    1034 port.cc:153] oneDNN custom operations are on.\n"
        b"E0000 00:00:1795904051.606806    1399 cuda_platform.cc:52] failed call to cuInit\n"
    )
    monkeypatch.setenv(process.LEVEL, "0")
    with process.quiet_start():
        os.write(2, log)
    assert capfd.readouterr().err.encode() == log  # the user has asked for it
    monkeypatch.delenv(process.LEVEL)
    with pytest.raises(ImportError), process.quiet_start():
        os.write(2, log + b"W is no log\n" + log)
        raise ImportError
    assert capfd.readouterr().err == "W is no log\n"
    assert os.environ[process.LEVEL] == "2"


def test_sigterm_ends_a_command(capsys):
    before = signal.getsignal(signal.SIGTERM)

    def call(module):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    with pytest.raises(typer.Exit) as caught:
        work("records", call, "there")
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert "ended by SIGTERM. The same command continues" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_shows_the_cursor_again(tmp_path, small_row, monkeypatch):
    killed = []

    def train(run, settings, watch, stop, jobs):
        killed.append(run)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(60)

    monkeypatch.setattr(execute, "train", train)
    monkeypatch.setattr(plan.Run, "title", "a long name of a recipe, seed 0, and more of it")
    screen, runs = io.StringIO(), plan.plan("2", SCALES["tiny"], tmp_path, seeds=1)
    console = Console(file=screen, force_terminal=True, width=60)
    with pytest.raises(process.Terminated), process.ended_by_sigterm():
        execute.work(runs, {}, console)
    hidden, shown = (screen.getvalue().rfind(f"\x1b[?25{kind}") for kind in "lh")
    assert 0 <= hidden < shown and len(killed) == 1
    assert re.search(r"0 % .*0:00:\d\d.* left .*-:--:--", screen.getvalue())
