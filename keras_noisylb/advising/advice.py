"""Batch size, learning rate and noise, derived from a gradient noise scale."""

import dataclasses
import math
from typing import Literal

from keras_noisylb.diagnostics.critical import CriticalBatchSize
from keras_noisylb.schedules import linear_scaling, matched_multiplier, sqrt_scaling


@dataclasses.dataclass(frozen=True)
class Advice:
    """The result of `advise`; `print` shows it as text.

    Args:
        batch_size: M_S, the batch size in use.
        learning_rate: η_S, the learning rate in use.
        num_examples: number of examples of the data.
        updates: the two numbers of updates after which the gradient noise scale was measured.
        early: the first measurement.
        late: the second measurement.
        scaling: rule that scales the learning rate: `"linear"`, or `"square root"` for optimizers
            other than SGD.
        highest_rate: highest stable learning rate of the large batch; `None` if unknown.
        trials: `(learning rate, loss)` of each short run with the large batch; the loss is infinite
            if the run diverged.
        first_loss: loss before these runs.
    """

    batch_size: int
    learning_rate: float
    num_examples: int
    updates: tuple[int, int]
    early: CriticalBatchSize
    late: CriticalBatchSize
    scaling: Literal["linear", "square root"]
    highest_rate: float | None = None
    trials: tuple[tuple[float, float], ...] = ()
    first_loss: float | None = None

    @property
    def largest_batch_size(self) -> int:
        """The largest useful batch: the late noise scale, but at most the number of examples.

        If the estimate is infinite, the lower end of its interval is used.
        """
        found = self.late.value if math.isfinite(self.late.value) else self.late.lower
        return self._whole(found)

    @property
    def interval(self) -> tuple[int, int]:
        """The confidence interval of `largest_batch_size`, at most the number of examples."""
        return self._whole(self.late.lower), self._whole(self.late.upper)

    @property
    def pays(self) -> bool:
        """Whether a larger batch than the one in use is useful."""
        return self.largest_batch_size > self.batch_size

    @property
    def scaled_learning_rate(self) -> float:
        """The learning rate in use, scaled to `largest_batch_size`."""
        return self.scaled(self.largest_batch_size)

    @property
    def advised_learning_rate(self) -> float:
        """The learning rate for `largest_batch_size`: scaled, but at most `highest_rate`."""
        return self._possible(self.largest_batch_size)

    @property
    def multiplier(self) -> float:
        """λ of the noise to add at `largest_batch_size` and `advised_learning_rate`.

        0 if noise is not worth adding.
        """
        return self.matched(self.largest_batch_size, self.advised_learning_rate)

    @property
    def multiplier_interval(self) -> tuple[float, float]:
        """λ for the batch sizes at the ends of `interval`."""
        low, high = (self.matched(size, self._possible(size)) for size in self.interval)
        return low, high

    def scaled(self, batch_size: int) -> float:
        """The learning rate in use, scaled to another batch size.

        Args:
            batch_size: number of examples.
        """
        rule = linear_scaling if self.scaling == "linear" else sqrt_scaling
        return rule(self.learning_rate, batch_size, self.batch_size)

    def matched(self, batch_size: int, learning_rate: float) -> float:
        """λ that gives a large batch the noise temperature of the batch in use.

        It is `schedules.matched_multiplier`.

        Args:
            batch_size: number of examples of the large batch.
            learning_rate: learning rate of the large batch.

        Returns:
            λ; 0 if the batch is not larger than the one in use.
        """
        if batch_size <= self.batch_size:
            return 0.0
        return matched_multiplier(
            batch_size,
            self.batch_size,
            learning_rate,
            self.learning_rate,
            scaling=self.scaling,
        )

    def __str__(self) -> str:
        return "\n".join([*self.measured(), "", *self.advised()])

    def measured(self) -> list[str]:
        """The measurements, as lines of text."""
        lines = [
            f"Gradient noise scale, in examples ({self.late.confidence:.0%} interval, from "
            f"{self.late.num_batches} batches of {self.batch_size}):"
        ]
        for updates, found in zip(self.updates, (self.early, self.late), strict=True):
            lines.append(
                f"  after {updates} updates: {found.value:.4g} ({found.lower:.4g} to "
                f"{found.upper:.4g})"
            )
        return [*lines, *self.tried()]

    def tried(self) -> list[str]:
        """The losses of the short runs with the large batch, as text; empty without such runs."""
        if not self.trials:
            return []
        losses = ", ".join(f"{loss:.4g} at rate {rate:.4g}" for rate, loss in self.trials)
        return [
            f"Loss after short runs with batches of {self.largest_batch_size}, "
            f"{self.first_loss:.4g} before: {losses}."
        ]

    def advised(self) -> list[str]:
        """The advice, as lines of text."""
        large, (lower, upper) = self.largest_batch_size, self.interval
        batch = f"Largest batch that still pays: about {large} examples ({lower} to {upper})"
        if not self.pays:
            return [f"{batch}. Stay with {self.batch_size}: a larger batch buys little."]
        noise, ratio = min(self.late.value, 1e30), large / self.batch_size
        updates = (1 + noise / self.batch_size) / (1 + noise / large)
        examples = (1 + large / noise) / (1 + self.batch_size / noise)
        scaled, rate, root = self.scaled_learning_rate, self.advised_learning_rate, self.scaling
        lines = [
            f"{batch}, {ratio:.3g} times the {self.batch_size} in use.",
            f"  By the rule of McCandlish et al. it needs 1/{updates:.3g} of the updates and "
            f"{examples:.3g} times the examples.",
            f"Learning rate: {self.learning_rate:.4g} by {root} scaling is {scaled:.4g}"
            + ("." if rate == scaled else f", but at most {rate:.4g} works."),
        ]
        if self.multiplier:
            low, high = self.multiplier_interval
            lines.append("  Clip the gradient, if you do not yet: a higher rate may work then.")
            lines.append(
                f"Noise: worth adding, because the rate cannot follow the batch: λ = "
                f"{self.multiplier:.2g} ({low:.2g} to {high:.2g})."
            )
        else:
            lines.append("Noise: not worth adding, that rate keeps the temperature (λ = 0).")
        if self.highest_rate is None:
            lower_rates = (scaled / 2, scaled / 4, self.learning_rate)
            values = [
                f"{self.matched(large, rate):.2g} at {rate:.3g}"
                for rate in lower_rates
                if rate >= self.learning_rate
            ]
            lines.append(f"If {scaled:.4g} is unstable: λ = {', '.join(values)}.")
        return lines

    def _whole(self, size):
        return max(round(min(size, self.num_examples)), 1)

    def _possible(self, batch_size):
        return min(self.scaled(batch_size), self.highest_rate or math.inf)
