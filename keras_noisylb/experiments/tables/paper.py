"""The tables of accuracies: ours beside the paper's, as Markdown and CSV."""

import numpy as np
from scipy import stats

from keras_noisylb.experiments.regimes import REGIMES, title_of
from keras_noisylb.experiments.tables.text import shown
from noisylb.protocol.paper import PUBLISHED

LEVEL = 0.05
FIELDS = (
    "row", "dataset", "model", "regime", "title", "rate", "seeds", "diverged", "mean", "std",
    "paper", "difference", "welch_t", "welch_df", "welch_p", "beats_lb",
)  # fmt: skip


def welch(first, second):
    """Welch's test of whether the mean of the first sample is larger; the variances may differ.

    Returns:
        Tuple of t, the degrees of freedom and the one-sided p; `None` where a sample has fewer
        than two numbers or neither has any variance.

    Example:
    >>> round(welch([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])[0], 4)
    2.4495
    """
    if min(len(first), len(second)) < 2 or not np.std(first) + np.std(second):
        return None
    result = stats.ttest_ind(first, second, equal_var=False, alternative="greater")
    return float(result.statistic), float(result.df), float(result.pvalue)


def summarize(runs, records):
    """The numbers of a table, one line for each cell.

    Args:
        runs: list of `Run`.
        records: list of their records, `None` for those that are not finished.

    Returns:
        List of dictionaries with the keys `FIELDS`; accuracies in percent. A number that
        needs more runs is `None`.
    """
    found = {}  # of cell to its recipe, its accuracies and the number of runs that diverged
    for run, record in zip(runs, records, strict=True):
        key = run.recipe.row, run.recipe.regime
        _, accuracies, diverged = found.setdefault(key, (run.recipe, [], []))
        if record is not None:
            metrics = record["metrics"]
            ended = metrics["diverged_epoch"] is None
            (accuracies if ended else diverged).append(metrics["test_accuracy"])
    lines = []
    for (row, regime), (recipe, accuracies, diverged) in found.items():
        percent = [100 * accuracy for accuracy in accuracies]
        mean = float(np.mean(percent)) if percent else None
        paper = PUBLISHED.get(row, {}).get(regime)
        known = mean is not None and paper is not None
        _, others, _ = found.get((row, "lb"), (None, [], []))
        test = welch(accuracies, others) if REGIMES[regime].tested else None
        values = (
            row, recipe.dataset, recipe.model, regime, title_of(recipe), recipe.learning_rate,
            len(percent), len(diverged), mean,
            float(np.std(percent, ddof=1)) if len(percent) > 1 else None, paper,
            mean - paper if known else None, *(test or (None, None, None)),
            test[2] < LEVEL if test else None,
        )  # fmt: skip
        lines.append(dict(zip(FIELDS, values, strict=True)))
    return lines


def cells(lines):
    """The numbers as they are shown.

    Args:
        lines: of `summarize`.

    Returns:
        Tuple of the header and a list of rows, of strings.
    """
    header = ("row", "regime", "rate", "ours, %", "seeds", "paper", "diff.", "beats LB?")
    rows = []
    for line in lines:
        ours = shown(line["mean"], ".2f")
        if line["std"] is not None:
            ours += f" ± {line['std']:.2f}"
        if line["diverged"]:
            ours += f" ({line['diverged']} diverged)"
        verdict = ""
        if REGIMES[line["regime"]].tested:
            verdict = "–"
            if line["beats_lb"] is not None:
                verdict = "yes, " * line["beats_lb"] + f"p = {line['welch_p']:.2g}"
        difference = shown(line["difference"], "+.2f")
        paper = shown(line["paper"], ".2f")
        rate = f"{line['rate']:g}"
        rows.append((
            line["row"],
            line["title"],
            rate,
            ours,
            str(line["seeds"]),
            paper,
            difference,
            verdict,
        ))
    return header, rows


def caption(table, scale, tuned, multiplier=None):
    """The caption of the table.

    Args:
        table: "2" or "3".
        scale: the `Scale` of the runs.
        tuned: whether the learning rates were given in place of the recipes'.
        multiplier: λ of the noises that was given in place of the recipes'; `None` for theirs.

    Returns:
        A string.
    """
    size = "at the paper's size"
    if scale.name != "paper":
        size = (
            f"preset {scale.name}: {scale.epochs:g} of the epochs and "
            f"{scale.train_size or 'all'} training images, so the paper's numbers are no target"
        )
    strength = "" if multiplier is None else f" λ: {multiplier}."
    return (
        f"Table {table}, {size}.{strength} rate: peak learning rate, "
        f"{'as given by --rates' if tuned else 'of the recipe'}. ours: test accuracy after the "
        "last epoch, mean ± standard deviation over the seeds that did not diverge. beats LB?: "
        f"p of Welch's one-sided test, yes below {LEVEL:.0%}; it needs two seeds."
    )
