"""The `noisylb` command and how it fails.

Keras is imported inside the commands only, so that help is fast.
"""

import importlib
import os
import warnings

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Matched gradient noise for large batches, and the experiments of the paper.",
)


def fail(error):
    """End the command with one line and exit code 2.

    Args:
        error: what went wrong.

    Raises:
        typer.Exit: always.
    """
    typer.echo("noisylb: error: " + " ".join(str(error).split()), err=True)
    raise typer.Exit(2)


def show_warning(message, *_, **__):
    """Show a warning in one line, without the place in the code.

    Args:
        message: the warning.
    """
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
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        records = importlib.import_module("keras_noisylb.experiments.records")
        module = importlib.import_module(f"keras_noisylb.experiments.{name}")
    except ImportError as error:
        fail(error)
    try:
        with warnings.catch_warnings():
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
    except KeyboardInterrupt:
        typer.echo(
            "\nnoisylb: interrupted. The same command continues from what is finished.",
            err=True,
        )
        raise typer.Exit(130) from None
