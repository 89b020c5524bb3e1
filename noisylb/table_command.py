"""The commands `recipes` and `table`."""

import itertools
import pathlib
from typing import Annotated

import typer
from rich.console import Console

from noisylb import planning
from noisylb.app import app, fail, path, work
from noisylb.protocol import recipe
from noisylb.protocol.names import SEEDS_HELP, counted, nearest, unknown
from noisylb.protocol.options import number_or_matched
from noisylb.protocol.paper import PUBLISHED, RECIPES, TABLES
from noisylb.protocol.recipe import SCALES, WHOLE
from noisylb.protocol.terminal import grid, print_table

SCALES_HELP = (  # days by `keras_noisylb.experiments.estimate.REFERENCE`
    "probe (5 epochs), short (15), long (60), sample (20 of 10,000 images) or paper (200). All of "
    "Table 2 takes about 3, 9, 35, 3 or 118 days on 2 CPU cores; --dry-run says how long a part "
    "takes here."
)
NAME = Annotated[str | None, typer.Argument(help="Recipe to print, such as mnist-mlp/lb.")]
NUMBER = Annotated[str, typer.Argument(help="Table of the paper: 2 or 3.", metavar="2|3")]
TABLE = Annotated[
    str,
    typer.Argument(
        help="Table 2 or 3 of the paper; small: accuracy by temperature, on a small network.",
        metavar="2|3|small",
    ),
]
ROWS = Annotated[
    str | None,
    typer.Option(help="Rows, separated by commas (all; of small the first, cifar10-small)."),
]
REGIMES = Annotated[str | None, typer.Option(help="Regimes, separated by commas (all).")]
LABELS = Annotated[
    str | None, typer.Option(help="Labels of the recipes of small, separated by commas (all).")
]
BEST = Annotated[
    bool,
    typer.Option(
        "--best",
        help="Of the recipes of small, only the best one of each regime: by held-out images, after "
        "all have been trained with the first seed.",
    ),
]
SEEDS = Annotated[str, typer.Option(help=SEEDS_HELP)]
PRESET = Annotated[
    str,
    typer.Option(help=f"Size: {SCALES_HELP}"),
]
DATA_DIR = Annotated[
    str | None, typer.Option(help="Folder of the prepared TFDS data sets.", callback=path)
]
MICROBATCHES = Annotated[
    int | None, typer.Option(help="Microbatches in which each large batch is computed.")
]
TABLE_PRESET = Annotated[
    str | None,
    typer.Option(help=f"Size of 2 and 3 (sample): {SCALES_HELP}"),
]
MULTIPLIER = Annotated[
    str | None,
    typer.Option(
        help="λ of all noises of 2 and 3, or matched: the λ with the temperature of SB (the "
        "recipes', which is 1 as in the paper).",
        parser=number_or_matched,
    ),
]
JOBS = Annotated[
    int, typer.Option(help="Number of runs at a time. With several, each has one thread.")
]
RATES = Annotated[
    str | None,
    typer.Option(help="File of learning rates that `noisylb tune` has written.", callback=path),
]
OUTPUT = Annotated[
    str, typer.Option(help="Folder of the results. Runs in it continue.", callback=path)
]
DRY_RUN = Annotated[
    bool, typer.Option("--dry-run", help="Only print the plan and its estimated time.")
]
YES = Annotated[bool, planning.YES]


def scale_named(name):
    """The scale that `--preset` names.

    Args:
        name: of `SCALES`.

    Returns:
        A `Scale`.

    Raises:
        typer.Exit: if there is none of that name.
    """
    if name not in SCALES:
        fail(unknown("--preset", name, SCALES))
    return SCALES[name]


@app.command(help="List the recipes of Tables 2 and 3, or print one with the source of each value.")
def recipes(name: NAME = None, preset: PRESET = "paper"):
    """Show recipes.

    Args:
        name: of one recipe; `None` lists all.
        preset: name of the size.
    """
    scale = scale_named(preset).apply
    console = Console()
    if name is None:
        header = ("recipe", "batch", "rate", "decay", "epochs", "paper, %")
        rows = []
        for cell in map(scale, RECIPES.values()):
            batch = cell.small_batch_size if cell.regime == "sb" else cell.large_batch_size
            paper = PUBLISHED[cell.row].get(cell.regime)
            rows.append((
                cell.name, str(batch), f"{cell.learning_rate:g}", f"{cell.weight_decay:g}",
                str(cell.epochs), "–" if paper is None else f"{paper:.2f}",
            ))  # fmt: skip
        print_table(console, grid(header, rows, right=range(1, 6)))
        typer.echo("Next: noisylb recipes RECIPE, with the source of each value")
        return
    if name not in RECIPES:
        fail(
            f"NAME received {name!r}, expected a row and a regime such as mnist-mlp/lb. "
            f"`noisylb recipes` lists them.{nearest(name, RECIPES)}"
        )
    cell = scale(RECIPES[name])
    sources = {source.field: str(source) for source in cell.sources}
    rows = [
        (field, str(value), sources.get(field, "the preset"))
        for field, value in cell.described().items()
        if field not in {"row", "regime"}
    ]
    print_table(console, grid(("field", "value", "from"), rows, title=name))
    number = (
        "2" if name in {f"{row}/{r}" for row in TABLES["2"][0] for r in TABLES["2"][1]} else "3"
    )
    where = f"--rows {cell.row} --regimes {cell.regime} --preset {preset}"
    typer.echo(f"Next: noisylb table {number} {where} --dry-run")


