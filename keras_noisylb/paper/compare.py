"""The comparison: every regime with every seed, then a table and a picture."""

import pathlib
import time

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from keras_noisylb import data as data_sets
from keras_noisylb import models
from keras_noisylb.optimizer import check_placement
from keras_noisylb.paper import figures, records, runs, splits, tables
from keras_noisylb.paper.problem import Problem, named
from keras_noisylb.paper.records import CompareError
from keras_noisylb.paper.regimes import choose
from keras_noisylb.report import report as noise_report

__all__ = ["CompareError", "compare", "show_report"]

UNCOMPARED = ("output", "data_dir", "quiet")  # where things lie and what is printed


def builder(options, num_classes, input_shape):
    """The function that builds the network.

    Args:
        options: the options of the run.
        num_classes: number of its outputs.
        input_shape: of one image.

    Returns:
        Function without arguments to a Keras model.

    Raises:
        ValueError: if the model is unknown, or lacks an option that was asked for.
    """
    problem = Problem(models.get(options.model), False, None)
    return problem.builder(options, num_classes, input_shape)


def prepare(options, problem=None):
    """Check everything that can be checked before the first folder is written.

    Args:
        options: the options of the run.
        problem: a `Problem`; `None` for that which the options name.

    Returns:
        Tuple `(regimes, build, data, identity)`, the last one what a record says of model and data
        beside the options.

    Raises:
        CompareError: if the options fit no regime, model or data.
    """
    try:
        problem = named(options) if problem is None else problem
        regimes = choose(options)
        for regime, rate in regimes.values():
            regime.batch_change(options)
            if regime.noise is not None:
                check_placement(options.placement, regime.noise_at(options, rate))
        data = splits.load(options, problem.examples)
        build = problem.builder(options, data.num_classes, data.x_train.shape[1:])
        network = problem.built(options, build)
        problem.check(options, network, data)
    except (ValueError, OSError) as error:
        raise CompareError(str(error)) from error
    return regimes, build, data, problem.identity(network)


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


def compare(options, problem=None):
    """Train every regime with every seed for equal epochs, and report what was measured.

    What was finished before in the same folder is not trained again.

    Args:
        options: `noisylb.options.Options`, or an object with the same attributes.
        problem: the `Problem` to train; `None` for that which the options name.

    Returns:
        Dictionary of regime name to the numbers of its row in the table.

    Raises:
        CompareError: if it cannot be run as asked; nothing was changed.
        OSError: if the results cannot be written; what was finished is kept.

    Example:
    ```python
    from noisylb.options import Options

    compare(Options(regimes="lb,lb-diagonal", epochs=5, seeds="1"))
    ```
    """
    console = Console()

    def say(text):
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    regimes, build, data, identity = prepare(options, problem)
    folder = pathlib.Path(options.output)
    records.open_folder(folder, {**options.resolved(), **identity}, UNCOMPARED)
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


def network_of(options):
    """The network that the options name; data sets of the package are not loaded for it.

    Args:
        options: the options of the run.

    Raises:
        ValueError: if there is no such model or data set, or they do not fit.
        OSError: if the data cannot be read.
    """
    problem = named(options)
    if problem.examples is None:
        found = data_sets.info(options.dataset)
        shape, num_classes = splits.image_shape(options), found.num_classes
    else:
        split = splits.load(options, problem.examples)
        shape, num_classes = split.x_train.shape[1:], split.num_classes
    return problem.built(options, problem.builder(options, num_classes, shape))


def show_report(options):
    """Print how the noise of one regime will be computed.

    Args:
        options: `noisylb.options.ReportOptions` that name one regime.

    Raises:
        CompareError: if the regime has no noise, or the model cannot have it.
    """
    try:
        regimes = choose(options)
        (regime, rate), *more = regimes.values()
        if more or regime.noise is None:
            raise ValueError(
                f"a report is about one regime with noise. Received: {', '.join(regimes)}. "
                "Change --regime."
            )
        noise, size = regime.noise_at(options, rate), options.large_batch_size
        result = noise_report(network_of(options), noise, size, memory=options.memory)
    except (ValueError, OSError) as error:
        raise CompareError(str(error)) from error
    console = Console()
    console.print(f"{regime.title}: {options.model}, batch {options.large_batch_size}")
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in ("layer", "variables", "statistic"):
        table.add_column(name)
    for name in ("exact", "MB", "work"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result.rows:
        exact = "yes" if row.exact else "no"
        table.add_row(
            row.layer, row.shapes, row.method, exact, f"{row.megabytes:.2f}", f"{row.work:.2f}"
        )
    console.print(table)
    console.print(
        f"Whole step: {result.work:.2f} times the multiplications of the plain step, statistic of "
        f"{result.megabytes:.2f} MB."
    )
    for note in result.notes:
        console.print(note, markup=False, highlight=False)
