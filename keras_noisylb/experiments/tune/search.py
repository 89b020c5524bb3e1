"""A search by KerasTuner for the values of a recipe, on a held-out part of the training set."""

import contextlib
import dataclasses
import json
import pathlib
from dataclasses import dataclass

import keras
import keras_tuner

from keras_noisylb import data as data_sets
from keras_noisylb.experiments import records, splits
from keras_noisylb.experiments.problem import builder
from keras_noisylb.experiments.queue import plan
from keras_noisylb.experiments.queue.run import Run
from keras_noisylb.experiments.records import CompareError
from keras_noisylb.experiments.regimes import REGIMES
from keras_noisylb.experiments.tune import rates
from keras_noisylb.training.model import NoisyModel
from keras_noisylb.tuning import NoisyHyperModel, results
from keras_noisylb.tuning.space import value_of
from noisylb.protocol.options import DECAY_FACTOR

RECORD = "search.json"
KEYS = ("config", "versions", "device", "max_trials", "trials")
TUNER_FILES = ("oracle.json", "tuner*.json", "trial_*/trial.json")
PARTS = (
    "learning_rate", "warmup_fraction", "momentum", "noise_fraction", "multiplier",
    "small_batch_size", "sigma",
)  # fmt: skip
OF_TRAINING = PARTS[:4]  # the others are arguments of the noise


