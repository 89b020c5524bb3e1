"""Figure temperature: accuracy against temperature, of the runs of `noisylb table small`."""

import json
import pathlib

import numpy as np
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from keras_noisylb.experiments import records
from keras_noisylb.experiments.figures.style import grid_of_axes
from keras_noisylb.experiments.queue.run import KEYS, RUN, Run, recipe_of
from keras_noisylb.experiments.records import CompareError
from keras_noisylb.experiments.regimes import REGIMES
from keras_noisylb.experiments.tables import small

SETTINGS = {  # of rows of `noisylb table small`
    "cifar10-small": "ResNet8, batches of 512 / 32",
    "cifar10-lenet-2048": "LeNet without normalisation, 2048 / 32",
    "cifar10-lenet-clipped": "The same, clipped to the norm 1, weight decay 0.002",
}
DRAWN = {"cifar10-lenet-clipped": {"clipping": 1.0, "weight_decay": 2e-3}}  # others: all recipes

# Where words stand beside their points: above the best seed, or at the mean.
ABOVE = max, {"xytext": (0, 4), "horizontalalignment": "center"}
LEFT = np.mean, {"xytext": (-7, -9), "horizontalalignment": "right"}
RIGHT = np.mean, {"xytext": (7, -6), "horizontalalignment": "left"}
PLACES = {"sb": RIGHT, "lb": LEFT, "lb-diagonal-split": RIGHT}


def compute(setup, folder, say):
    """The accuracies of the finished runs.

    Args:
        setup: a `FigureSetup`, whose `tables` is the `--output` of `noisylb table small`.
        folder: not used.
        say: function that prints a line.

    Returns:
        Dictionary of plain data: the lines of `tables.small.summarize`, and the versions of the
        runs.

    Raises:
        CompareError: if nothing is finished.
    """
    runs, found = [], []
    tables = pathlib.Path(setup.tables) / "small"
    for path in (path for row in SETTINGS for path in sorted(tables.glob(f"{row}/*/{RUN}"))):
        record = records.read_json(path, KEYS, say)
        if record is not None:
            config = record["config"]
            runs.append(Run(recipe_of(config), tuple(config["seeds"]), path.parent))
            found.append(record)
    lines = [
        line
        for line in small.summarize(runs, found)
        if line["test"] is not None and DRAWN.get(line["row"], {}).items() <= line.items()
    ]
    if not lines:
        raise CompareError(
            f"--tables received {setup.tables}, in which no run of {' or '.join(SETTINGS)} is "
            "finished. Train them first: noisylb table small --data-dir DIR, or give the folder "
            "of another --output."
        )
    order = list(REGIMES)
    lines.sort(key=lambda line: (order.index(line["regime"]), line["temperature"]))
    say(f"{len(lines)} recipes")
    versions = sorted({json.dumps(record["versions"], sort_keys=True) for record in found})
    return {"lines": lines, "versions_of_runs": [json.loads(text) for text in versions]}


def verdict(numbers):
    """The paper has no such figure, and so no claims."""
    return []


def draw(numbers):
    """Test accuracy against the temperature, one panel for each setting. Dots are the seeds."""
    found = {line["row"] for line in numbers["lines"]}
    rows = [row for row in SETTINGS if row in found]
    figure, axes = grid_of_axes(1, len(rows), 5.4 * len(rows), 4.4)
    for panel, row in zip(axes.flat, rows, strict=True):
        lines = [line for line in numbers["lines"] if line["row"] == row]
        usual = min(line["warmup"] for line in lines)
        for regime in dict.fromkeys(line["regime"] for line in lines):
            points = [line for line in lines if line["regime"] == regime]
            x = [1e3 * line["temperature"] for line in points]
            y = [line["test"] for line in points]
            errors = [standard_error(line) for line in points]
            colour, _, marker = REGIMES[regime].look
            panel.errorbar(x, y, errors, color=colour, linestyle="none", capsize=3)
            # Over the words, which are over the bars.
            panel.plot(x, y, marker, color=colour, markersize=7, zorder=4, label=points[0]["title"])
            for line, across in zip(points, x, strict=True):
                panel.plot(
                    [across] * line["seeds"], line["test_by_seed"], ".", color=colour, alpha=0.5,
                    markersize=4,
                )  # fmt: skip
            height, place = PLACES.get(regime, ABOVE)
            for (words, across), accuracies in labels(points, usual).items():
                panel.annotate(
                    words if regime in PLACES else words.replace(", ", "\n"),
                    (across, height(accuracies)), textcoords="offset points", fontsize=7.5,
                    color=colour, path_effects=[withStroke(linewidth=2, foreground="white")],
                    zorder=3, **place,
                )  # fmt: skip
        panel.set(
            xscale="log", xlabel="temperature at the peak rate, 10⁻³",
            ylabel="test accuracy (%)", title=SETTINGS[row],
        )  # fmt: skip
        panel.margins(x=0.3, y=0.13)  # room for the words beside the points
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.xaxis.set_minor_formatter(NullFormatter())
    axes.flat[0].legend(frameon=False, loc="best")
    return figure


def labels(points, usual):
    """The words beside the points of a regime; one label for those that differ in nothing it says.

    Args:
        points: lines of `tables.small.summarize`.
        usual: part of the training with warm-up that needs no mention.

    Returns:
        Dictionary of words and horizontal position to the accuracies of all seeds there.
    """
    found = {}
    for line in points:
        words = f"η {line['rate']:g}"
        if line["warmup"] > usual:
            words += f", warm-up {line['warmup']:g}"
        if line["multiplier"] is not None:
            words += f", λ {line['multiplier']:g}"
        found.setdefault((words, 1e3 * line["temperature"]), []).extend(line["test_by_seed"])
    return found


def standard_error(line):
    """The standard error of a test accuracy; 0 where there is one seed only.

    Args:
        line: of `tables.small.summarize`.
    """
    spread = line["test_std"]
    return 0.0 if spread is None else spread / np.sqrt(line["seeds"])
