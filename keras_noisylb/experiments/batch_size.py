"""`noisylb batch-size`: `advise` for the model and the data of the command line."""

import keras
from rich.console import Console

from keras_noisylb.advising.advise import advise
from keras_noisylb.experiments import splits
from keras_noisylb.experiments.problem import named
from keras_noisylb.experiments.progress import has_bars
from keras_noisylb.experiments.records import CompareError
from keras_noisylb.experiments.train import optimizer_of
from noisylb.protocol.terminal import grid, print_table


def show(options, **arguments):
    """Measure and print what `advise` finds.

    Args:
        options: `noisylb.protocol.options.Options`; the current training is that of regime SB.
        **arguments: arguments of `advise` other than model, data, batch size and rate.

    Raises:
        CompareError: if it cannot be measured.
    """
    try:
        problem = named(options)
        data = splits.load(options, problem.examples)
        build = problem.builder(options, data.num_classes, data.x_train.shape[1:])
        problem.check(options, problem.built(options, build), data)
        keras.utils.set_random_seed(arguments["seed"])
        advice = advise(
            build,
            data.x_train,
            data.y_train,
            batch_size=options.small_batch_size,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            optimizer=optimizer_of(options, options.learning_rates["sb"]),
            verbose=1 if has_bars() and not options.quiet else 0,
            **arguments,
        )
    except (ValueError, OSError) as error:
        raise CompareError(str(error)) from error
    console = Console(highlight=False)
    print_table(console, _table(options, advice))
    for line in (*advice.tried(), *advice.advised()):
        console.print(line.strip(), markup=False)


def _table(options, advice):
    caption = (
        f"Gradient noise scale of {options.model} on {options.dataset}, in examples, with its "
        f"{advice.late.confidence:.0%} interval; tr Σ and ‖G‖² with their standard errors."
    )
    header = ("updates", "noise scale", "from", "to", "tr Σ", "‖G‖²")
    rows = [
        (
            str(updates),
            *(f"{number:.4g}" for number in (found.value, found.lower, found.upper)),
            f"{found.trace:.3g} ± {found.trace_error:.1g}",
            f"{found.squared_norm:.3g} ± {found.squared_norm_error:.1g}",
        )
        for updates, found in zip(advice.updates, (advice.early, advice.late), strict=True)
    ]
    return grid(header, rows, right=range(len(header)), caption=caption)
