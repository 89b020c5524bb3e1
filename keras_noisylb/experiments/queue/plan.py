"""Which runs a table needs, and what each of them has left."""

import dataclasses
import pathlib
from dataclasses import dataclass

from keras_noisylb.experiments import records
from keras_noisylb.experiments.records import CompareError
from noisylb.protocol.paper import RECIPES, TABLES
from noisylb.protocol.recipe import Recipe
from noisylb.protocol.small import POINTS

RUN = "run.json"  # the record of a finished run
KEYS = ("config", "versions", "seed", "device", "metrics", "wall_seconds", "history")
# Millions of multiplications of one example forward, by which a run's share of the time is guessed.
WORK = {"mlp": 1.5, "lenet": 2.3, "alexnet": 33, "vgg16": 313, "resnet44": 97, "resnet44x2": 389}
EXAMPLES = {"mnist": 60_000, "fashion_mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000}


def examples(recipe):
    """The number of training examples of a recipe.

    Args:
        recipe: a `Recipe`.
    """
    whole = EXAMPLES.get(recipe.dataset, 10_000)
    return recipe.train_size or round(whole * (1 - (recipe.validation_fraction or 0)))


@dataclass(frozen=True)
class Run:
    """A recipe with one seed, in a folder of its own.

    Args:
        recipe: a `Recipe` of one seed, at the size of the preset.
        folder: `pathlib.Path`.
    """

    recipe: Recipe
    folder: pathlib.Path
    job = "train"  # of the worker
    unit = "epochs"

    @classmethod
    def of(cls, recipe, seed, output, label=""):
        """The run of a recipe.

        Args:
            recipe: a `Recipe`, at the size of the preset.
            seed: of the run.
            output: `pathlib.Path` of all runs of that preset.
            label: what the folder is told apart by from others of the same regime and seed.

        Returns:
            A `Run`.
        """
        # Where the values are from does not change a run.
        one = dataclasses.replace(recipe, seeds=(seed,), sources=())
        name = "-".join(filter(None, (recipe.regime, recipe.label)))
        return cls(one, output / recipe.row / f"{name}{label}-seed{seed}")

    @property
    def title(self):
        """What the run is called."""
        tuned = f", rate {self.recipe.learning_rate:g}" * bool(self.recipe.validation_fraction)
        return f"{self.recipe.name}{tuned}, seed {self.recipe.seeds[0]}"

    @property
    def arguments(self):
        """What the worker has to know besides folder and settings, as strings."""
        return ()

    @property
    def trainings(self):
        """How often the recipe is trained."""
        return 1

    @property
    def length(self):
        """How long it is, in its unit."""
        return self.recipe.epochs

    @property
    def work(self):
        """How much is computed, in a unit of no meaning."""
        epochs = self.recipe.epochs * self.trainings
        return WORK.get(self.recipe.model, 100) * examples(self.recipe) * epochs

    @property
    def config(self):
        """What it depends on, as plain data."""
        return self.recipe.to_dict()

    def finished(self):
        """Whether there is a record, which may turn out to be damaged."""
        return (self.folder / RUN).exists()

    def done(self):
        """How much of the length is finished, of a run that has no record yet."""
        names = [path.name for path in self.folder.glob("checkpoint-*.keras")]
        return max((int(name.split("-")[1].split(".")[0]) for name in names), default=0)

    def record(self, say):
        """The record, if the run is finished; one that cannot be used is set aside.

        Args:
            say: function that prints a line.

        Returns:
            A dictionary, or `None`.
        """
        return self.own(RUN, KEYS, say)

    def own(self, name, required, say):
        """A record in the folder; one that is damaged or of another run is set aside.

        Args:
            name: of its file.
            required: the keys that it must have.
            say: function that prints a line.

        Returns:
            A dictionary, or `None`.
        """
        path = self.folder / name
        found = records.read_json(path, required, say)
        if found is None:
            return None
        if differing := records.differences(found["config"], self.config):
            records.set_aside(path, f"is of a run with other options: {differing}", say)
            return None
        return found

    def outcome(self, record):
        """What came of it, in words.

        Args:
            record: of the run.
        """
        metrics, seconds = record["metrics"], record["wall_seconds"]
        if metrics["diverged_epoch"] is not None:
            return f"diverged at epoch {metrics['diverged_epoch']}, {seconds:.0f} s"
        return f"{100 * metrics['test_accuracy']:.2f} %, {seconds:.0f} s"


def chosen(flag, text, known):
    """The names of a list on the command line.

    Args:
        flag: where it was given.
        text: names separated by commas; `None` for all.
        known: the names that there are.

    Returns:
        Tuple of names, in the order of `known`.

    Raises:
        CompareError: for other names.
    """
    if text is None:
        return tuple(known)
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or not set(names) <= set(known):
        raise CompareError(
            f"{flag} received {text!r}, expected names of {', '.join(known)}, separated by commas. "
            f"Change {flag}."
        )
    return tuple(name for name in known if name in names)


def cells(table, preset, rows=None, regimes=None, labels=None):
    """The recipes of a table at the size of a preset, in the order of its rows.

    Args:
        table: "2", "3" or "small".
        preset: a `Preset`.
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
        return [preset.scale(r) for r in found if r.regime in regimes and r.label in labels]
    if labels is not None:
        raise CompareError(f"--labels is an option of table small, not of {table}. Leave it out.")
    if table not in TABLES:
        raise CompareError(f"TABLE received {table!r}, expected 2, 3 or small. Choose one of them.")
    known_rows, known_regimes = TABLES[table]
    rows = chosen("--rows", rows, known_rows)
    regimes = chosen("--regimes", regimes, known_regimes)
    return [preset.scale(RECIPES[f"{row}/{regime}"]) for row in rows for regime in regimes]


def seed_range(seeds):
    """The seeds of so many runs.

    Args:
        seeds: their number.

    Raises:
        CompareError: if there would be none.
    """
    if seeds < 1:
        raise CompareError(f"--seeds received {seeds}, expected 1 or more. Change --seeds.")
    return range(seeds)


def plan(table, preset, output, rows=None, regimes=None, seeds=3, rates=None, labels=None):
    """The runs of a table, in their order: all cells with one seed, then with the next.

    Args:
        table: "2", "3" or "small".
        preset: a `Preset`.
        output: folder of all results.
        rows: names of its rows, separated by commas; `None` for all.
        regimes: names of its regimes, likewise.
        seeds: number of seeds, counted from 0.
        rates: dictionary of recipe names to peak learning rates; the others keep the recipe's.
        labels: labels of the recipes of "small", likewise.

    Returns:
        List of `Run`.

    Raises:
        CompareError: if there is no such table, row or regime.
    """
    folder, rates = pathlib.Path(output) / preset.name, rates or {}
    recipes = []
    for recipe in cells(table, preset, rows, regimes, labels):
        small = recipe.small_learning_rate
        recipe = dataclasses.replace(
            recipe,
            learning_rate=rates.get(recipe.name, recipe.learning_rate),
            small_learning_rate=small and rates.get(f"{recipe.row}/sb", small),
        )
        recipes.append(recipe)
    return [Run.of(recipe, seed, folder) for seed in seed_range(seeds) for recipe in recipes]