@app.command(help="Train the cells of a table, each in a process of its own, and write the table.")
def table(
    number: TABLE,
    rows: ROWS = None,
    regimes: REGIMES = None,
    labels: LABELS = None,
    best: BEST = False,
    seeds: SEEDS = str(recipe.SEEDS),
    preset: TABLE_PRESET = None,
    data_dir: DATA_DIR = None,
    num_microbatches: MICROBATCHES = None,
    rates: RATES = None,
    multiplier: MULTIPLIER = None,
    jobs: JOBS = 1,
    output: OUTPUT = "results/tables",
    dry_run: DRY_RUN = False,
    yes: YES = False,
):
    """Train a table.

    Args:
        number: of the table.
        rows: names of rows.
        regimes: names of regimes.
        labels: labels of recipes.
        best: whether only the best recipe of each regime is trained.
        seeds: number of seeds, or a list of them.
        preset: name of the size; `None` takes "sample" for 2 and 3 and the whole of small.
        data_dir: folder of the prepared data sets.
        num_microbatches: microbatches of a large batch.
        rates: file of learning rates in place of the recipes'.
        multiplier: λ in place of the recipes'.
        jobs: number of runs at a time.
        output: folder of the results.
        dry_run: whether only the plan is printed.
        yes: whether a long table begins without a question.
    """
    default = WHOLE if number == "small" else SCALES["sample"]
    size = scale_named(preset) if preset else default
    console = Console()
    folder = pathlib.Path(output) / size.name
    settings = {"data_dir": data_dir, "num_microbatches": num_microbatches}

    def repeat(execute):
        from keras_noisylb.experiments.queue.plan import best_of, cells, plan
        from keras_noisylb.experiments.tables import paper, small
        from keras_noisylb.experiments.tune.rates import read

        found = read(rates) if rates else {}
        runs = plan(number, size, output, rows, regimes, seeds, found, labels, multiplier)
        names = [recipe.name for recipe in cells(number, size, rows, regimes, labels)]
        without = ", ".join(name for name in names if name not in found)
        if rates and without:
            typer.echo(f"{rates} has no rate of {without}: the recipe's is taken.")
        execute.check(runs, settings, jobs)
        if best:
            runs = best_of(number, runs, typer.echo)
        if dry_run:
            planning.show_plan(execute, runs, jobs, console)
            return
        if number == "small":
            form, words = small, small.caption()
        else:
            form, words = paper, paper.caption(number, size, bool(rates), multiplier)
        do(
            execute, runs, settings, folder, console,
            lambda: report(form, number, words, runs, folder, console), jobs, yes,
        )  # fmt: skip
        more = f"the same command with more --seeds adds runs to {output}"
        if number == "small":
            more = f"noisylb figure temperature --tables {output} draws them; {more}"
        typer.echo(f"Next: {more}.")

    work("queue.execute", repeat, output)


def do(execute, runs, settings, folder, console, report, jobs=1, yes=False):
    """Train the unfinished runs, and report even if that is interrupted.

    Args:
        execute: the module `keras_noisylb.experiments.queue.execute`.
        runs: list of `Run`.
        settings: dictionary of the arguments of `Recipe.options`.
        folder: `pathlib.Path` of all runs.
        console: for the progress.
        report: function without arguments.
        jobs: number of runs at a time.
        yes: whether long runs begin without a question.

    Raises:
        typer.Exit: if a run failed, or long runs were not confirmed.
    """
    from keras_noisylb.experiments import folders

    unfinished = [run for run in runs if not run.finished()]
    if unfinished:
        _, seconds, device = execute.expected(unfinished, jobs)
        what = f"{counted(len(unfinished), 'run')} with --jobs {jobs} on {device}"
        planning.confirm(what, seconds, yes)
    execute.check_data(runs, settings)
    with folders.alone(folder):
        left = execute.prepare(runs, typer.echo)
        try:
            failed = execute.work(left, settings, console, jobs)
        finally:
            report()
    if failed:
        names = ", ".join(run.title for run in failed)
        fail(f"{len(failed)} failed: {names}. The same command tries them again.")


def report(form, number, words, runs, folder, console):
    """Write and show the table of the finished runs, if there are any.

    Args:
        form: the module that makes the table, `tables.paper` or `tables.small`.
        number: of the table.
        words: its caption.
        runs: list of `Run`.
        folder: `pathlib.Path` that it is written to.
        console: for the table.
    """
    from keras_noisylb.experiments import records
    from keras_noisylb.experiments.tables.text import markdown, to_csv

    found = [run.record(console.print) for run in runs]
    if not any(found):
        return
    lines = form.summarize(runs, found)
    header, cells = form.cells(lines)
    paths = folder / f"table{number}.md", folder / f"table{number}.csv"
    records.write_text(paths[0], markdown(header, cells, words))
    records.write_text(paths[1], to_csv(form.FIELDS, lines))
    shown = []  # a line for the name of each row, so that the rest fits 80 columns
    for name, group in itertools.groupby(cells, key=lambda row: row[0]):
        shown += [(name,), *((f"  {row[1]}", *row[2:]) for row in group)]
    print_table(console, grid(header[1:], shown, right=range(1, len(header) - 1), caption=words))
    console.print(f"Results: {paths[0]}, {paths[1].name}, and a folder of each run", soft_wrap=True)
