"""The comparison: every regime with every seed, then a table and a picture."""

import inspect
import pathlib
import time

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from keras_noisylb import models
from keras_noisylb.paper import figures, records, runs, splits, tables
from keras_noisylb.paper.records import CompareError
from keras_noisylb.paper.regimes import choose

__all__ = ["CompareError", "compare"]

UNCOMPARED = ("output", "data_dir", "quiet")  # where things lie and what is printed


def builder(options, data):
    """The function that builds the network.

    Args:
        options: the options of the run.
        data: the `Split`, for the shapes.

    Returns:
        Function without arguments to a Keras model.

    Raises:
        ValueError: if the model is unknown, or lacks an option that was asked for.
    """
    function = models.get(options.model)
    wanted = {
        "num_classes": data.num_classes,
        "input_shape": data.x_train.shape[1:],
        "normalization": None if options.normalization == "none" else options.normalization,
        "ghost_batch_size": options.ghost_batch_size or options.small_batch_size,
        "l2": options.l2,
    }
    missing = wanted.keys() - inspect.signature(function).parameters.keys()
    for name in missing:
        if name in {"num_classes", "input_shape"} or (name == "l2" and options.l2):
            raise ValueError(f"--model {options.model} has no option {name!r}. Change --model.")
    arguments = {name: value for name, value in wanted.items() if name not in missing}
    return lambda: function(**arguments)


def prepare(options):
    """Check everything that can be checked before the first folder is written.

    Args:
        options: the options of the run.

    Returns:
        Tuple `(regimes, build, data)`.

    Raises:
        CompareError: if the options fit no regime, model or data.
    """
    try:
        models.get(options.model)
        regimes = choose(options)
        for regime, _ in regimes.values():
            if regime.noise is not None:
                regime.noise(options)
        data = splits.load(options)
        build = builder(options, data)
        build()
    except (ValueError, OSError) as error:
        raise CompareError(str(error)) from error
    return regimes, build, data


def report(folder, options, regimes, results, reported, console):
    """Write summary, table and picture, and show the table.

    Args:
        folder: `pathlib.Path` of the comparison.
        options: its options.
        regimes: dictionary of name to `(regime, learning rate)`.
        results: dictionary of name to list of `(record, history)`.
        reported: what the accuracy was measured on.
        console: where it is shown.

    Returns:
        The summary.
    """
    summary = tables.summarize(regimes, results)
    records.write_json(folder / "summary.json", summary)
    header, rows = tables.rows(summary, reported)
    seeds = len(options.seed_list)
    caption = (
        f"{options.model} on {options.dataset}, {options.epochs} epochs, "
        f"{seeds} seed{'s' * (seeds > 1)}"
        f"{' (mean ± standard deviation)' if seeds > 1 else ''}. "
        "rate: peak learning rate. train loss, train % and "
        f"{reported} %: loss and accuracies in inference mode after training. "
        "sec.: training without evaluation. step/LB: median time of an update against LB's, "
        "of the updates with noise where there are any."
    )
    table = Table(caption=caption, box=SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    table.padding = (0, 1 if console.width > 90 else 0)
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    lines = [header, ["---"] * len(header), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    records.write_text(folder / "table.md", f"{text}\n\n{caption}\n")
    picture = folder / "compare.png"
    figures.draw(
        picture, {regimes[n][0].title: [h for _, h in r] for n, r in results.items()}, reported
    )
    console.print(f"Picture: {picture}   Table: {folder / 'table.md'}", soft_wrap=True)
    return summary


def compare(options):
    """Train every regime with every seed for equal epochs, and report what was measured.

    What was finished before in the same folder is not trained again.

    Args:
        options: `noisylb.options.Options`, or an object with the same attributes.

    Returns:
        Dictionary of regime name to the numbers of its row in the table.

    Raises:
        CompareError: if it cannot be run as asked; nothing was changed.

    Example:
    ```python
    from noisylb.options import Options

    compare(Options(regimes="lb,lb-diagonal", epochs=5, seeds="1"))
    ```
    """
    console = Console()

    def say(text):
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    regimes, build, data = prepare(options)
    folder = pathlib.Path(options.output)
    records.open_folder(folder, options.resolved(), UNCOMPARED)
    reported = "validation" if options.validation_fraction else "test"
    results = {name: [] for name in regimes}
    began, number, total = time.perf_counter(), 0, len(regimes) * len(options.seed_list)
    for seed in options.seed_list:
        for name, (regime, rate) in regimes.items():
            number += 1
            batch = regime.batch_size(options)
            say(f"[{number}/{total}] {regime.title}, seed {seed}: batch {batch}, rate {rate:g}")
            record, history = runs.train(
                folder / f"{name}-seed{seed}", build, regime, rate, options, seed, data, say
            )
            if record["diverged_epoch"] is not None:
                say(f"{regime.title}, seed {seed}: diverged at epoch {record['diverged_epoch']}")
            results[name].append((record, history))
    say(f"{time.perf_counter() - began:.0f} s")
    return report(folder, options, regimes, results, reported, console)
