"""The `noisylb` command and how it fails.

Keras is imported inside the commands only, so that help is fast.
"""

import importlib
import os
import warnings
from importlib import metadata
from typing import Annotated

import typer

from noisylb import process

# What a user reads, and the exit code.
ENDS = {KeyboardInterrupt: ("interrupted", 130), process.Terminated: ("ended by SIGTERM", 143)}

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Matched gradient noise for large batches, and the experiments of the paper.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool):
    """Print the version and end, where that is wanted.

    Args:
        wanted: whether `--version` is given.

    Raises:
        typer.Exit: after the version.
    """
    if wanted:
        typer.echo(f"noisylb {metadata.version('keras-noisylb')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Print the version."),
    ] = False,
):
    """The options of `noisylb` itself.

    Args:
        version: whether to print the version.
    """


def path(parameter: typer.CallbackParam, value: str | None):
    """Read an option that names a file or a folder.

    Args:
        parameter: the option.
        value: on the command line, or `None`.

    Returns:
        The value with the home directory in place of `~`.

    Raises:
        typer.Exit: if it is empty.
    """
    if value is not None and not value.strip():
        flag = parameter.opts[0]
        fail(f"{flag} received {value!r}, expected the name of a file or folder. Change {flag}.")
    return value and os.path.expanduser(value)


def fail(error):
    """End the command with one line and exit code 2.

    Raises:
        typer.Exit: always.
    """
    typer.echo("noisylb: error: " + " ".join(str(error).split()), err=True)
    raise typer.Exit(2)


def show_warning(message, *_, **__):
    """Show a warning in one line, without the place in the code."""
    typer.echo(f"noisylb: {message}", err=True)


def work(name, call, output):
    """Call a function of the experiments, and end the command with one line if it fails.

    Args:
        name: of the module in `keras_noisylb.experiments`.
        call: function that receives the module.
        output: folder of the results.

    Raises:
        typer.Exit: if it could not be run, or was interrupted.
    """
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    try:
        process.import_tensorflow()
        records = importlib.import_module("keras_noisylb.experiments.records")
        module = importlib.import_module(f"keras_noisylb.experiments.{name}")
    except ImportError as error:
        fail(error)
    try:
        with warnings.catch_warnings(), process.ended_by_sigterm():
            warnings.showwarning = show_warning
            call(module)
    except records.CompareError as error:
        fail(error)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        fail(
            f"{error.filename or output} cannot be written or read: {reason}. What was "
            "finished is kept. Correct this and repeat the command, which continues from there, or "
            "choose another --output."
        )
    except (KeyboardInterrupt, process.Terminated) as error:
        name, code = ENDS[type(error)]
        typer.echo(
            f"\nnoisylb: {name}. The same command continues from what is finished.", err=True
        )
        raise typer.Exit(code) from None
