"""The command `figure`."""

import dataclasses
from typing import Annotated

import typer
from rich.console import Console

from noisylb.app import app, fail, work
from noisylb.protocol.figures import FIGURES, PRESETS

TEMPERATURE = "temperature"


@app.command("figure")
def figure(
    number: Annotated[
        str,
        typer.Argument(
            metavar="FIGURE",
            help="; ".join(f"{name}: {what}" for name, what in FIGURES.items())
            + f"; {TEMPERATURE}: accuracy against temperature, of `noisylb table small`",
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
        str | None, typer.Option(help="Folder of the prepared TFDS data sets.")
    ] = None,
    tables: Annotated[
        str, typer.Option(help="Output folder of `noisylb table small`, for figure temperature.")
    ] = "results/tables",
    output: Annotated[
        str | None,
        typer.Option(
            help="Folder of the results; continues what lies there. "
            "Default: results/figure<FIGURE>-<preset>."
        ),
    ] = None,
):
    """Repeat a figure of the paper: picture, numbers, and whether its claims are seen."""
    if number == TEMPERATURE:
        draw_temperature(tables, output or "results/figure-temperature")
        return
    for flag, value, choices in (("FIGURE", number, FIGURES), ("--preset", preset, PRESETS)):
        if value not in choices:
            fail(f"{flag} received {value!r}, expected one of {', '.join(choices)}. Change {flag}.")
    output = output or f"results/figure{number}-{preset}"
    chosen = PRESETS[preset]
    try:
        options = dataclasses.replace(
            chosen.options, seeds=seeds, data_dir=data_dir, output=output, quiet=True
        )
    except ValueError as error:
        fail(error)
    chosen = dataclasses.replace(chosen, options=options)
    command = f"noisylb figure {number} --preset {preset} --seeds {seeds}"

    console = Console(highlight=False)

    def make(published):
        for claim in published.make(number, chosen, command, typer.echo)["claims"]:
            text = f"{claim['claim']} Seen: {claim['seen']}. {claim['found']}"
            # Between words in a terminal, one line for each claim in a file.
            console.print(text, markup=False, soft_wrap=not console.is_terminal)
        typer.echo(f"Picture and numbers: {output}/figure{number}.png, .svg, .json")

    work("figures.make", make, output)


def draw_temperature(tables, output):
    """Draw the figure that needs no training of its own.

    Args:
        tables: folder of the finished runs.
        output: folder of the picture.
    """
    command = f"noisylb figure {TEMPERATURE} --tables {tables}"

    def make(temperature):
        count = len(temperature.make(tables, output, command, typer.echo)["numbers"])
        typer.echo(f"{count} recipes. Picture and numbers: {output}/temperature.png, .svg, .json")

    work("figures.temperature", make, output)
