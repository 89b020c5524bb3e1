"""The command `tune`."""

import pathlib
from typing import Annotated

import typer
from rich.console import Console

from noisylb import planning
from noisylb import table_command as shared
from noisylb.app import app, fail, work
from noisylb.protocol.names import unknown
from noisylb.protocol.paper import TABLES
from noisylb.protocol.terminal import grid, print_table

FACTORS = Annotated[
    str | None,
    typer.Option(help="Factors of each recipe's rate, separated by commas (0.5,1,2)."),
]
TRIALS = Annotated[
    int | None,
    typer.Option(help="Number of trials of a random search for rate, momentum, noise and more."),
]
PARTS = Annotated[
    str | None, typer.Option(help="Values that --trials searches, separated by commas (all).")
]
SHOWN = 3  # trials of each search


@app.command(
    help="Find the learning rate of each cell of Table 2 or 3, on a sixth of the training set that "
    "is held out; `noisylb table --rates FILE` uses them. With --trials, search more values than "
    "the rate."
)
def tune(
    number: shared.NUMBER,
    rows: shared.ROWS = None,
    regimes: shared.REGIMES = None,
    factors: FACTORS = None,
    trials: TRIALS = None,
    parts: PARTS = None,
    seeds: shared.SEEDS = "1",
    preset: shared.PRESET = "sample",
    data_dir: shared.DATA_DIR = None,
    num_microbatches: shared.MICROBATCHES = None,
    output: shared.OUTPUT = "results/tuning",
    dry_run: shared.DRY_RUN = False,
    yes: shared.YES = False,
):
    """Tune learning rates, or search.

    Args:
        number: of the table.
        rows: names of rows.
        regimes: names of regimes.
        factors: of the recipes' rates.
        trials: number of trials of a search.
        parts: names of what is searched.
        seeds: number of seeds, or a list of them.
        preset: name of the size.
        data_dir: folder of the prepared data sets.
        num_microbatches: microbatches of a large batch.
        output: folder of the results.
        dry_run: whether only the plan is printed.
        yes: whether a long search begins without a question.
    """
    size, console = shared.scale_named(preset), Console()
    settings = {"data_dir": data_dir, "num_microbatches": num_microbatches}
    folder = pathlib.Path(output) / size.name
    if number not in TABLES:
        fail(unknown("TABLE", number, TABLES))
    if trials is not None and factors is not None:
        fail("--factors belongs to the grid of rates, --trials to a search. Give one of them.")
    if trials is None and parts is not None:
        fail("--parts says what --trials searches. Give --trials 20, say.")

    def rate_grid():
        from keras_noisylb.experiments.tune import rates

        runs = rates.grid(number, size, output, rows, regimes, seeds, multiples)
        then = f"noisylb table {number} --preset {size.name} --rates {folder / 'tuned.json'}"
        return runs, lambda: report_rates(size, folder, console), then

    def search():
        try:
            import keras_noisylb.tuning  # noqa: F401 -- says how KerasTuner is installed
        except ImportError as error:
            fail(error)
        from keras_noisylb.experiments.tune.search import searches

        runs = searches(number, size, output, rows, regimes, seeds, parts, trials)
        then = f"the same command with more --trials goes on in {folder}."
        return runs, lambda: report_trials(runs, console), then

    def find(execute):
        runs, report, then = rate_grid() if trials is None else search()
        execute.check(runs, settings, 1)
        if dry_run:
            planning.show_plan(execute, runs, 1, console)
        else:
            shared.do(execute, runs, settings, folder, console, report, yes=yes)
            typer.echo(f"Next: {then}")

    try:
        wanted = "0.5,1,2" if factors is None else factors
        multiples = [float(factor) for factor in wanted.split(",") if factor.strip()]
    except ValueError:
        fail(f"--factors received {factors!r}, expected numbers as in 0.5,1,2. Change --factors.")
    work("queue.execute", find, output)


def report_rates(scale, folder, console):
    """Write and show the best rates of the finished runs in a folder, if there are any.

    Args:
        scale: the `Scale`.
        folder: `pathlib.Path` of all runs.
        console: where they are shown.
    """
    from keras_noisylb.experiments import records
    from keras_noisylb.experiments.tune import rates

    cells = rates.summarize(rates.finished(folder, scale, typer.echo))
    if not cells:
        return
    path = folder / "tuned.json"
    records.write_json(path, rates.to_dict(cells, scale))
    rows = []
    for cell in cells:
        tried = ", ".join(
            f"{rate:g}: {'diverged' if found is None else f'{100 * found:.2f}'}"
            for rate, found in cell.accuracies.items()
        )
        best = "–" if cell.learning_rate is None else f"{cell.learning_rate:g}"
        rows.append((cell.name, tried, best + " (end)" * cell.at_an_end))
    words = (
        "Held-out accuracy in percent by learning rate. (end): of the grid, so a better rate "
        "may lie beyond: widen --factors."
    )
    print_table(
        console, grid(("recipe", "rate: accuracy", "best"), rows, right=(2,), caption=words)
    )
    console.print(f"Results: {path}, and a folder of each run", soft_wrap=True)


def report_trials(searches, console):
    """Show the best trials of the finished searches, if there are any.

    Args:
        searches: list of `keras_noisylb.experiments.tune.search.Search`.
        console: where they are shown.
    """
    rows = []
    for search in searches:
        record = search.record(typer.echo)
        if record is None:
            continue
        rows.append((search.recipe.name, "", f"{len(record['trials'])} trials"))
        for trial in record["trials"][:SHOWN]:
            spread = "" if trial["std"] is None else f" ± {100 * trial['std']:.2f}"
            score = "–" if trial["score"] is None else f"{100 * trial['score']:.2f}{spread}"
            values = ", ".join(f"{name} {trial['values'][name]:.4g}" for name in search.parts)
            rows.append(("", score, trial["reason"] or values))
    if rows:
        words = (
            "Held-out accuracy in percent of the best trials, each at its best epoch. All trials: "
            "search.json in the folder of each recipe."
        )
        print_table(
            console, grid(("recipe", "accuracy", "values"), rows, right=(1,), caption=words)
        )
