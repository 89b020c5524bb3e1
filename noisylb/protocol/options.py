"""The options of a training: of the command line, of tables and of figures."""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Literal

from noisylb.protocol.names import SEEDS_HELP, nearest, seed_list

# Best of a coarse grid, together with λ = 0.3, on a held-out fifth of the training set.
DEFAULT_LEARNING_RATES = {"sb": 0.02, "lb": 0.2}

# The learning rate is multiplied by the factor after these parts of every training.
DECAYS, DECAY_FACTOR = (1 / 2, 3 / 4), 0.1


def option(default, help_text, parser=None):
    """A field of `Options`, with its help.

    Args:
        default: its value where none is given.
        help_text: its help on the command line.
        parser: function from the text on the command line to the value; `None` takes the type's.
    """
    return dataclasses.field(default=default, metadata={"help": help_text, "parser": parser})


def number_or_matched(text):
    """Read the value of `--multiplier`.

    Args:
        text: a number, or "matched".

    Returns:
        A float, or "matched".

    Raises:
        ValueError: if it is neither.
    """
    return text if text == "matched" else float(text)


@dataclass(frozen=True)
class Options:
    """The options of a training: model, data, batches, learning rate, noise.

    Every field is an option of the command line of the same name; its metadata holds the help.

    Raises:
        ValueError: for a value that no run could use. The message says what was received, what was
            expected and how to correct it.

    Example:
    ```python
    results = keras_noisylb.experiments.compare.compare(Options(epochs=10, seeds="1"))
    ```
    """

    regimes: str = option(
        "sb,lb,lb-diagonal-split,lb-full-split",
        "Regimes to train, separated by commas. `noisylb regimes` lists them.",
    )
    model: str = option(
        "lenet",
        "Model, one of keras_noisylb.models, or a function that builds yours, such as "
        "package.module:function.",
    )
    dataset: str = option(
        "fashion_mnist_small",
        "Data set, one of keras_noisylb.data, a file FILE.npz, or a name in --data-dir.",
    )
    data_dir: str | None = option(None, "Folder of the prepared TFDS data sets.")
    large_batch_size: int = option(1000, "Batch size of the large-batch regimes.")
    small_batch_size: int = option(50, "Batch size of SB, and the one that the noise imitates.")
    epochs: int = option(8, "Epochs, the same for every regime.")
    learning_rate: str = option(
        "sb=0.02,lb=0.2",
        "Peak learning rate of each regime, as sb=0.02,lb=0.2, or one number for all. "
        "Large-batch regimes that are not named take that of lb.",
    )
    optimizer: str = option("sgd", "Optimizer: sgd or adamw.")
    momentum: float = option(0.9, "Momentum of SGD.")
    global_clipnorm: float | None = option(
        None, "Norm to which the whole gradient, with its noise, is clipped (none)."
    )
    warmup_fraction: float = option(0.05, "Part of the training with linear warm-up.")
    noise_fraction: float = option(
        0.5, "Part of the training with noise, or with the small batch in batch-change."
    )
    multiplier: float | Literal["matched"] = option(
        "matched",
        "λ, the factor of the noise; 1 in the paper. matched: the λ with the temperature of SB.",
        parser=number_or_matched,
    )
    estimator: str = option(
        "per_example",
        "Estimator of the Fisher, for regimes that leave it open: per_example, weighted or split "
        "(full noise takes weighted for per_example).",
    )
    fisher: str = option(
        "empirical",
        "Labels of the Fisher: empirical or true. Regimes by split always use those of the data.",
    )
    placement: str = option("gradient", "Where the noise is added: gradient or update.")
    sigma: float = option(0.1, "σ of multiplicative and isotropic noise.")
    form: str = option("coordinate", "Form of multiplicative noise: coordinate or example.")
    damping: float = option(0.01, "Damping of K-FAC noise, relative to each factor.")
    update_every: int = option(1, "Updates for which K-FAC noise uses the same factors.")
    num_microbatches: int | None = option(
        None, "Microbatches in which each large batch is computed."
    )
    conv: str = option("exact", "Formula for convolutions: exact or uncorrelated.")
    engine: str = option("auto", "Engine of the noise: auto, layerwise or vectorized_map.")
    max_examples: int | None = option(None, "Examples per batch that estimate the noise (all).")
    normalization: str | None = option(
        None, "Normalization of the model: ghost, batch or none (ghost)."
    )
    ghost_batch_size: int | None = option(None, "Ghost batch size (the small batch size).")
    l2: float = option(0.0, "L2 penalty of the model's weights.")
    weight_decay: float = option(0.0, "Decoupled weight decay of adamw.")
    augment: bool = option(False, "Augment the training images: random crop and flip.")
    train_size: int | None = option(
        None, "Number of training examples, in the proportions of the classes (all)."
    )
    pool: int = option(1, "Size in pixels of the square tiles over which images are averaged.")
    held_out: int | None = option(
        None,
        "Number of training images, rounded in each class, that are held out and reported on "
        "beside the test set.",
    )
    validation_freq: int = option(1, "Epochs between two evaluations.")
    validation_fraction: float = option(
        0.0, "Part of the training set that is held out and reported on instead of the test set."
    )
    seeds: str = option("1", SEEDS_HELP)
    output: str = option("results/compare", "Folder of the results. Runs in it continue.")
    quiet: bool = option(False, "Show no progress bars.")

    regimes_flag = "--regimes"  # no field

    def __post_init__(self):
        for name, lowest in (
            ("large_batch_size", 1),
            ("small_batch_size", 1),
            ("epochs", 1),
            ("max_examples", 1),
            ("num_microbatches", 1),
            ("update_every", 1),
            ("sigma", 0),
            ("ghost_batch_size", 1),
            ("train_size", 1),
            ("pool", 1),
            ("held_out", 1),
            ("validation_freq", 1),
            ("momentum", 0),
            ("multiplier", 0),
            ("l2", 0),
            ("weight_decay", 0),
        ):
            value = getattr(self, name)
            if name == "multiplier" and value == "matched":
                continue
            if value is not None and not lowest <= value < math.inf:
                matched = ", or matched" * (name == "multiplier")
                self.refuse(name, f"a number that is {lowest} or more{matched}")
        for name in ("warmup_fraction", "noise_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                self.refuse(name, "a number from 0 to 1")
        if not 0 <= self.validation_fraction < 1:
            self.refuse("validation_fraction", "a number from 0 (the test set) to below 1")
        if not self.momentum < 1:
            self.refuse("momentum", "a number from 0 to below 1")
        for name in ("damping", "global_clipnorm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                self.refuse(name, "a positive number")
        for name, *choices in (
            ("estimator", "per_example", "weighted", "split"),
            ("fisher", "empirical", "true"),
            ("placement", "gradient", "update"),
            ("optimizer", "sgd", "adamw"),
            ("form", "coordinate", "example"),
            ("conv", "exact", "uncorrelated"),
            ("engine", "auto", "layerwise", "vectorized_map"),
            ("normalization", "ghost", "batch", "none"),
        ):
            if self.normalization is None and name == "normalization":
                continue
            if getattr(self, name) not in choices:
                self.refuse(name, f"{', '.join(choices[:-1])} or {choices[-1]}", choices)
        if self.weight_decay and self.optimizer == "sgd":
            self.refuse("weight_decay", "0 for --optimizer sgd, whose decay is --l2")
        if self.small_batch_size >= self.large_batch_size:
            self.refuse("large_batch_size", f"more than small_batch_size={self.small_batch_size}")
        if not self.regime_names or len(set(self.regime_names)) < len(self.regime_names):
            self.refuse("regimes", "different names separated by commas, as in sb,lb,lb-diagonal")
        if not self.output.strip():
            self.refuse("output", "the name of a folder")
        self.seed_list  # noqa: B018 -- refuses what it cannot read
        self.learning_rates  # noqa: B018

    def refuse(self, name, expected, choices=()):
        """Raise the error for one option.

        Args:
            name: the field.
            expected: the values that are possible, in words.
            choices: these values, if they are names.

        Raises:
            ValueError: always.
        """
        flag = self.regimes_flag if name == "regimes" else "--" + name.replace("_", "-")
        raise ValueError(
            f"{flag} received {getattr(self, name)!r}, expected {expected}."
            f"{nearest(str(getattr(self, name)), choices)} Change {flag}."
        )

    @property
    def own_model(self):
        """Whether the model is a user's function, not one of the package."""
        return ":" in self.model

    @property
    def regime_names(self):
        """The names of the regimes, in order."""
        return tuple(name.strip() for name in self.regimes.split(",") if name.strip())

    @property
    def seed_list(self):
        """The seeds, in order."""
        return seed_list(self.seeds)

    @property
    def learning_rates(self):
        """The learning rates by regime, of those regimes that have one of their own."""
        try:
            if "=" not in self.learning_rate:
                rate = float(self.learning_rate)
                rates = {"sb": rate, "lb": rate}
            else:
                pairs = (pair.split("=") for pair in self.learning_rate.split(",") if pair.strip())
                named = {name.strip(): float(rate) for name, rate in pairs}
                rates = {**DEFAULT_LEARNING_RATES, **named}
        except ValueError:
            rates = {}
        if not rates or not all(0 < rate < math.inf for rate in rates.values()):
            self.refuse("learning_rate", "positive numbers, as in sb=0.02,lb=0.2, or one number")
        return rates

    def resolved(self):
        """All options as plain data in one spelling, for the record of a run."""
        values = dataclasses.asdict(self)
        values["regimes"] = list(self.regime_names)
        values["seeds"] = list(self.seed_list)
        values["learning_rate"] = self.learning_rates
        if self.normalization is None and not self.own_model:
            values["normalization"] = "ghost"
        if self.ghost_batch_size is None:
            values["ghost_batch_size"] = self.small_batch_size
        return values


@dataclass(frozen=True)
class ReportOptions(Options):
    """The options of `noisylb report`, which has one more.

    Example:
    ```python
    keras_noisylb.experiments.noise_report.show(ReportOptions(regimes="lb-diagonal", memory=4.0))
    ```
    """

    regimes_flag = "--regime"
    memory: float | None = option(
        None, "GiB that a step may take. The report names the fewest --num-microbatches that fit."
    )


@dataclass(frozen=True)
class TrainOptions(Options):
    """The options of `noisylb train`, which several workers can share.

    Example:
    ```python
    TrainOptions(regimes="lb", workers="host1:2222,host2:2222", task=0)
    ```
    """

    regimes_flag = "--regime"
    workers: str | None = option(
        None,
        "Train by several workers: their addresses, HOST:PORT,HOST:PORT. Start the same command "
        "once for each, with its number as --task.",
    )
    task: int | None = option(
        None, "Number of this worker in --workers. Worker 0 writes the results."
    )

    def __post_init__(self):
        super().__post_init__()
        if self.workers is None:
            if self.task is not None:
                self.refuse("task", "none, or --workers too")
            return
        number = len(self.addresses)
        if not all(map(is_address, self.addresses)) or len(set(self.addresses)) < number:
            self.refuse("workers", "different addresses, as in host1:2222,host2:2222")
        if self.task is None or not 0 <= self.task < number:
            self.refuse("task", f"the number of this worker in --workers, from 0 to {number - 1}")

    @property
    def addresses(self):
        """The addresses of the workers, in order; empty without `workers`."""
        if self.workers is None:
            return ()
        return tuple(address.strip() for address in self.workers.split(","))

    def resolved(self):
        values = super().resolved()
        del values["task"]
        # Addresses may change when a training is continued, the number of workers may not.
        values["workers"] = len(self.addresses) or None
        return values


def is_address(text):
    """Whether a text is HOST:PORT; a host with colons is in brackets.

    Args:
        text: from the command line.
    """
    found = re.fullmatch(r"(?:\[[^\[\]\s]+\]|[^\[\]\s:]+):(\d{1,5})", text)
    return found is not None and 0 < int(found[1]) < 2**16
