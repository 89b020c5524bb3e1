"""`noisylb compare`: trains every regime with every seed, then writes a table and a picture."""

import contextlib
import itertools
import pathlib
import time

from rich.console import Console

from keras_noisylb.experiments import estimate, folders, records, splits
from keras_noisylb.experiments.checks import check_batches, check_first_update
from keras_noisylb.experiments.figures import comparison as picture_of
from keras_noisylb.experiments.growth import GROWING
from keras_noisylb.experiments.journal import finished_epochs
from keras_noisylb.experiments.problem import named
from keras_noisylb.experiments.records import CompareError
from keras_noisylb.experiments.regimes import choose
from keras_noisylb.experiments.tables import comparison as table_of
from keras_noisylb.experiments.tables.text import markdown
from keras_noisylb.experiments.train import train_run
from keras_noisylb.optimizer import check_placement
from noisylb.protocol.names import counted
from noisylb.protocol.terminal import grid, print_table

UNCOMPARED = ("output", "data_dir", "quiet")  # they do not change a result


def prepare(options, problem=None):
    """Check options, model and data before anything is written.

    Args:
        options: the options of the run.
        problem: a `Problem`; `None` for that which the options name.

    Returns:
        Tuple `(regimes, build, data, identity, size)`: a dictionary that identifies model and data
        in the record, and the `estimate.Size` of the network.

    Raises:
        CompareError: if the options fit no regime, model or data.
    """
    try:
        problem = named(options) if problem is None else problem
        regimes = choose(options)
        for regime, rate in regimes.values():
            regime.batch_change(options)
            noise = regime.noise(options, rate)
            if noise is not None:
                check_placement(options.placement, noise)
        data = splits.load(options, problem.examples)
        check_batches(options, regimes, len(data.x_train))
        build = problem.builder(options, data.num_classes, data.x_train.shape[1:])
        network = problem.built(options, build)
        problem.check(options, network, data)
        size = estimate.size_of(network, data.x_train)
        for regime, rate in regimes.values():
            check_first_update(options, regime, rate, network, data.x_train)
    except (ValueError, OSError) as error:
        raise CompareError(str(error)) from error
    return regimes, build, data, problem.identity(network), size


def expected(folder, options, regimes, size, num_examples):
    """Estimate the time of the runs that are not finished.

    Args:
        folder: `pathlib.Path` of the comparison.
        options: its options.
        regimes: dictionary of name to `(regime, learning rate)`.
        size: the `estimate.Size` of the network.
        num_examples: number of training examples.

    Returns:
        Tuple of the number of runs, their seconds, and the device.
    """
    left = []
    for name, seed in itertools.product(regimes, options.seed_list):
        run = folder / f"{name}-seed{seed}"
        if not (run / "record.json").exists():
            left.append((regimes[name][0], 1 - finished_epochs(run) / options.epochs))

    def seconds(speed):
        total = 0.0
        for regime, part in left:
            graphs, epochs = estimate.training(options, regime, size, num_examples, speed)
            total += graphs + part * epochs
        return total

    speed = estimate.speed_for(seconds, estimate.measure)
    return len(left), seconds(speed), speed.device


def train_all(folder, options, regimes, build, data, say, scope=contextlib.nullcontext):
    """Train every regime with every seed.

    Args:
        folder: `pathlib.Path` of the comparison.
        options: its options.
        regimes: dictionary of name to `(regime, learning rate)`.
        build: function without arguments that builds the network.
        data: the `Split`.
        say: function that prints a line.
        scope: of a strategy, as in `train_run`.

    Returns:
        Dictionary of name to list of `(record, history)`.
    """
    results = {name: [] for name in regimes}
    began, number, total = time.perf_counter(), 0, len(regimes) * len(options.seed_list)
    for seed in options.seed_list:
        for name, (regime, rate) in regimes.items():
            number += 1
            batch, run = regime.batch_size(options), f"{regime.title(options)}, seed {seed}"
            say(f"[{number}/{total}] {run}: batch {batch}, rate {rate:g}")
            record, history = train_run(
                folder / f"{name}-seed{seed}",
                build,
                regime,
                rate,
                options,
                seed,
                data,
                say,
                scope=scope,
            )
            if record["diverged_epoch"] is not None:
                say(f"{run}: diverged at epoch {record['diverged_epoch']}")
            results[name].append((record, history))
    say(f"{time.perf_counter() - began:.0f} s")
    return results


def report(folder, options, regimes, results, console):
    """Write summary, table and picture, and show the table.

    Args:
        folder: `pathlib.Path` of the comparison.
        options: its options.
        regimes: dictionary of name to `(regime, learning rate)`.
        results: dictionary of name to list of `(record, history)`.
        console: where it is shown.

    Returns:
        The summary.
    """
    reported = "validation" if options.validation_fraction else "test"
    summary = table_of.summarize(regimes, results, options)
    records.write_json(folder / "summary.json", summary)
    header, rows = table_of.rows(summary, reported)
    caption = table_of.caption(options, reported)
    print_table(console, grid(header, rows, right=range(1, len(header)), caption=caption))
    records.write_text(folder / "table.md", markdown(header, rows, caption))
    picture = folder / "compare.png"
    picture_of.draw(
        picture,
        [
            (regime.title(options), regime.look, [history for _, history in results[name]])
            for name, (regime, _) in regimes.items()
        ],
        reported,
    )
    words = (
        f"Results: {folder / 'table.md'}, {picture.name}, summary.json, and a folder of each run"
    )
    console.print(words, soft_wrap=True, highlight=False)
    return summary


def compare(options, problem=None, confirm=None):
    """Train every regime with every seed for equal epochs, and report what was measured.

    Runs that are finished in the same folder are not trained again. It may get more regimes and
    seeds; the table has those of this call.

    Args:
        options: `noisylb.protocol.options.Options`, or an object with the same attributes.
        problem: the `Problem` to train; `None` for that which the options name.
        confirm: function that is called before the first training, with what is done, in words, and
            its estimated seconds. It raises an error to prevent it.

    Returns:
        Dictionary of regime name to the numbers of its row in the table.

    Raises:
        CompareError: if it cannot be run as asked; nothing was changed.
        OSError: if the results cannot be written; what was finished is kept.

    Example:
    ```python
    from noisylb.protocol.options import Options

    compare(Options(regimes="lb,lb-diagonal", epochs=5, seeds="1"))
    ```
    """
    console = Console()

    def say(text):
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    regimes, build, data, identity, size = prepare(options, problem)
    folder, values = pathlib.Path(options.output), {**options.resolved(), **identity}
    folders.check_folder(folder, values, UNCOMPARED, GROWING)
    if confirm is not None:
        number, seconds, device = expected(folder, options, regimes, size, len(data.x_train))
        if number:
            confirm(f"{counted(number, 'run')} on {device}", seconds)
    with folders.alone(folder):
        folders.open_folder(folder, values, UNCOMPARED, GROWING)
        results = train_all(folder, options, regimes, build, data, say)
        return report(folder, options, regimes, results, console)
