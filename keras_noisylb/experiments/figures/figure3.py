"""Figure 3: training error per update, with the same learning rate for every regime."""

import dataclasses

import numpy as np

from keras_noisylb.experiments.figures import training
from keras_noisylb.experiments.figures.style import claim, grid_of_axes
from keras_noisylb.experiments.regimes import REGIMES

# Updates of each regime, updates between two points and checkpoints, and the learning rate.
SIZES = {
    "quick": {"updates": 240, "every": 8, "rate": 0.1},
    "paper": {"updates": 6000, "every": 12, "rate": 1.6},
}
MINUTES = {"quick": 4, "paper": 16_000}  # a seed on two CPU cores; paper: estimated
NAMES = (
    "sb", "lb", "lb-full", "lb-full-split", "lb-true", "lb-diagonal", "lb-diagonal-split",
    "lb-diagonal-a5",
)  # fmt: skip


def compute(setup, folder, say):
    """The numbers of the figure."""
    split = training.load(setup.options)
    options = dataclasses.replace(
        setup.options,
        epochs=setup.size["updates"] // setup.size["every"],  # an epoch is `every` updates here
        learning_rate=str(setup.size["rate"]),
        noise_fraction=1.0,
        quiet=True,
    )
    regimes = {name: [] for name in NAMES}
    for seed in options.seed_list:
        for name in NAMES:
            small = REGIMES[name].batch == "small"
            size = options.small_batch_size if small else options.large_batch_size
            view = training.EqualUpdates.of(split, size, setup.size["every"])
            _, record, history = training.trained(folder, name, options, seed, view, say)
            errors = [100 * (1 - epoch["accuracy"]) for epoch in history["epochs"]]
            say(f"  training error {errors[-1]:.1f} %")
            regimes[name].append({
                "seed": seed,
                "train_error": errors,
                "train_loss": [epoch["loss"] for epoch in history["epochs"]],
                "test_error": [100 * (1 - epoch["test_accuracy"]) for epoch in history["epochs"]],
                "diverged": record["diverged_epoch"] is not None,
            })
    return {
        "regimes": regimes, "every": setup.size["every"], "rate": setup.size["rate"],
        "updates": setup.size["updates"], "small_batch_size": options.small_batch_size,
        "large_batch_size": options.large_batch_size,
    }  # fmt: skip


def halfway(numbers):
    """The training error before the learning rate falls.

    Args:
        numbers: from `compute`.

    Returns:
        Dictionary of regime to array of the error in % of each seed: the mean over about an eighth
        of the updates, which ends at half of them, where the learning rate falls to a tenth.
    """
    last = numbers["updates"] // numbers["every"] // 2
    first = last - max(1, last // 4)
    return {
        name: np.array([np.mean(run["train_error"][first:last]) for run in runs])
        for name, runs in numbers["regimes"].items()
    }


def verdict(numbers):
    """The claims of the paper, and whether the numbers show them."""
    found = halfway(numbers)
    words = {
        name: f"{training.title(name)} {e.mean():.1f} % ({e.min():.1f}–{e.max():.1f})"
        for name, e in found.items()
    }

    # On a logarithmic scale, with every seed.
    middle = np.sqrt(found["sb"] * found["lb"])
    slow = {n: np.all(found[n] > middle) for n in ("lb-full", "lb-full-split", "lb-true")}
    diagonals = ("lb-diagonal", "lb-diagonal-split", "lb-diagonal-a5")
    fast = {n: np.all(found[n] < middle) for n in diagonals}

    def named(cases):
        return ", ".join(training.title(name) for name, true in cases.items() if true) or "none"

    return [
        claim(
            "LB converges much faster per update than SB.",
            np.all(found["lb"] < found["sb"] / 2),
            f"Training error before the rate first falls, mean (range) over seeds: "
            f"{words['lb']}, {words['sb']}.",
        ),
        claim(
            "LB + full Fisher and LB + true Fisher converge as slowly as SB.",
            list(slow.values()),
            f"{', '.join(words[n] for n in slow)}. Nearer to SB than to LB: {named(slow)}.",
        ),
        claim(
            "LB + diagonal Fisher converges about as fast as LB.",
            list(fast.values()),
            f"{', '.join(words[n] for n in fast)}. Nearer to LB than to SB: {named(fast)}.",
        ),
    ]


def draw(numbers):
    """Training error per update, mean over seeds."""
    figure, axes = grid_of_axes(1, 1, 10, 5)
    panel = axes[0, 0]
    seeds = 0
    for name, runs in numbers["regimes"].items():
        colour, line, _ = REGIMES[name].look
        seeds = max(seeds, len(runs))
        length = min(len(run["train_error"]) for run in runs)
        errors = np.array([run["train_error"][:length] for run in runs], dtype=float)
        updates = numbers["every"] * (np.arange(length) + 1)
        panel.fill_between(updates, errors.min(0), errors.max(0), color=colour, alpha=0.12)
        panel.plot(
            updates, errors.mean(0), color=colour, linestyle=line, linewidth=2,
            label=training.title(name),
        )  # fmt: skip
    for part in (1 / 2, 3 / 4):
        panel.axvline(part * numbers["updates"], color="0.6", linewidth=0.8)
    panel.set(
        xlabel="update",
        ylabel="training error (%)",
        ylim=(0, None),
        title=f"Training error per update, learning rate {numbers['rate']:g} for all; "
        f"mean and range of {seeds} seeds\n(vertical lines: the learning rate falls to a tenth)",
    )
    panel.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
