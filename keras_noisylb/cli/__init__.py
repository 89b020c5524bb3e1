"""The `noisylb` command. Keras is imported inside the commands only, so that help is fast."""

import dataclasses
import inspect
import os
import warnings
from typing import Annotated

import typer
from noisylb.options import Options

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train with a large batch, generalise like a small one.",
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


def run(values):
    """Run a comparison with the values of the command line.

    Args:
        values: dictionary of the fields of `Options`.

    Raises:
        typer.Exit: if it could not be run, or was interrupted.
    """
    try:
        options = Options(**values)
    except ValueError as error:
        fail(error)
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        from keras_noisylb.paper import compare
    except ImportError as error:
        fail(error)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            compare.compare(options)
    except (compare.CompareError, OSError) as error:
        fail(error)
    except KeyboardInterrupt:
        typer.echo(
            "\nnoisylb: interrupted. The same command continues after the last finished epoch.",
            err=True,
        )
        raise typer.Exit(130) from None


def command(name, help_text, **changes):
    """Add a command whose options are the fields of `Options`.

    Args:
        name: of the command.
        help_text: what it does.
        **changes: fields with another name, default or help, as `(flag, default, help)`.
    """

    def call(**values):
        run(values)

    parameters = []
    for field in dataclasses.fields(Options):
        flag = "--" + field.name.replace("_", "-")
        flag, default, text = changes.get(field.name, (flag, field.default, field.metadata["help"]))
        kind = Annotated[field.type, typer.Option(flag, help=text)]
        parameters.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
            )
        )
    call.__signature__ = inspect.Signature(parameters)
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    app.command(name, help=help_text)(call)


command(
    "compare",
    "Train several regimes side by side for equal epochs: table, picture and records.",
)
command(
    "train",
    "Train one regime, with the options of `compare`.",
    regimes=("--regime", "lb-diagonal", "Regime to train."),
    seeds=("--seeds", "1", "Number of seeds (3 means 0,1,2), or a list of seeds such as 4,7."),
    output=("--output", "results/train", "Folder of the results; continues what lies there."),
)


def main():
    """Run the command line."""
    app()
