"""The learning rate of each cell, best on a held-out part of the training set."""

import dataclasses
import json
import math
import pathlib
from dataclasses import dataclass

import numpy as np

from keras_noisylb.paper import plan
from keras_noisylb.paper.records import CompareError

HELD_OUT = 1 / 6  # of the training set: 10,000 of MNIST's 60,000 images


def grid(table, preset, output, rows=None, regimes=None, seeds=1, factors=(0.5, 1.0, 2.0)):
    """The runs of a tuning: every cell of a table at every rate, with every seed.

    Args:
        table: "2" or "3".
        preset: a `Preset`.
        output: folder of all results.
        rows: names of its rows, separated by commas; `None` for all.
        regimes: names of its regimes, likewise.
        seeds: number of seeds, counted from 0.
        factors: what the recipe's rate is multiplied by, one run for each.

    Returns:
        List of `Run`, which report on images that they were not trained on.

    Raises:
        CompareError: if there is no such table, row or regime, or a factor cannot be used.
    """
    if not factors or not all(0 < factor < math.inf for factor in factors):
        raise CompareError(
            f"--factors received {factors}, expected positive numbers. Change --factors."
        )
    folder = pathlib.Path(output) / preset.name
    runs = []
    for recipe in plan.cells(table, preset, rows, regimes):
        for factor in sorted(set(factors)):
            rate = float(f"{recipe.learning_rate * factor:.4g}")
            tried = dataclasses.replace(recipe, learning_rate=rate, validation_fraction=HELD_OUT)
            runs += [
                plan.Run.of(tried, seed, folder, f"-rate{rate:g}")
                for seed in plan.seed_range(seeds)
            ]
    return runs


@dataclass(frozen=True)
class Tuned:
    """What was found for one cell.

    Args:
        name: of the recipe.
        accuracies: dictionary of learning rate to the mean held-out accuracy over the seeds that
            are finished; `None` where one of them diverged.
    """

    name: str
    accuracies: dict

    @property
    def learning_rate(self):
        """The best rate, the lowest of equals; `None` where all diverged."""
        known = {rate: found for rate, found in self.accuracies.items() if found is not None}
        return max(sorted(known), key=known.get) if known else None

    @property
    def at_an_end(self):
        """Whether the best rate is the lowest or highest tried, so that a better may lie beyond."""
        return self.learning_rate in {min(self.accuracies), max(self.accuracies)}


def summarize(runs, records):
    """The best rates.

    Args:
        runs: list of `Run`.
        records: list of their records, `None` for those that are not finished.

    Returns:
        List of `Tuned`, of the cells of which anything is finished.
    """
    found = {}
    for run, record in zip(runs, records, strict=True):
        if record is None:
            continue
        metrics, rates = record["metrics"], found.setdefault(run.recipe.name, {})
        accuracy = None if metrics["diverged_epoch"] else metrics["test_accuracy"]
        rates.setdefault(run.recipe.learning_rate, []).append(accuracy)
    return [
        Tuned(name, {r: None if None in a else float(np.mean(a)) for r, a in rates.items()})
        for name, rates in found.items()
    ]


def to_dict(cells, preset):
    """What was found, as plain data for a file.

    Args:
        cells: list of `Tuned`.
        preset: the `Preset` of the runs.
    """
    return {
        "preset": preset.name,
        "held_out": HELD_OUT,
        "rates": {cell.name: cell.learning_rate for cell in cells if cell.learning_rate},
        "accuracies": {cell.name: list(cell.accuracies.items()) for cell in cells},
    }


def read(path):
    """The rates of a file that `noisylb tune` has written.

    Args:
        path: of the file.

    Returns:
        Dictionary of recipe name to learning rate.

    Raises:
        CompareError: if it has none.
        OSError: if it cannot be read.
    """
    try:
        rates = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))["rates"]
        if not all(0 < float(rate) < math.inf for rate in rates.values()):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CompareError(
            f'--rates received {path}, expected a JSON file such as {{"rates": {{"mnist-mlp/lb": '
            "0.4}}, all positive. `noisylb tune` writes one."
        ) from None
    return rates
