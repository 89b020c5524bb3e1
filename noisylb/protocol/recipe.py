"""A recipe: the whole protocol of one cell of Tables 2 and 3, and how far it is scaled down."""

import dataclasses
import math
from dataclasses import dataclass, field

from noisylb.protocol.options import DECAY_FACTOR, DECAYS, Options

SEEDS = 3  # runs of each cell whose accuracies the paper averages


@dataclass(frozen=True)
class Source:
    """Where the value of one field of a recipe comes from.

    Args:
        field: its name.
        stated: whether the paper states it; otherwise it was chosen here.
        where: the place in the paper, or the source of the choice.
    """

    field: str
    stated: bool
    where: str

    def __str__(self):
        return f"{'paper' if self.stated else 'chosen'}: {self.where}"


@dataclass(frozen=True)
class Recipe:
    """One cell of Tables 2 and 3: all that its training depends on, as plain data.

    Times are in epochs. What a regime does not have is `None`. All learning rates fall as `DECAYS`
    and `DECAY_FACTOR` say.

    Args:
        row: name of the data set and model, such as "cifar10-resnet44".
        regime: one of `keras_noisylb.experiments.regimes.REGIMES`.
        model: one of `keras_noisylb.models`.
        dataset: one of `keras_noisylb.data`.
        augment: whether images are cropped and flipped.
        train_size: number of training examples, all classes alike; `None` for all.
        small_batch_size: M_S.
        large_batch_size: M_L.
        ghost_batch_size: examples whose statistics batch normalisation takes together.
        momentum: of SGD.
        weight_decay: factor of the weights that are added to the gradient; with AdamW, the
            decoupled decay.
        learning_rate: the peak.
        small_learning_rate: that of SB, for a regime that changes from small batches to large ones
            or whose noise is matched to it.
        warmup_epochs: length of the linear warm-up.
        small_epochs: epochs with the small batch of a regime that changes to the large one.
        noise_epochs: epochs after which the noise stops.
        estimator: how the Fisher is estimated.
        conv: formula for convolutions.
        multiplier: λ, by which the noise is multiplied, or "matched".
        sigma: σ of multiplicative noise.
        damping: of the Kronecker factors.
        normalization: of the model: "ghost", "batch" or "none"; `None` for ghost.
        pool: size of the tiles of pixels that are averaged; `None` for whole images.
        held_out: number of training images that are held out and reported on beside the test set.
        validation_freq: epochs between two evaluations; `None` for 1.
        optimizer: "adamw", or `None` for SGD.
        global_clipnorm: norm to which the whole gradient is clipped; `None` without clipping.
        label: a name that only this recipe of its row and regime has.
        validation_fraction: part of the training set that is held out, and reported on in place of
            the test set, while something is tuned.
        epochs: of the training.
        sources: a `Source` for every entry of `described`, names apart.

    Example:
    ```python
    from noisylb.protocol.paper import RECIPES

    hot = dataclasses.replace(RECIPES["cifar10-vgg16/lb-diagonal"], multiplier=2.0)
    ```
    """

    row: str
    regime: str
    model: str
    dataset: str
    augment: bool
    small_batch_size: int
    large_batch_size: int
    ghost_batch_size: int
    momentum: float
    weight_decay: float
    learning_rate: float
    warmup_epochs: float
    epochs: int
    train_size: int | None = None
    small_learning_rate: float | None = None
    small_epochs: float | None = None
    noise_epochs: float | None = None
    estimator: str | None = None
    conv: str | None = None
    multiplier: float | str | None = None
    sigma: float | None = None
    damping: float | None = None
    normalization: str | None = None
    pool: int | None = None
    held_out: int | None = None
    validation_freq: int | None = None
    optimizer: str | None = None
    global_clipnorm: float | None = None
    label: str | None = None
    validation_fraction: float | None = None
    sources: tuple = field(default=(), compare=False)

    @property
    def name(self):
        """The name of the recipe, which is also the folder of its runs."""
        return "/".join(filter(None, (self.row, self.regime, self.label)))

    def to_dict(self):
        """What the training depends on, as plain data that JSON keeps as it is."""
        values = dataclasses.asdict(self)
        del values["sources"]
        return {name: value for name, value in values.items() if value is not None}

    def described(self):
        """The values of `to_dict`, and those that all recipes share."""
        return {
            "optimizer": "sgd",
            **self.to_dict(),
            "decay_epochs": tuple(part * self.epochs for part in DECAYS),
            "decay_factor": DECAY_FACTOR,
            "seeds": SEEDS,
        }

    def options(self, seed, **settings):
        """The recipe as the trainer's options.

        Args:
            seed: of the run.
            **settings: options of the machine, which are not the recipe's: `data_dir`,
                `num_microbatches`.

        Returns:
            A `noisylb.protocol.options.Options`.
        """
        part = self.noise_epochs or self.small_epochs or 0
        given = {
            name: getattr(self, name)
            for name in (
                "estimator", "conv", "multiplier", "sigma", "damping", "normalization", "pool",
                "held_out", "validation_freq", "optimizer", "global_clipnorm",
            )
            if getattr(self, name) is not None
        }  # fmt: skip
        if self.optimizer == "adamw":
            given["weight_decay"] = self.weight_decay
        else:
            given["l2"] = self.weight_decay / 2  # the gradient of l2 |w|² is 2 l2 w
        rates = {"sb": self.small_learning_rate, self.regime: self.learning_rate}
        return Options(
            regimes=self.regime,
            model=self.model,
            dataset=self.dataset,
            large_batch_size=self.large_batch_size,
            small_batch_size=self.small_batch_size,
            epochs=self.epochs,
            learning_rate=",".join(f"{n}={rate!r}" for n, rate in rates.items() if rate),
            momentum=self.momentum,
            warmup_fraction=self.warmup_epochs / self.epochs,
            noise_fraction=part / self.epochs,
            ghost_batch_size=self.ghost_batch_size,
            augment=self.augment,
            train_size=self.train_size,
            validation_fraction=self.validation_fraction or 0.0,
            seeds=f"{seed},",
            quiet=True,
            **given,
            **settings,
        )


@dataclass(frozen=True)
class Scale:
    """How far recipes are scaled down. Only times in epochs and the number of examples change.

    Args:
        name: of the preset, and of the folder of its results.
        epochs: factor of the epochs, and so of warm-up, decays and the end of the noise.
        train_size: number of training examples; `None` for those of the recipe.

    Example:
    ```python
    Scale("tenth", epochs=0.1).apply(RECIPES["mnist-mlp/lb"]).epochs  # 20
    ```
    """

    name: str
    epochs: float = 1.0
    train_size: int | None = None

    def apply(self, recipe):
        """A recipe at this size.

        Args:
            recipe: a `Recipe`.

        Returns:
            The scaled `Recipe`.
        """
        epochs = max(1, math.ceil(recipe.epochs * self.epochs))
        factor = epochs / recipe.epochs
        scaled = {
            name: getattr(recipe, name) and getattr(recipe, name) * factor
            for name in ("warmup_epochs", "small_epochs", "noise_epochs")
        }
        return dataclasses.replace(
            recipe,
            **scaled,
            epochs=epochs,
            train_size=self.train_size or recipe.train_size,
        )


WHOLE = Scale("small")  # the recipes of `noisylb table small` as they are
SCALES = {
    "probe": Scale("probe", epochs=0.025),
    "short": Scale("short", epochs=0.075),
    "long": Scale("long", epochs=0.3),
    "sample": Scale("sample", epochs=0.1, train_size=10_000),
    "paper": Scale("paper"),
}
