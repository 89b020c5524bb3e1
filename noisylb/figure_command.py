"""The command `figure`."""

import dataclasses
import pathlib
from typing import Annotated

import typer
from rich.console import Console

from noisylb import planning
from noisylb.app import app, fail, path, work
from noisylb.planning import duration
from noisylb.protocol.figures import FIGURES, PRESETS, FigureSetup
from noisylb.protocol.names import SEEDS_HELP, counted, unknown

TABLES = FigureSetup.tables


def described(name):
    """What a figure shows, and how long it takes, in words.

    Args:
        name: of the figure.
    """
    figure = FIGURES[name]
    times = [f"{preset} {duration(60 * minutes)}" for preset, minutes in figure.minutes.items()]
    return f"{name}: {figure.shows}" + f" ({', '.join(times)})" * bool(times)


@app.command("figure")
def figure(
    name: Annotated[
        str,
        typer.Argument(
            metavar="FIGURE",
            help="; ".join(map(described, FIGURES)),
        ),
    ],
    preset: Annotated[
        str,
        typer.Option(
            help="quick: bundled data, ResNet8; paper: as published (ResNet44, CIFAR-10, "
            "4096/128). The times of FIGURE are for one seed on 2 CPU cores; those of paper are "
            "estimated."
        ),
    ] = "quick",
    seeds: Annotated[str, typer.Option(help=SEEDS_HELP)] = "3",
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
    yes: Annotated[bool, planning.YES] = False,
):
    """Repeat a figure of the paper: picture, numbers, and whether its claims are seen."""
    for flag, value, choices in (("FIGURE", name, FIGURES), ("--preset", preset, PRESETS)):
        if value not in choices:
            fail(unknown(flag, value, choices))
    module = FIGURES[name].module
    output = output or f"results/{module}-{preset}"
    try:
        options = dataclasses.replace(
            PRESETS[preset], seeds=seeds, data_dir=data_dir, output=output, quiet=True
        )
    except ValueError as error:
        fail(error)
    minutes = FIGURES[name].minutes.get(preset)
    if minutes and not pathlib.Path(output, f"{module}.json").exists():
        count = len(options.seed_list)
        what = f"Figure {name}, preset {preset}, {counted(count, 'seed')} on 2 CPU cores"
        planning.confirm(what, 60 * minutes * count, yes)
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
        typer.echo(f"Results: {output}/{module}.png, .svg, .json")

    work("figures.make", make, output)
    typer.echo(f"Next: {following(name, preset)}")


def following(name, preset):
    """What to do after a figure, in words.

    Args:
        name: of the figure.
        preset: of its size.
    """
    minutes = FIGURES[name].minutes
    if preset == "quick" and minutes and minutes["paper"] > minutes["quick"]:
        return f"noisylb figure {name} --preset paper, with the paper's network and data"
    names = list(FIGURES)
    return f"noisylb figure {names[(names.index(name) + 1) % len(names)]}"