def choices(recipe):
    """The values that are searched for each part of a recipe. The recipe's own value comes first.

    Args:
        recipe: a `Recipe`.

    Returns:
        Dictionary of the parts that it has to tuples of values; for the learning rate, the tuple is
        the range.
    """
    own = recipe.options(0)
    rate, size = recipe.learning_rate, recipe.small_batch_size
    found = {
        "learning_rate": (rate / 4, 4 * rate),
        "warmup_fraction": (own.warmup_fraction, 0.0, 0.2),
        "momentum": (recipe.momentum, 0.0),
    }
    if recipe.noise_epochs:
        found["noise_fraction"] = (own.noise_fraction, 0.5, 1.0)
    if recipe.multiplier:
        sizes = (size, size // 4, 4 * size)
        found["multiplier"] = tuple(recipe.multiplier * factor for factor in (1.0, 0.3, 0.1))
        found["small_batch_size"] = tuple(s for s in sizes if 0 < s < recipe.large_batch_size)
    if recipe.sigma:
        found["sigma"] = tuple(recipe.sigma * factor for factor in (1.0, 0.3, 3.0))
    return {name: tuple(dict.fromkeys(values)) for name, values in found.items()}


def hypermodel(recipe, parts, seeds, settings):
    """The search space around a recipe.

    Args:
        recipe: a scaled `Recipe`.
        parts: names of the parts that are searched; the others keep the recipe's value.
        seeds: of every trial.
        settings: dictionary of the arguments of `Recipe.options`.

    Returns:
        A `NoisyHyperModel`.
    """
    options, regime = recipe.options(seeds[0], **settings), REGIMES[recipe.regime]
    found = data_sets.info(recipe.dataset)
    build = builder(options, found.num_classes, splits.image_shape(options))
    large = regime.batch == "large"
    space = {n: v if n in parts else v[0] for n, v in choices(recipe).items()}
    if "learning_rate" in parts:
        low, high = space["learning_rate"]
        space["learning_rate"] = lambda hp: hp.Float("learning_rate", low, high, sampling="log")
    else:
        space["learning_rate"] = recipe.learning_rate

    def noise(hp):
        own = {n: value_of(n, part, hp) for n, part in space.items() if n not in OF_TRAINING}
        return regime.noise(dataclasses.replace(options, **own), recipe.learning_rate)

    in_microbatches = large and options.num_microbatches
    return NoisyHyperModel(
        lambda hp: NoisyModel(build(), options.num_microbatches) if in_microbatches else build(),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        seeds=tuple(seeds),
        noise={recipe.regime: noise} if regime.make_noise else "none",
        large_batch_size=recipe.large_batch_size if large else recipe.small_batch_size,
        decay_factor=DECAY_FACTOR,
        **{name: part for name, part in space.items() if name in OF_TRAINING},
    )


def run(folder, recipe, parts, seeds, max_trials, settings):
    """Search at random, or continue a search.

    Args:
        folder: `pathlib.Path` of the search.
        recipe: a scaled `Recipe`.
        parts: names of the parts that are searched.
        seeds: of every trial.
        max_trials: number of trials, those of earlier calls included.
        settings: dictionary of the arguments of `Recipe.options`.

    Returns:
        List of `TrialResult`, best first.

    Raises:
        ValueError: if the recipe cannot be trained.
        OSError: if the data cannot be read or the results not be written.
    """
    split = splits.load(recipe.options(seeds[0], **settings))
    tuner = keras_tuner.RandomSearch(
        hypermodel(recipe, parts, seeds, settings),
        objective="val_accuracy",
        max_trials=max_trials,
        seed=1,  # KerasTuner takes 0 for none
        directory=folder.parent,
        project_name=folder.name,
        max_consecutive_failed_trials=max_trials + 1,  # a rate that diverges is a result, too
    )
    train = {"x": split.x_train, "y": split.y_train}
    if recipe.augment:

        def batches(size):
            return data_sets.batches(split.x_train, split.y_train, size, augment=True)

        train = {"x": batches, "shuffle": False}
    try:
        tuner.search(
            **train,
            epochs=recipe.epochs,
            validation_data=(split.x_test, split.y_test),
            validation_batch_size=1000,
            verbose=0,
        )
    except keras_tuner.errors.FatalRuntimeError as error:
        raise (error.__cause__ or error) from None
    for path in folder.glob("trial_*/checkpoint*"):
        path.unlink()
    return results(tuner)


def set_damaged_aside(folder, say):
    """Set the files of KerasTuner aside if one is damaged: it can continue from all of them only.

    KerasTuner does not write atomically, so a full disk leaves a part of a file.

    Args:
        folder: `pathlib.Path` of the search.
        say: function that prints a line.
    """
    paths = [path for name in TUNER_FILES for path in sorted(folder.glob(name))]
    damaged = []
    for path in paths:
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            damaged.append(path)
    for path in paths if damaged else ():
        records.set_aside(path, "cannot be read", say if path in damaged else lambda line: None)


@dataclass(frozen=True)
class Search(Run):
    """A search around a recipe, in a folder of its own.

    Args:
        recipe: a scaled `Recipe`.
        seeds: of every trial.
        folder: `pathlib.Path`.
        parts: names of the parts that are searched.
        max_trials: number of trials.
    """

    parts: tuple
    max_trials: int
    job = "search"
    unit = "trials"

    @property
    def title(self):
        return f"{self.recipe.name}, search"

    @property
    def arguments(self):
        return (str(self.max_trials),)

    @property
    def trainings(self):
        return self.max_trials * len(self.seeds)

    @property
    def length(self):
        return self.max_trials

    @property
    def config(self):
        return {**super().config, "parts": list(self.parts)}

    def finished(self):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
            return found["max_trials"] >= self.max_trials
        return False

    def done(self):
        with contextlib.suppress(OSError, ValueError):  # the tuner may just be writing it
            return len(json.loads((self.folder / "oracle.json").read_text())["end_order"])
        return 0

    def record(self, say):
        found = self.own(RECORD, KEYS, say)
        if found and found["max_trials"] >= self.max_trials:
            return found
        set_damaged_aside(
            self.folder, say
        )  # of fewer trials, the record is not: the search goes on
        return None

    def outcome(self, record):
        scores = [trial["score"] for trial in record["trials"] if trial["score"] is not None]
        if not scores:
            return f"no trial could be scored: {record['trials'][0]['reason']}"
        return f"best {100 * scores[0]:.2f} % of {len(scores)} trials"


def searches(table, scale, output, rows, regimes, seeds, parts, max_trials):
    """The searches of a tuning, one for every cell of a table.

    Args:
        table: "2" or "3".
        scale: a `Scale`.
        output: folder of all results.
        rows: names of its rows, separated by commas; `None` for all.
        regimes: names of its regimes, likewise.
        seeds: number of seeds of each trial, or a list of seeds such as "4,7".
        parts: names of the parts that are searched, likewise.
        max_trials: number of trials of each.

    Returns:
        List of `Search`.

    Raises:
        CompareError: if there is no such table, row, regime or part, no trial, or a cell that has
            nothing to search.
    """
    if max_trials < 1:
        raise CompareError(f"--trials received {max_trials}, expected 1 or more. Change --trials.")
    named = plan.chosen("--parts", parts, PARTS)
    found = []
    for recipe in plan.cells(table, scale, rows, regimes):
        if REGIMES[recipe.regime].batch == "change":
            raise CompareError(
                f"--regimes received {recipe.regime}, whose batch size changes within a training: "
                "that is no space of NoisyHyperModel. Leave it out, or --trials."
            )
        wanted = tuple(name for name in named if name in choices(recipe))
        if not wanted:
            raise CompareError(
                f"--parts received {parts!r}, of which {recipe.name} has none, expected some of "
                f"{', '.join(choices(recipe))}. Change --parts or --regimes."
            )
        recipe = rates.tried(recipe, recipe.learning_rate)
        folder = pathlib.Path(output) / scale.name / recipe.row / f"{recipe.regime}-search"
        found.append(Search(recipe, tuple(plan.seed_list(seeds)), folder, wanted, max_trials))
    return found
