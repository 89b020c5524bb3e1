"""One run of a table: a recipe with one seed, in a folder of its own."""

import dataclasses
import pathlib
from dataclasses import dataclass

from keras_noisylb.experiments import estimate, records
from keras_noisylb.experiments.journal import finished_epochs
from keras_noisylb.experiments.regimes import REGIMES
from noisylb.protocol.recipe import Recipe

RUN = "run.json"  # the record of a finished run
KEYS = ("config", "versions", "seed", "device", "metrics", "wall_seconds", "history")
EXAMPLES = {"mnist": 60_000, "fashion_mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000}


def examples(recipe):
    """The number of training examples of a recipe.

    Args:
        recipe: a `Recipe`.
    """
    whole = EXAMPLES.get(recipe.dataset, 10_000)
    return recipe.train_size or round(whole * (1 - (recipe.validation_fraction or 0)))


def recipe_of(config):
    """The recipe of a run.

    Args:
        config: its `Run.config`, as its `config.json` holds it.

    Returns:
        A `Recipe`.
    """
    names = {field.name for field in dataclasses.fields(Recipe)}
    return Recipe(**{name: value for name, value in config.items() if name in names})


@dataclass(frozen=True)
class Run:
    """A recipe with one seed, in a folder of its own.

    Args:
        recipe: a scaled `Recipe`.
        seeds: tuple of the one seed.
        folder: `pathlib.Path`.
    """

    recipe: Recipe
    seeds: tuple
    folder: pathlib.Path
    job = "train"  # a name of `jobs.JOBS`
    unit = "epochs"

    @classmethod
    def of(cls, recipe, seed, output, label=""):
        """The run of a recipe.

        Args:
            recipe: a scaled `Recipe`.
            seed: of the run.
            output: `pathlib.Path` of all runs of that scale.
            label: end of the folder's name, different for runs of the same regime and seed.

        Returns:
            A `Run`.
        """
        name = "-".join(filter(None, (recipe.regime, recipe.label)))
        return cls(recipe, (seed,), output / recipe.row / f"{name}{label}-seed{seed}")

    @property
    def title(self):
        """The name of the run in messages."""
        tuned = f", rate {self.recipe.learning_rate:g}" * bool(self.recipe.validation_fraction)
        return f"{self.recipe.name}{tuned}, seed {self.seeds[0]}"

    @property
    def arguments(self):
        """Arguments of the job after folder and settings, as strings."""
        return ()

    @property
    def trainings(self):
        """Number of trainings of the recipe."""
        return 1

    @property
    def length(self):
        """The length of the run, in its unit."""
        return self.recipe.epochs

    def training(self, speed):
        """The estimated seconds of one training: of its graphs, and of its epochs.

        Args:
            speed: an `estimate.Speed`.
        """
        recipe, size = self.recipe, estimate.size_of_recipe(self.recipe)
        options, regime = recipe.options(self.seeds[0]), REGIMES[recipe.regime]
        return estimate.training(options, regime, size, examples(recipe), speed)

    @property
    def work(self):
        """The share of the run in the time of all runs, in arbitrary units."""
        return sum(self.training(estimate.REFERENCE)) * self.trainings

    def seconds_left(self, speed):
        """The estimated seconds until the run is finished.

        Args:
            speed: an `estimate.Speed`.
        """
        if self.finished():
            return 0.0
        graphs, epochs = self.training(speed)
        left = self.trainings * (1 - self.done() / self.length)
        return speed.start + max(left, 1) * graphs + left * epochs

    @property
    def config(self):
        """All that the result depends on, as plain data."""
        return {**self.recipe.to_dict(), "seeds": list(self.seeds)}

    def finished(self):
        """Whether there is a record. It is not read, so it may be damaged."""
        return (self.folder / RUN).exists()

    def done(self):
        """The finished part of the length, of a run without a record."""
        return finished_epochs(self.folder)

    def record(self, say):
        """The record of a finished run. A record that cannot be used is set aside.

        Args:
            say: function that prints a line.

        Returns:
            A dictionary, or `None`.
        """
        return self.own(RUN, KEYS, say)

    def own(self, name, required, say):
        """Read a record in the folder. A damaged record, or one of another run, is set aside.

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
        """The result in words."""
        metrics, seconds = record["metrics"], record["wall_seconds"]
        if metrics["diverged_epoch"] is not None:
            return f"diverged at epoch {metrics['diverged_epoch']}, {seconds:.0f} s"
        return f"{100 * metrics['test_accuracy']:.2f} %, {seconds:.0f} s"
