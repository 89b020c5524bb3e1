"""The table of `noisylb table small`: accuracy, temperature, and what the noise adds to LB."""

import numpy as np
from scipy import stats

from keras_noisylb.experiments.regimes import REGIMES, title_of
from keras_noisylb.experiments.tables.paper import welch
from keras_noisylb.experiments.tables.text import shown
from keras_noisylb.schedules import noise_temperature

FIELDS = (
    "row", "regime", "title", "rate", "warmup", "multiplier", "noise_part", "weight_decay",
    "clipping", "temperature", "seeds", "diverged", "train", "held_out", "held_out_std", "test",
    "test_std", "gain", "gain_se", "paired_p", "welch_p", "test_by_seed",
)  # fmt: skip


def temperature(recipe):
    """The temperature of a recipe at its peak rate; of BatchChange, that of its small batches.

    Args:
        recipe: a `Recipe`.

    Returns:
        A float; `None` with AdamW, whose division of the gradient it does not describe. With
        clipping, the training is colder than that where the gradient is clipped.
    """
    if recipe.optimizer is not None:
        return None
    small, large = recipe.small_batch_size, recipe.large_batch_size
    if REGIMES[recipe.regime].batch == "change":
        return noise_temperature(recipe.small_learning_rate, small, momentum=recipe.momentum)
    if REGIMES[recipe.regime].batch == "small":
        return noise_temperature(recipe.learning_rate, small, momentum=recipe.momentum)
    return noise_temperature(
        recipe.learning_rate,
        large,
        small_batch_size=small,
        multiplier=recipe.multiplier or 0.0,
        momentum=recipe.momentum,
    )


def summarize(runs, records):
    """One line for each recipe.

    The gain is the difference of the test accuracy to that of LB with the same rate, warm-up, decay
    and clipping, averaged over the seeds that both have: the same initial weights and order of the
    images.
    Where a row has one recipe of LB alone, as the best of a search, it is the difference to that.

    Args:
        runs: list of `Run`.
        records: list of their records, `None` for those that are not finished.

    Returns:
        List of dictionaries with the keys `FIELDS`; accuracies in percent. A number that needs
        more runs is `None`.
    """
    found = {}  # of recipe name to the recipe and dictionaries of seed to metrics
    for run, record in zip(runs, records, strict=True):
        recipe, metrics = found.setdefault(run.recipe.name, (run.recipe, {}))
        if record is not None:
            metrics[record["seed"]] = record["metrics"]

    def training(recipe):
        shared = recipe.learning_rate, recipe.warmup_epochs, recipe.weight_decay
        return recipe.row, *shared, recipe.global_clipnorm

    plain = {training(r): metrics for r, metrics in found.values() if r.regime == "lb"}
    lines = []
    for recipe, metrics in found.values():
        of_row = [base for (row, *_), base in plain.items() if row == recipe.row]
        base = of_row[0] if len(of_row) == 1 else plain.get(training(recipe), {})
        lines.append(line(recipe, metrics, {} if recipe.regime in {"sb", "lb"} else base))
    return lines


def line(recipe, metrics, base):
    """The numbers of one recipe.

    Args:
        recipe: a `Recipe`.
        metrics: dictionary of seed to metrics.
        base: the same of LB with the same rate, warm-up, decay and clipping; empty if there is
            none.

    Returns:
        Dictionary with the keys `FIELDS`.
    """

    def percent(found, key):
        ended = {s: m for s, m in found.items() if m["diverged_epoch"] is None}
        return {s: 100 * m[key] for s, m in ended.items() if m.get(key) is not None}

    def mean(values):
        return float(np.mean(values)) if len(values) else None

    def spread(values):
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    train, held_out, test = (
        list(percent(metrics, f"{part}_accuracy").values())
        for part in ("train", "held_out", "test")
    )
    ours, others = percent(metrics, "test_accuracy"), percent(base, "test_accuracy")
    gains = [ours[seed] - others[seed] for seed in ours if seed in others]
    several = len(gains) > 1 and np.std(gains) > 0
    paired = stats.ttest_1samp(gains, 0.0, alternative="greater").pvalue if several else None
    test_of_means = welch(list(ours.values()), list(others.values()))
    values = (
        recipe.row, recipe.regime, title_of(recipe), recipe.learning_rate,
        recipe.warmup_epochs / recipe.epochs, recipe.multiplier,
        (recipe.noise_epochs or recipe.small_epochs or 0) / recipe.epochs or None,
        recipe.weight_decay, recipe.global_clipnorm, temperature(recipe), len(test),
        len(metrics) - len(test), mean(train), mean(held_out), spread(held_out), mean(test),
        spread(test), mean(gains),
        float(stats.sem(gains)) if len(gains) > 1 else None,
        None if paired is None else float(paired), test_of_means and test_of_means[2], test,
    )  # fmt: skip
    return dict(zip(FIELDS, values, strict=True))


def cells(lines):
    """The numbers as they are shown.

    Args:
        lines: of `summarize`.

    Returns:
        Tuple of the header and a list of rows, of strings.
    """

    def with_spread(line, key):
        spread = line[f"{key}_std"]
        return shown(line[key], ".2f") + (f" ± {spread:.2f}" if spread is not None else "")

    header = (
        "row", "regime", "rate", "warm-up", "λ", "part", "decay", "clip", "T, 10⁻³", "seeds",
        "train %", "held-out %", "test %", "over LB", "p",
    )  # fmt: skip
    rows = []
    for line in lines:
        gain = shown(line["gain"], "+.2f")
        if line["gain_se"] is not None:
            gain += f" ± {line['gain_se']:.2f}"
        seeds = str(line["seeds"])
        if line["diverged"]:
            seeds += f" ({line['diverged']} diverged)"
        rows.append((
            line["row"], line["title"], f"{line['rate']:g}",
            f"{line['warmup']:g}", shown(line["multiplier"], "g"), shown(line["noise_part"], "g"),
            f"{line['weight_decay']:g}", shown(line["clipping"], "g"),
            shown(line["temperature"] and 1e3 * line["temperature"], ".3g"), seeds,
            shown(line["train"], ".1f"), with_spread(line, "held_out"), with_spread(line, "test"),
            gain, shown(line["paired_p"], ".2g"),
        ))  # fmt: skip
    return header, rows


def caption():
    """The caption of the table."""
    return (
        "rate: peak learning rate. warm-up: part of the training. λ: multiplier of the noise. "
        "part: of the training with noise, or with small batches. clip: norm to which the gradient "
        "is clipped. T: temperature at the peak rate, of a training that is not clipped. "
        "held-out %, test %: accuracy after the last epoch, mean ± standard deviation over seeds; "
        "choices are made by the first. over LB: test accuracy minus that of LB with the same "
        "seed, rate, warm-up, decay and clip (of the only LB, where a row has one), mean ± "
        "standard error. p: of the one-sided paired t-test."
    )
