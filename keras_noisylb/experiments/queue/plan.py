"""Which runs a table needs."""

import dataclasses
import pathlib

from keras_noisylb.experiments.queue.run import Run
from keras_noisylb.experiments.records import CompareError
from keras_noisylb.experiments.regimes import title_of
from noisylb.protocol import names
from noisylb.protocol.paper import RECIPES, TABLES
from noisylb.protocol.small import POINTS


def chosen(flag, text, known):
    """The names of a list on the command line, as `noisylb.protocol.names.chosen` reads them.

    Raises:
        CompareError: for other names.
    """
    try:
        return names.chosen(flag, text, known)
    except ValueError as error:
        raise CompareError(str(error)) from None


def cells(table, scale, rows=None, regimes=None, labels=None):
    """The recipes of a table scaled, in the order of its rows.

    Args:
        table: "2", "3" or "small".
        scale: a `Scale`.
        rows: names of its rows, separated by commas; `None` for all, of "small" for the first.
        regimes: names of its regimes, likewise; `None` for all.
        labels: labels of the recipes of "small", likewise.

    Returns:
        List of `Recipe`.

    Raises:
        CompareError: if there is no such table, row or regime.
    """
    if table == "small":
        rows = chosen("--rows", rows or next(iter(POINTS)), POINTS)
        found = [recipe for row in rows for recipe in POINTS[row]]
        regimes = chosen("--regimes", regimes, dict.fromkeys(r.regime for r in found))
        labels = chosen("--labels", labels, dict.fromkeys(r.label for r in found))
        return [scale.apply(r) for r in found if r.regime in regimes and r.label in labels]
    if labels is not None:
        raise CompareError(f"--labels is an option of table small, not of {table}. Leave it out.")
    if table not in TABLES:
        raise CompareError(str(names.unknown("TABLE", table, (*TABLES, "small"))))
    known_rows, known_regimes = TABLES[table]
    rows = chosen("--rows", rows, known_rows)
    regimes = chosen("--regimes", regimes, known_regimes)
    return [scale.apply(RECIPES[f"{row}/{regime}"]) for row in rows for regime in regimes]


def seed_list(seeds):
    """The seeds, as `noisylb.protocol.names.seed_list` reads them.

    Args:
        seeds: a string, or a number of seeds.

    Raises:
        CompareError: if they cannot be read.
    """
    try:
        return names.seed_list(str(seeds))
    except ValueError as error:
        raise CompareError(str(error)) from None


def with_multiplier(recipe, multiplier):
    """A recipe with another strength of its noise, and a label that says so.

    Args:
        recipe: a `Recipe`.
        multiplier: λ, or "matched"; `None` for the recipe's own.

    Returns:
        A `Recipe`; without noise, the same one.
    """
    if multiplier is None or recipe.multiplier is None:
        return recipe
    name = f"lambda{multiplier}" if multiplier == "matched" else f"lambda{multiplier:g}"
    small = RECIPES[f"{recipe.row}/sb"].learning_rate
    return dataclasses.replace(recipe, multiplier=multiplier, label=name, small_learning_rate=small)


def plan(
    table, scale, output, rows=None, regimes=None, seeds=3, rates=None, labels=None, multiplier=None
):
    """The runs of a table, in their order: all cells with one seed, then with the next.

    Args:
        table: "2", "3" or "small".
        scale: a `Scale`.
        output: folder of all results.
        rows: names of its rows, separated by commas; `None` for all.
        regimes: names of its regimes, likewise.
        seeds: number of seeds, counted from 0, or a list of seeds such as "4,7".
        rates: dictionary of recipe names to peak learning rates; the others keep the recipe's.
        labels: labels of the recipes of "small", likewise.
        multiplier: λ of all noises of tables 2 and 3, or "matched"; `None` for the recipes'.

    Returns:
        List of `Run`.

    Raises:
        CompareError: if there is no such table, row or regime.
    """
    if multiplier is not None and table == "small":
        raise CompareError(
            f"--multiplier received {multiplier}, but the recipes of small have values of their "
            "own. Choose them with --labels."
        )
    folder, rates = pathlib.Path(output) / scale.name, rates or {}
    recipes = []
    for recipe in cells(table, scale, rows, regimes, labels):
        rate = rates.get(recipe.name, recipe.learning_rate)
        recipe = with_multiplier(recipe, multiplier)
        small = recipe.small_learning_rate
        recipe = dataclasses.replace(
            recipe,
            learning_rate=rate,
            small_learning_rate=small and rates.get(f"{recipe.row}/sb", small),
        )
        recipes.append(recipe)
    return [Run.of(recipe, seed, folder) for seed in seed_list(seeds) for recipe in recipes]


def best_of(table, runs, say):
    """The runs of the best recipe of each row and regime, after a search with the first seed.

    The best recipe is the one with the highest accuracy on held-out images. The first seed alone
    counts, so that further seeds do not change what is chosen.

    Args:
        table: "2", "3" or "small".
        runs: list of `Run`, from `plan`.
        say: function that prints a line.

    Returns:
        List of `Run`.

    Raises:
        CompareError: if the table is not "small", if runs with the first seed are not finished, or
            if all runs of a regime diverged.
    """
    if table != "small":
        raise CompareError(
            f"--best is an option of table small, not of {table}. Leave it out; `noisylb tune` "
            "chooses rates of tables 2 and 3."
        )
    trials = [(run, run.record(say)) for run in runs if run.seeds == runs[0].seeds]
    left = sum(record is None for _, record in trials)
    if left:
        raise CompareError(
            f"--best chooses among finished runs, but {left} of {len(trials)} with seed "
            f"{runs[0].seeds[0]} are not finished. Train them first: the same command without "
            f"--best, with --seeds {runs[0].seeds[0]},"
        )
    found = {}  # of row and regime to accuracies and names of recipes
    for run, record in trials:
        place, metrics = (run.recipe.row, title_of(run.recipe)), record["metrics"]
        ended = found.setdefault(place, [])
        if metrics["diverged_epoch"] is None:
            ended.append((metrics["held_out_accuracy"], run.recipe.name))
    for (row, title), ended in found.items():
        if not ended:
            raise CompareError(
                f"--best has nothing to choose: all runs of {title} in {row} diverged. Leave that "
                "regime out with --regimes."
            )
    names = {max(ended)[1] for ended in found.values()}
    return [run for run in runs if run.recipe.name in names]
