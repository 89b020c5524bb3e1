"""The command `tune`."""

import pathlib
from typing import Annotated

import typer
from noisylb import app, fail, work
from noisylb import table_commands as shared
from rich.console import Console

FACTORS = Annotated[
    str, typer.Option(help="What each recipe's rate is multiplied by, separated by commas.")
]


@app.command(
    help="Find the learning rate of each cell of Table 2 or 3, on a sixth of the training set that "
    "is held out. `noisylb table --rates FILE` takes them."
)
def tune(
    number: shared.NUMBER,
    rows: shared.ROWS = None,
    regimes: shared.REGIMES = None,
    factors: FACTORS = "0.5,1,2",
    seeds: shared.SEEDS = 1,
    preset: shared.PRESET = "quick",
    data_dir: shared.DATA_DIR = None,
    num_microbatches: shared.CHUNKS = None,
    output: shared.OUTPUT = "results/tuning",
    dry_run: shared.DRY_RUN = False,
):
    """Tune learning rates.

    Args:
        number: of the table.
        rows: names of rows.
        regimes: names of regimes.
        factors: of the recipes' rates.
        seeds: number of seeds.
        preset: name of the size.
        data_dir: folder of the prepared data sets.
        num_microbatches: chunks of a large batch.
        output: folder of the results.
        dry_run: whether to plan only.
    """
    size, console = shared.preset_named(preset), Console()
    settings = {"data_dir": data_dir, "num_microbatches": num_microbatches}
    try:
        multiples = [float(factor) for factor in factors.split(",") if factor.strip()]
    except ValueError:
        fail(f"--factors received {factors!r}, expected numbers as in 0.5,1,2. Change --factors.")

    def search(queue):
        from keras_noisylb.paper import rates

        runs = rates.grid(number, size, output, rows, regimes, seeds, multiples)
        if dry_run:
            shared.show_plan(runs, console)
            return
        folder = pathlib.Path(output) / size.name
        shared.do(
            queue, runs, settings, folder, console, lambda: report(size, folder, console)
        )  # fmt: skip

    work("queue", search, output)


def report(preset, folder, console):
    """Write and show the best rates of all that is finished in a folder, if anything is.

    Args:
        preset: the `Preset`.
        folder: `pathlib.Path` of all runs.
        console: where they are shown.
    """
    from keras_noisylb.paper import rates, records

    cells = rates.summarize(rates.finished(folder, preset, typer.echo))
    if not cells:
        return
    path = folder / "tuned.json"
    records.write_json(path, rates.to_dict(cells, preset))
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
    console.print(
        shared.grid(("recipe", "rate: accuracy", "best"), rows, right=(2,), caption=words)
    )
    console.print(f"Rates: {path}", soft_wrap=True)
