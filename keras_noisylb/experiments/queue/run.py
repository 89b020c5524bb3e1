"""One run of a table: a recipe with one seed, in a folder of its own."""

import dataclasses
import pathlib
from dataclasses import dataclass

from keras_noisylb.experiments import records
from noisylb.protocol.recipe import Recipe

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
    job = "train"  # of the worker
    unit = "epochs"

    @classmethod
    def of(cls, recipe, seed, output, label=""):
        """The run of a recipe.

        Args:
            recipe: a scaled `Recipe`.
            seed: of the run.
            output: `pathlib.Path` of all runs of that scale.
            label: what the folder is told apart by from others of the same regime and seed.

        Returns:
            A `Run`.
        """
        name = "-".join(filter(None, (recipe.regime, recipe.label)))
        return cls(recipe, (seed,), output / recipe.row / f"{name}{label}-seed{seed}")

    @property
    def title(self):
        """What the run is called."""
        tuned = f", rate {self.recipe.learning_rate:g}" * bool(self.recipe.validation_fraction)
        return f"{self.recipe.name}{tuned}, seed {self.seeds[0]}"

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
        return {**self.recipe.to_dict(), "seeds": list(self.seeds)}

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
