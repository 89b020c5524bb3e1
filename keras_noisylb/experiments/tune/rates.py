"""The learning rate of each cell that is best on a held-out part of the training set."""

import dataclasses
import json
import math
import os
import pathlib
from dataclasses import dataclass

import numpy as np

from keras_noisylb.experiments import records
from keras_noisylb.experiments.queue import plan
from keras_noisylb.experiments.queue.run import KEYS, RUN, Run, recipe_of
from keras_noisylb.experiments.records import CompareError
from noisylb.protocol.paper import RECIPES

HELD_OUT = 1 / 6  # of the training set: 10,000 of MNIST's 60,000 images


def tried(recipe, rate):
    """The recipe that is trained to try a learning rate.

    Args:
        recipe: a `Recipe`.
        rate: peak learning rate.

    Returns:
        A `Recipe` that reports on images that it was not trained on.
    """
    return dataclasses.replace(recipe, learning_rate=rate, validation_fraction=HELD_OUT)


def grid(table, scale, output, rows=None, regimes=None, seeds=1, factors=(0.5, 1.0, 2.0)):
    """The runs of a tuning: every cell of a table at every rate, with every seed.

    Args:
        table: "2" or "3".
        scale: a `Scale`.
        output: folder of all results.
        rows: names of its rows, separated by commas; `None` for all.
        regimes: names of its regimes, likewise.
        seeds: number of seeds, counted from 0, or a list of seeds such as "4,7".
        factors: factors of the recipe's rate, one run for each.

    Returns:
        List of `Run`, which report on images that they were not trained on.

    Raises:
        CompareError: if there is no such table, row or regime, or a factor cannot be used.
    """
    if not factors or not all(0 < factor < math.inf for factor in factors):
        raise CompareError(
            f"--factors received {factors}, expected positive numbers. Change --factors."
        )
    folder = pathlib.Path(output) / scale.name
    runs = []
    for recipe in plan.cells(table, scale, rows, regimes):
        for factor in sorted(set(factors)):
            rate = float(f"{recipe.learning_rate * factor:.4g}")
            runs += [
                Run.of(tried(recipe, rate), seed, folder, f"-rate{rate:g}")
                for seed in plan.seed_list(seeds)
            ]
    return runs


@dataclass(frozen=True)
class Tuned:
    """The result for one cell.

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
        """Whether the best rate is the lowest or highest tried: a better may lie outside."""
        return self.learning_rate in {min(self.accuracies), max(self.accuracies)}


def finished(folder, scale, say):
    """The finished runs of a folder, of this command and of earlier ones.

    Args:
        folder: `pathlib.Path` of all runs of the scale.
        scale: a `Scale`.
        say: function that prints a line.

    Returns:
        List of records, whose recipes are those of today but for rate and seed; others are named
        and left out.
    """

    def of_today(config, path):
        # Its fields may be those of another version, so only its name and its rate are taken.
        recipe = RECIPES.get(f"{config.get('row')}/{config.get('regime')}")
        if recipe is None:
            return {}
        recipe = tried(scale.apply(recipe), config.get("learning_rate"))
        return Run(recipe, config.get("seeds", ()), path.parent).config

    found = []
    for path in sorted(folder.glob(f"*/*/{RUN}")):
        record = records.read_json(path, KEYS, say)
        if record is None:
            continue
        if record["config"] == of_today(record["config"], path):
            found.append(record)
        else:
            say(f"{path} is of a recipe that was changed or renamed since: left out.")
    return found


def summarize(found):
    """The best rates.

    Args:
        found: list of the records of finished runs.

    Returns:
        List of `Tuned`, sorted by name.
    """
    cells = {}
    for record in found:
        recipe, metrics = recipe_of(record["config"]), record["metrics"]
        accuracy = None if metrics["diverged_epoch"] else metrics["test_accuracy"]
        rates = cells.setdefault(recipe.name, {})
        rates.setdefault(recipe.learning_rate, []).append(accuracy)
    return [
        Tuned(
            name,
            {r: None if None in a else float(np.mean(a)) for r, a in sorted(rates.items())},
        )
        for name, rates in sorted(cells.items())
    ]


def to_dict(cells, scale):
    """The results as plain data for a file.

    Args:
        cells: list of `Tuned`.
        scale: the `Scale` of the runs.
    """
    return {
        "preset": scale.name,
        "held_out": HELD_OUT,
        "rates": {cell.name: cell.learning_rate for cell in cells if cell.learning_rate},
        "accuracies": {cell.name: list(cell.accuracies.items()) for cell in cells},
    }


def read(path):
    """The rates of a file that `noisylb tune` has written.

    Returns:
        Dictionary of recipe name to learning rate.

    Raises:
        CompareError: if it has none, or cannot be read.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except OSError as error:
        reason = os.strerror(error.errno)
        raise CompareError(
            f"--rates received {path}, which cannot be read: {reason}. `noisylb tune` writes such "
            "a file. Change --rates."
        ) from None
    try:
        rates = json.loads(text)["rates"]
        if not all(0 < float(rate) < math.inf for rate in rates.values()):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CompareError(
            f'--rates received {path}, expected a JSON file such as {{"rates": {{"mnist-mlp/lb": '
            "0.4}}, all positive. `noisylb tune` writes one."
        ) from None
    return rates
