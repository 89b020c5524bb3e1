"""What a command says of its time before it begins."""

import sys

import typer

from noisylb.app import fail
from noisylb.protocol.names import counted
from noisylb.protocol.terminal import grid, print_table

LONG = 1800  # seconds from which on a command asks before it begins

YES = typer.Option("--yes", help="Begin without a question, however long it takes.")


def duration(seconds):
    """A duration in words."""
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def confirm(what, seconds, yes):
    """Say how long a command will take. Have it confirmed if that is long.

    Args:
        what: that is done, such as "54 runs with --jobs 1".
        seconds: the estimate.
        yes: whether it is confirmed already.

    Raises:
        typer.Exit: if it is not.
    """
    typer.echo(f"{what}: about {duration(seconds)}.")
    if yes or seconds < LONG:
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        fail(
            f"about {duration(seconds)} is longer than {duration(LONG)}, and nobody can be asked "
            "here. Give --yes to begin."
        )
    if not typer.confirm("Begin?"):
        raise typer.Exit(1)


def show_plan(execute, runs, jobs, console):
    """Print the plan and its estimated time. Writes nothing.

    Args:
        execute: the module `keras_noisylb.experiments.queue.execute`.
        runs: list of `Run`.
        jobs: number of runs at a time.
        console: for the plan.
    """
    each, seconds, device = execute.expected(runs, jobs)
    rows = []
    for run, needed in zip(runs, each, strict=True):
        state = f"{run.done()} of {run.length} {run.unit}" if needed else "finished"
        rows.append((run.title, state, duration(needed) if needed else "–"))
    print_table(console, grid(("run", "done", "about"), rows, right=(1, 2)))
    console.print(
        f"{counted(len(runs), 'run')}, about {duration(seconds)} with --jobs {jobs} on {device}.\n"
        "Nothing was trained or written. Next: the same command without --dry-run.",
        highlight=False,
        soft_wrap=True,
    )
