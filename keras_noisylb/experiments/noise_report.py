"""`noisylb report`: how the noise of one regime will be computed."""

from rich.console import Console

from keras_noisylb import data as data_sets
from keras_noisylb.experiments import splits
from keras_noisylb.experiments.problem import named
from keras_noisylb.experiments.records import CompareError
from keras_noisylb.experiments.regimes import choose
from keras_noisylb.reporting.report import report
from noisylb.protocol.terminal import grid, print_table


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


def show(options):
    """Print how the noise of one regime will be computed.

    Args:
        options: `noisylb.protocol.options.ReportOptions` that name one regime.

    Raises:
        CompareError: if the regime has no noise, or the model cannot have it.
    """
    try:
        regimes = choose(options)
        (regime, rate), *more = regimes.values()
        noise = regime.noise(options, rate)
        if more or noise is None:
            raise ValueError(
                f"a report is about one regime with noise. Received: {', '.join(regimes)}. "
                "Change --regime."
            )
        size = options.large_batch_size
        result = report(network_of(options), noise, size, memory=options.memory)
    except (ValueError, OSError) as error:
        raise CompareError(str(error)) from error
    console = Console()
    console.print(f"{regime.title(options)}: {options.model}, batch {options.large_batch_size}")
    rows = [
        (
            row.layer, row.shapes, row.method, "yes" if row.exact else "no",
            f"{row.megabytes:.2f}", f"{row.work:.2f}",
        )
        for row in result.rows
    ]  # fmt: skip
    header = ("layer", "variables", "statistic", "exact", "MB", "work")
    print_table(console, grid(header, rows, right=(3, 4, 5)))
    console.print(
        f"Whole step: {result.work:.2f} times the multiplications of the plain step, statistic of "
        f"{result.megabytes:.2f} MB."
    )
    for note in result.notes:
        console.print(note, markup=False, highlight=False)
