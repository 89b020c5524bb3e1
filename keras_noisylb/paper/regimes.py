"""The regimes that are compared: how large the batch is, and which noise its gradient gets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from keras_noisylb.noise import DiagonalFisher, Noise


@dataclass(frozen=True)
class Regime:
    """One way to train.

    Args:
        title: as it is shown.
        batch: whether one update averages the small or the large batch.
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
    batch: Literal["small", "large"]
    noise: Callable[[object], Noise] | None = None

    def batch_size(self, options):
        """The number of examples of one update.

        Args:
            options: the options of the run.
        """
        return getattr(options, f"{self.batch}_batch_size")


def diagonal_fisher(options):
    """The paper's noise, as the options want it.

    Args:
        options: the options of the run.
    """
    return DiagonalFisher(
        options.small_batch_size,
        engine=options.engine,
        max_examples=options.max_examples,
        conv=options.conv,
        multiplier=options.multiplier,
    )


REGIMES = {
    "sb": Regime("SB", "small"),
    "lb": Regime("LB", "large"),
    "lb-diagonal": Regime("LB + diagonal Fisher", "large", diagonal_fisher),
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
            rates.get(name, rates["lb"] if REGIMES[name].batch == "large" else rates["sb"]),
        )
        for name in options.regime_names
    }
