"""Figure "temperature": accuracy against the temperature of the training, for every regime."""

import numpy as np

from keras_noisylb.paper.published.style import LOOKS, MARKERS, grid_of_axes
from keras_noisylb.paper.regimes import REGIMES


def draw(lines):
    """Draw the accuracies of one row of `noisylb table small`.

    Args:
        lines: those of `temperatures.summarize` that have a temperature and an accuracy.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    figure, axes = grid_of_axes(1, 2, 11, 4.4, sharex=True)
    parts = {"held_out": "held-out training images", "test": "test images"}
    for panel, (part, title) in zip(axes.flat, parts.items(), strict=True):
        for regime in dict.fromkeys(line["regime"] for line in lines):
            points = [line for line in lines if line["regime"] == regime]
            x = [1e3 * line["temperature"] for line in points]
            y = [line[part] for line in points]
            errors = [standard_error(line, part) for line in points]
            colour, _ = LOOKS[regime]
            panel.errorbar(
                x, y, errors, color=colour, marker=MARKERS[regime], linestyle="none", capsize=3,
                markersize=7, label=REGIMES[regime].title,
            )  # fmt: skip
            for line, across, up in zip(points, x, y, strict=True):
                words = f"{line['rate']:g}"
                if line["multiplier"] is not None:
                    words += f", λ {line['multiplier']:g}"
                panel.annotate(
                    words, (across, up), xytext=(6, 4), textcoords="offset points", fontsize=7.5,
                    color=colour,
                )  # fmt: skip
        panel.set(
            xscale="log", xlabel="temperature at the peak rate, 10⁻³",
            ylabel="accuracy (%)", title=f"Accuracy on {title}",
        )  # fmt: skip
    axes.flat[0].legend(frameon=False, loc="lower right")
    return figure


def standard_error(line, part):
    """The standard error of an accuracy; 0 where one seed does not tell.

    Args:
        line: of `temperatures.summarize`.
        part: "held_out" or "test".
    """
    spread = line[f"{part}_std"]
    return 0.0 if spread is None else spread / np.sqrt(line["seeds"])
