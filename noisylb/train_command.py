"""The commands `compare`, `train` and `report`, whose options are the fields of `Options`."""

import dataclasses
import functools
import inspect
from typing import Annotated

import typer

from noisylb import planning
from noisylb.app import app, fail, path, work
from noisylb.protocol.options import Options, ReportOptions, TrainOptions

PATHS = ("dataset", "data_dir", "output")


def run(module, job, values, options_class, **arguments):
    """Call a function of the experiments with the values of the command line.

    Args:
        module: name of a module in `keras_noisylb.experiments`.
        job: name of a function of that module, which receives the options.
        values: dictionary of the fields of the options.
        options_class: `Options` or a class with more of them.
        **arguments: further arguments of the function.

    Raises:
        typer.Exit: if it could not be run, or was interrupted.
    """
    try:
        options = options_class(**values)
    except ValueError as error:
        fail(error)
    work(module, lambda found: getattr(found, job)(options, **arguments), options.output)


def command(name, module, job, help_text, then, only=None, options_class=Options, **changes):
    """Add a command whose options are fields of a class.

    Args:
        name: of the command.
        module: name of the module in `keras_noisylb.experiments` that it runs.
        job: name of the function of that module.
        help_text: its help.
        then: what to do after it, with the names of fields in braces.
        only: names of the fields that it has; `None` for all.
        options_class: `Options` or a class with more of them.
        **changes: fields with another name, default or help, as `(flag, default, help)`.
    """

    def call(**values):
        confirmed = {}
        if trains:
            confirmed["confirm"] = functools.partial(planning.confirm, yes=values.pop("yes"))
        run(module, job, values, options_class, **confirmed)
        if not values.get("task"):  # of several workers, the first has the results
            typer.echo(f"Next: {then.format(**values)}")

    trains, parameters = job in {"compare", "train"}, []
    for field in dataclasses.fields(options_class):
        if only is not None and field.name not in only:
            continue
        flag = "--" + field.name.replace("_", "-")
        flag, default, text = changes.get(field.name, (flag, field.default, field.metadata["help"]))
        parser = field.metadata["parser"]
        read = path if field.name in PATHS else None
        kind = Annotated[
            str if parser else field.type,
            typer.Option(flag, help=text, parser=parser, callback=read),
        ]
        parameters.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
            )
        )
    if trains:
        kind = Annotated[bool, planning.YES]
        parameters.append(
            inspect.Parameter("yes", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        )
    call.__signature__ = inspect.Signature(parameters)
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    app.command(name, help=help_text)(call)


ONE_REGIME = ("--regime", "lb-diagonal", "Regime. `noisylb regimes` lists them.")

command(
    "compare",
    "compare",
    "compare",
    "Train several regimes side by side for equal epochs: table, picture and records.",
    "the same command with more --seeds or --regimes adds runs to {output}.",
)
command(
    "train",
    "cluster",
    "train",
    "Train one regime, with the options of `compare`; also by several machines.",
    "the same command with more --seeds or another --regime adds runs to {output}.",
    options_class=TrainOptions,
    regimes=("--regime", "lb-full-split", ONE_REGIME[2]),
    output=("--output", "results/train", "Folder of the results. Runs in it continue."),
)
command(
    "report",
    "noise_report",
    "show",
    "Say, layer by layer, how a regime's noise will be computed and what it costs. Trains nothing.",
    "noisylb train --regime {regimes} --model {model} trains so. Nothing was written.",
    only=(
        "regimes", "model", "dataset", "large_batch_size", "small_batch_size", "normalization",
        "ghost_batch_size", "estimator", "fisher", "engine", "max_examples", "conv", "damping",
        "update_every", "sigma", "form", "memory",
    ),
    options_class=ReportOptions,
    regimes=ONE_REGIME,
)  # fmt: skip
