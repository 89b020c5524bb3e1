"""The regimes that are compared: how large the batch is, and which noise its gradient gets."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

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


@dataclass(frozen=True)
class Regime:
    """One way to train.

    Args:
        title: as it is shown.
        batch: whether one update averages the small or the large batch, or the small one first and
            then the large one ("change").
        noise: function from the options to the noise, or `None` for plain training.

    Example:
    ```python
    REGIMES["lb-hot"] = Regime(
        "LB + double noise",
        "large",
        lambda options: DiagonalFisher(options.small_batch_size, multiplier=2.0),
    )
    ```
    """

    title: str
    batch: Literal["small", "large", "change"]
    noise: Callable[[Any], Noise] | None = None

    def noise_at(self, options, learning_rate):
        """The noise of a run.

        Args:
            options: the options of the run; a multiplier of "matched" makes the run as hot as SB
                at its rate.
            learning_rate: peak learning rate of the run.

        Returns:
            A noise, or `None` for plain training.
        """
        if self.noise is None:
            return None
        if options.multiplier == "matched":
            small = options.learning_rates["sb"]
            multiplier = matched_multiplier(
                options.large_batch_size, options.small_batch_size, learning_rate, small
            )
            options = dataclasses.replace(options, multiplier=multiplier)
        return self.noise(options)

    def batch_change(self, options):
        """The batch sizes over the epochs of a run.

        Args:
            options: the options of the run. Where a regime has noise for a part of the training,
                "change" has the small batch for that part, as in the paper.

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


def estimated(structure, estimator=None):
    """A factory of noises whose Fisher is estimated in different ways.

    Args:
        structure: the class of the noise.
        estimator: its estimator; `None` takes that of the options.

    Returns:
        Function from the options to the noise.
    """

    def noise(options):
        chosen = estimator or options.estimator
        if structure is FullFisher:
            details = {"estimator": "weighted" if chosen == "per_example" else chosen}
        elif chosen == "per_example":
            details = {
                "estimator": chosen,
                "engine": options.engine,
                "max_examples": options.max_examples,
                "conv": options.conv,
            }
        else:
            details = {"estimator": chosen}
        # The difference of the halves has the labels of the data, whatever --fisher says of others.
        fisher = "empirical" if estimator == "split" else options.fisher
        return structure(
            options.small_batch_size, fisher=fisher, multiplier=options.multiplier, **details
        )

    return noise


def kronecker_factored(options):
    """The noise of K-FAC, as the options want it.

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


REGIMES = {
    "sb": Regime("SB", "small"),
    "lb": Regime("LB", "large"),
    "lb-trace": Regime("LB + Fisher trace", "large", estimated(FisherTrace)),
    "lb-diagonal": Regime("LB + diagonal Fisher", "large", estimated(DiagonalFisher)),
    "lb-diagonal-split": Regime(
        "LB + diagonal, split", "large", estimated(DiagonalFisher, "split")
    ),
    "lb-full": Regime("LB + full Fisher", "large", estimated(FullFisher)),
    "lb-full-split": Regime("LB + full, split", "large", estimated(FullFisher, "split")),
    "lb-true": Regime(
        "LB + true Fisher",
        "large",
        lambda options: FullFisher(
            options.small_batch_size, fisher="true", multiplier=options.multiplier
        ),
    ),
    "lb-kfac": Regime("LB + K-FAC", "large", kronecker_factored),
    "multiplicative": Regime(
        "Multiplicative", "large", lambda options: Multiplicative(options.sigma, form=options.form)
    ),
    "lb-isotropic": Regime("LB + isotropic", "large", lambda options: Isotropic(options.sigma)),
    "batch-change": Regime("BatchChange", "change"),
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
    for flag, names in (("--regimes", options.regime_names), ("--learning-rate", rates)):
        for name in names:
            if name not in REGIMES:
                raise ValueError(
                    f"{flag} received the regime {name!r}, expected one of {', '.join(REGIMES)}. "
                    f"Change {flag}."
                )
    return {
        name: (
            REGIMES[name],
            rates.get(name, rates["sb" if REGIMES[name].batch == "small" else "lb"]),
        )
        for name in options.regime_names
    }
