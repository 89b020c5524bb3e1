"""The picture of a comparison."""

import numpy as np
from matplotlib.figure import Figure

from keras_noisylb.experiments import records


def mean_of(curves):
    """The mean over seeds, as far as at least one seed came.

    Args:
        curves: list of sequences of numbers, `None` where not finite.

    Returns:
        Array of the longest curve's length.
    """
    padded = np.full((len(curves), max(map(len, curves))), np.nan)
    for row, curve in zip(padded, curves, strict=True):
        row[: len(curve)] = np.array(curve, dtype=float)
    known = np.isfinite(padded)
    total = np.where(known, padded, 0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)


def smoothed(curve, parts=100):
    """Means of consecutive parts of a curve.

    Args:
        curve: array.
        parts: the largest number of parts.

    Returns:
        Tuple of the positions, counted from 1, and the means.
    """
    pieces = np.array_split(np.arange(len(curve)), min(parts, len(curve)))
    positions = np.array([piece.mean() + 1 for piece in pieces])
    return positions, np.array([curve[piece].mean() for piece in pieces])


def draw(path, lines, reported):
    """Draw training loss per update and accuracy per epoch.

    Args:
        path: `pathlib.Path` of the PNG.
        lines: list of `(title, look, histories)`: the `Look` of a regime, and one history for each
            seed.
        reported: what the accuracy was measured on.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    for title, (colour, style, _), seeds in lines:
        thin = {"color": colour, "linewidth": 0.6, "alpha": 0.3}
        thick = {"color": colour, "linewidth": 2, "linestyle": style, "label": title}
        curves = [history["batch_loss"] for history in seeds if history["batch_loss"]]
        if curves:
            for curve in curves:
                losses.plot(np.arange(1, len(curve) + 1), np.array(curve, dtype=float), **thin)
            losses.plot(*smoothed(mean_of(curves)), **thick)
        evaluated = [[epoch for epoch in h["epochs"] if "test_accuracy" in epoch] for h in seeds]
        curves = [[epoch["test_accuracy"] for epoch in found] for found in evaluated if found]
        if curves:
            epochs = [epoch["epoch"] for epoch in max(evaluated, key=len)]
            for curve in curves:
                accuracies.plot(epochs[: len(curve)], 100 * np.array(curve, dtype=float), **thin)
            mean = 100 * mean_of(curves)
            accuracies.plot(epochs[: len(mean)], mean, **thick)
    losses.set(
        xscale="log",
        yscale="log",
        xlabel="update",
        ylabel="training loss of the batch",
        title="Training loss per update",
    )
    accuracies.set(
        xlabel="epoch",
        ylabel=f"{reported} accuracy (%)",
        title=f"{reported.capitalize()} accuracy per epoch",
    )
    accuracies.xaxis.get_major_locator().set_params(integer=True)
    for axes in (losses, accuracies):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.text(
        0.5,
        -0.03,
        "Thick: mean over seeds (loss: over parts of 1 % of the run). Thin: each seed.",
        ha="center",
        fontsize=9,
        color="0.3",
    )
    with records.replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, bbox_inches="tight")
