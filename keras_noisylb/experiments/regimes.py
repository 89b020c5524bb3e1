"""The regimes that are compared. A new regime is one entry of `REGIMES`."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from keras_noisylb.batch_change import BatchChange
from keras_noisylb.noise import (
    DiagonalFisher,
    FisherTrace,
    FullFisher,
    Isotropic,
    KroneckerFactored,
    Multiplicative,
    Noise,
)
from keras_noisylb.schedules import matched_multiplier
from noisylb.protocol.names import unknown
from noisylb.protocol.options import Options

FORMULAS = {"exact": "exact", "uncorrelated": "A.5"}  # for convolutions, of per-example squares


class Look(NamedTuple):
    """What a regime looks like in pictures: colour, line style and marker of matplotlib."""

    colour: str = "0.3"
    line: Any = "-"
    marker: str = "o"


@dataclass(frozen=True)
class Regime:
    """One way to train: how large the batch is, and which noise its gradient gets.

    Args:
        name: name without the method, such as "LB + diagonal".
        batch: whether one update averages the small or the large batch, or the small one first and
            then the large one ("change").
        make_noise: function from the options to the noise; `None` for training without noise.
        fixed: options that have this value whatever the command line says.
        look: colour, line style and marker in pictures.
        cost: time that the noise adds to an update, in updates without noise: about what
            `benchmarks/step_overhead.py` measures on a CPU.
        tested: whether Tables 2 and 3 test that its accuracy is above that of LB.

    Example:
    ```python
    REGIMES["lb-hot"] = Regime(
        "LB + double noise",
        "large",
        lambda options: DiagonalFisher(options.small_batch_size, multiplier=2.0),
    )
    ```
    """

    name: str
    batch: Literal["small", "large", "change"]
    make_noise: Callable[[Any], Noise] | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    look: Look = field(default_factory=Look)
    cost: float = 0.0
    tested: bool = False

    def title(self, options=None):
        """The name and the method by which the Fisher is estimated: "LB + diagonal (A.5)".

        Args:
            options: the options of the run; `None` takes the defaults.
        """
        options = Options() if options is None else options
        method = method_of(self.noise(dataclasses.replace(options, multiplier=1.0)))
        return f"{self.name} ({method})" if method else self.name

    def noise(self, options, learning_rate=None):
        """The noise of a run.

        Args:
            options: the options of the run; a multiplier of "matched" makes the run as hot as SB
                at its learning rate.
            learning_rate: peak learning rate of the run, for a multiplier of "matched".

        Returns:
            A noise, or `None` for training without noise.
        """
        if self.make_noise is None:
            return None
        if options.multiplier == "matched":
            multiplier = matched_multiplier(
                options.large_batch_size,
                options.small_batch_size,
                learning_rate,
                options.learning_rates["sb"],
                scaling="linear" if options.optimizer == "sgd" else "square root",
            )
            options = dataclasses.replace(options, multiplier=multiplier)
        return self.make_noise(dataclasses.replace(options, **self.fixed))

    def batch_change(self, options):
        """The batch sizes over the epochs of a run.

        Args:
            options: the options of the run. "change" has the small batch for the part of the
                training in which other regimes have noise, as in the paper.

        Returns:
            A `BatchChange`.
        """
        small_epochs = {
            "small": options.epochs,
            "large": 0,
            "change": round(options.noise_fraction * options.epochs),
        }
        return BatchChange(
            options.small_batch_size, options.large_batch_size, small_epochs[self.batch]
        )

    def batch_size(self, options):
        """The number of examples of one update, in words.

        Args:
            options: the options of the run.
        """
        change = self.batch_change(options)
        if self.batch == "change":
            return (
                f"{change.small_batch_size} for {change.change_epoch} epochs, "
                f"then {change.large_batch_size}"
            )
        return str(getattr(change, f"{self.batch}_batch_size"))


def method_of(noise):
    """The method by which a noise estimates its Fisher; `None` if it has only one.

    Args:
        noise: a noise, or `None`.
    """
    estimator = getattr(noise, "estimator", None)
    if estimator is None:
        return None
    method = FORMULAS[noise.conv] if estimator == "per_example" else estimator
    return f"{method}, true Fisher" if noise.fisher == "true" else method


def estimated(structure):
    """A factory of noises whose Fisher is estimated by the method of the options.

    Args:
        structure: the class of the noise, which has an argument `estimator`.

    Returns:
        Function from the options to the noise.
    """

    def make_noise(options):
        method = {"estimator": options.estimator}
        if options.estimator == "per_example":
            method |= {
                "engine": options.engine,
                "max_examples": options.max_examples,
                "conv": options.conv,
            }
        return structure(
            options.small_batch_size,
            fisher=options.fisher,
            multiplier=options.multiplier,
            **method,
        )

    return make_noise


def full(options):
    """Full Fisher noise, which has no estimator from single examples.

    Args:
        options: the options of the run.
    """
    estimator = "weighted" if options.estimator == "per_example" else options.estimator
    return estimated(FullFisher)(dataclasses.replace(options, estimator=estimator))


def kronecker_factored(options):
    """The noise of K-FAC.

    Args:
        options: the options of the run.
    """
    return KroneckerFactored(
        options.small_batch_size,
        fisher=options.fisher,
        damping=options.damping,
        update_every=options.update_every,
        max_examples=options.max_examples,
        multiplier=options.multiplier,
    )


# The difference of a batch's halves has the labels of the data, whatever --fisher says of others.
SPLIT = {"estimator": "split", "fisher": "empirical"}
# Most colours are Okabe and Ito's, which colour-blind readers tell apart.
REGIMES = {
    "sb": Regime("SB", "small", look=Look("#0072B2", "-", "o")),
    "lb": Regime("LB", "large", look=Look("#D55E00", "--", "s")),
    "lb-full": Regime("LB + full", "large", full, look=Look("#009E73", "-.", "D"), cost=0.7),
    "lb-full-split": Regime("LB + full", "large", full, SPLIT, look=Look("#CC79A7", ":", "^")),
    "lb-trace": Regime(
        "LB + trace", "large", estimated(FisherTrace), look=Look("#882255", "-.", "<"), cost=0.4
    ),
    "lb-diagonal": Regime(
        "LB + diagonal",
        "large",
        estimated(DiagonalFisher),
        look=Look("#E69F00", (0, (5, 1)), "v"),
        cost=0.4,
        tested=True,
    ),
    "lb-diagonal-split": Regime(
        "LB + diagonal",
        "large",
        estimated(DiagonalFisher),
        SPLIT,
        look=Look("#56B4E9", (0, (1, 1)), "P"),
        tested=True,
    ),
    "lb-true": Regime(
        "LB + full",
        "large",
        full,
        {"estimator": "weighted", "fisher": "true"},
        look=Look("#000000", (0, (3, 1, 1, 1)), "X"),
        cost=0.7,
    ),
    "lb-diagonal-a5": Regime(
        "LB + diagonal",
        "large",
        estimated(DiagonalFisher),
        {"estimator": "per_example", "conv": "uncorrelated"},
        look=Look("0.5", "-", "*"),
        cost=0.2,
        tested=True,
    ),
    "lb-kfac": Regime(
        "LB + K-FAC", "large", kronecker_factored, look=Look("#332288", "--", "p"), cost=0.5
    ),
    "multiplicative": Regime(
        "Multiplicative",
        "large",
        lambda options: Multiplicative(options.sigma, form=options.form),
        look=Look("#999933", ":", "h"),
    ),
    "lb-isotropic": Regime(
        "LB + isotropic",
        "large",
        lambda options: Isotropic(options.sigma),
        look=Look("#44AA99", "-.", ">"),
    ),
    "batch-change": Regime("BatchChange", "change", look=Look("#117733", "-", "d")),
}


def choose(options):
    """The regimes that the options name, with their learning rates.

    Args:
        options: the options of the run.

    Returns:
        Dictionary of name to `(regime, learning rate)`.

    Raises:
        ValueError: for a name that is not in `REGIMES`.
    """
    rates = options.learning_rates
    for flag, names in ((options.regimes_flag, options.regime_names), ("--learning-rate", rates)):
        for name in names:
            if name not in REGIMES:
                raise unknown(flag, name, REGIMES)
    return {
        name: (
            REGIMES[name],
            rates.get(name, rates["sb" if REGIMES[name].batch == "small" else "lb"]),
        )
        for name in options.regime_names
    }


def title_of(recipe):
    """The title of a recipe's regime, with the method that the recipe has.

    Args:
        recipe: a `noisylb.protocol.recipe.Recipe`.
    """
    return REGIMES[recipe.regime].title(recipe.options(0))
