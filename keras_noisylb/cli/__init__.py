"""The `noisylb` command. Keras is imported inside the commands only, so that help is fast."""

import dataclasses
import importlib
import inspect
import os
import warnings
from typing import Annotated

import typer
from noisylb.options import Options, ReportOptions

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


def run(job, values, options_class):
    """Run something of the package with the values of the command line.

    Args:
        job: name of a function of `keras_noisylb.paper.compare` that takes the options.
        values: dictionary of the fields of the options.
        options_class: `Options` or `ReportOptions`.

    Raises:
        typer.Exit: if it could not be run, or was interrupted.
    """
    try:
        options = options_class(**values)
    except ValueError as error:
        fail(error)
    work("compare", lambda compare: getattr(compare, job)(options), options.output)


def work(name, call, output):
    """Let a module of the paper work, and end the command with one line where that fails.

    Args:
        name: of the module in `keras_noisylb.paper`.
        call: function of the module.
        output: folder of the results.

    Raises:
        typer.Exit: if it could not be run, or was interrupted.
    """
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        module = importlib.import_module(f"keras_noisylb.paper.{name}")
    except ImportError as error:
        fail(error)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            call(module)
    except module.CompareError as error:
        fail(error)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        fail(
            f"{error.filename or output} cannot be written or read: {reason}. What was "
            "finished is kept: mend that, and the same command continues from there, or choose "
            "another --output."
        )
    except KeyboardInterrupt:
        typer.echo(
            "\nnoisylb: interrupted. The same command continues from what is finished.",
            err=True,
        )
        raise typer.Exit(130) from None


def command(name, job, help_text, only=None, options_class=Options, **changes):
    """Add a command whose options are fields of a class.

    Args:
        name: of the command.
        job: name of the function of `keras_noisylb.paper.compare` that it runs.
        help_text: what it does.
        only: names of the fields that it has; `None` for all.
        options_class: `Options` or `ReportOptions`.
        **changes: fields with another name, default or help, as `(flag, default, help)`.
    """

    def call(**values):
        run(job, values, options_class)

    parameters = []
    for field in dataclasses.fields(options_class):
        if only is not None and field.name not in only:
            continue
        flag = "--" + field.name.replace("_", "-")
        flag, default, text = changes.get(field.name, (flag, field.default, field.metadata["help"]))
        parser = field.metadata["parser"]
        kind = Annotated[
            str if parser else field.type, typer.Option(flag, help=text, parser=parser)
        ]
        parameters.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
            )
        )
    call.__signature__ = inspect.Signature(parameters)
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    app.command(name, help=help_text)(call)


ONE_REGIME = ("--regime", "lb-diagonal", "Regime: one of those of `compare`.")

command(
    "compare",
    "compare",
    "Train several regimes side by side for equal epochs: table, picture and records.",
)
command(
    "train",
    "compare",
    "Train one regime, with the options of `compare`.",
    regimes=ONE_REGIME,
    output=("--output", "results/train", "Folder of the results; continues what lies there."),
)
command(
    "report",
    "show_report",
    "Say, layer by layer, how a regime's noise will be computed and what it costs. Trains nothing.",
    only=(
        "regimes", "model", "dataset", "large_batch_size", "small_batch_size", "normalization",
        "ghost_batch_size", "estimator", "fisher", "engine", "max_examples", "conv", "damping",
        "update_every", "sigma", "form", "memory",
    ),
    options_class=ReportOptions,
    regimes=ONE_REGIME,
)  # fmt: skip


def main():
    """Run the command line."""
    app()


from noisylb import batch_size_command, figure_command, table_commands, tune_command  # noqa: F401 -- they need what is above
