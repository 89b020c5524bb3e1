"""The command `figure`."""

import dataclasses
from typing import Annotated

import typer
from rich.console import Console

from noisylb.app import app, fail, path, work
from noisylb.protocol.figures import FIGURES, PRESETS, FigureSetup

TABLES = FigureSetup.tables


@app.command("figure")
def figure(
    name: Annotated[
        str,
        typer.Argument(
            metavar="FIGURE",
            help="; ".join(f"{name}: {figure.shows}" for name, figure in FIGURES.items()),
        ),
    ],
    preset: Annotated[
        str,
        typer.Option(
            help="quick: bundled data, ResNet8, minutes on 2 cores; paper: as published "
            "(ResNet44, CIFAR-10, 4096/128)."
        ),
    ] = "quick",
    seeds: Annotated[
        str, typer.Option(help="Number of seeds (3 means 0,1,2), or a list of seeds such as 4,7.")
    ] = "3",
    data_dir: Annotated[
        str | None, typer.Option(help="Folder of the prepared TFDS data sets.", callback=path)
    ] = None,
    tables: Annotated[
        str,
        typer.Option(
            help="Output folder of `noisylb table small`, for figure temperature.", callback=path
        ),
    ] = TABLES,
    output: Annotated[
        str | None,
        typer.Option(
            help="Folder of the results. A figure in it continues. "
            "Default: results/figure<FIGURE>-<preset>.",
            callback=path,
        ),
    ] = None,
):
    """Repeat a figure of the paper: picture, numbers, and whether its claims are seen."""
    for flag, value, choices in (("FIGURE", name, FIGURES), ("--preset", preset, PRESETS)):
        if value not in choices:
            fail(f"{flag} received {value!r}, expected one of {', '.join(choices)}. Change {flag}.")
    module = FIGURES[name].module
    output = output or f"results/{module}-{preset}"
    try:
        options = dataclasses.replace(
            PRESETS[preset], seeds=seeds, data_dir=data_dir, output=output, quiet=True
        )
    except ValueError as error:
        fail(error)
    command = f"noisylb figure {name} --preset {preset} --seeds {seeds}"
    if tables != TABLES:
        command += f" --tables {tables}"
    console = Console(highlight=False)

    def make(figures):
        size = getattr(figures.module_of(name), "SIZES", {}).get(preset, {})
        setup = FigureSetup(options, size, tables)
        for claim in figures.make(name, setup, command, typer.echo)["claims"]:
            text = f"{claim['claim']} Seen: {claim['seen']}. {claim['found']}"
            # Between words in a terminal, one line for each claim in a file.
            console.print(text, markup=False, soft_wrap=not console.is_terminal)
        typer.echo(f"Picture and numbers: {output}/{module}.png, .svg, .json")

    work("figures.make", make, output)
