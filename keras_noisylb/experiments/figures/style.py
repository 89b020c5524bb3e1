"""What figures share: axes, and the judgement of a claim."""

import numpy as np
from matplotlib.figure import Figure


def grid_of_axes(rows, columns, width, height, **options):
    """A figure and its axes.

    Args:
        rows: of axes.
        columns: of axes.
        width: of the figure, in inches.
        height: of the figure, in inches.
        **options: those of `matplotlib.figure.Figure.subplots`.

    Returns:
        Tuple of the figure and an array of axes.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for panel in axes.flat:
        panel.grid(alpha=0.3)
        panel.set_axisbelow(True)
    return figure, axes


def claim(text, seen, found):
    """One claim of the paper beside what was measured.

    Args:
        text: what the paper says.
        seen: whether it is seen, or an array of that for several cases.
        found: the numbers, in words.

    Returns:
        Dictionary for the JSON of a figure.
    """
    word = "yes" if np.all(seen) else "partly" if np.any(seen) else "no"
    return {"claim": text, "seen": word, "found": found}
