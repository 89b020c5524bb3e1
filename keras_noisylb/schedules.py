"""Learning rates of large-batch training: warm-up, step decay, scaling with the batch size."""

from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

from keras_noisylb.types import Scalar, Tensor


@keras.saving.register_keras_serializable(package="keras_noisylb")
class WarmupStepDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then a constant rate that is multiplied at given steps (paper, A.7).

    At step k = 0, 1, ... the rate is `learning_rate * (k + 1) / warmup_steps` while
    k < `warmup_steps`, and from then on `learning_rate * decay_factor**n`, n being the number of
    `decay_steps` that are at most k. A boundary within the warm-up multiplies there too.

    Args:
        learning_rate: the rate after warm-up.
        warmup_steps: number of updates of the warm-up; 0 for none.
        decay_steps: increasing updates at which the rate is multiplied by `decay_factor`.
        decay_factor: the factor.

    Raises:
        ValueError: for a negative rate or number of steps, `decay_steps` out of order, or a
            `decay_factor` that is not positive.

    Example:
    ```python
    # 10 epochs of warm-up, x0.1 at epochs 100 and 150, 12 updates an epoch
    WarmupStepDecay(1.6, warmup_steps=120, decay_steps=(1200, 1800))
    ```
    """

    def __init__(
        self,
        learning_rate: float,
        warmup_steps: int = 0,
        decay_steps: Iterable[int] = (),
        decay_factor: float = 0.1,
    ) -> None:
        super().__init__()
        decay_steps = tuple(decay_steps)
        if not learning_rate >= 0 or warmup_steps < 0:
            raise ValueError(
                "`learning_rate` and `warmup_steps` must not be negative. Received: "
                f"learning_rate={learning_rate}, warmup_steps={warmup_steps}"
            )
        if list(decay_steps) != sorted(decay_steps) or any(step < 0 for step in decay_steps):
            raise ValueError(
                "`decay_steps` must be increasing and not negative. Received: "
                f"decay_steps={decay_steps}"
            )
        if not decay_factor > 0:
            raise ValueError(f"`decay_factor` must be positive. Received: {decay_factor}")
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.decay_steps = decay_steps
        self.decay_factor = decay_factor

    def __call__(self, step: Scalar) -> Tensor:
        """The rate, a float32 scalar, at `step`: an integer, a float or a scalar tensor."""
        step = ops.cast(step, "float32")
        rate = ops.convert_to_tensor(self.learning_rate, dtype="float32")
        if self.warmup_steps:
            rate = rate * ops.minimum((step + 1.0) / self.warmup_steps, 1.0)
        for boundary in self.decay_steps:
            rate = rate * ops.where(step >= boundary, self.decay_factor, 1.0)
        return rate

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {
            "learning_rate": self.learning_rate,
            "warmup_steps": self.warmup_steps,
            "decay_steps": list(self.decay_steps),
            "decay_factor": self.decay_factor,
        }


def linear_scaling(learning_rate: float, batch_size: int, base_batch_size: int) -> float:
    """The learning rate for `batch_size` that moves as far per example: proportional to it.

    Args:
        learning_rate: the rate at `base_batch_size`.
        batch_size: the batch size to scale to.
        base_batch_size: the batch size that `learning_rate` was chosen for.

    Returns:
        `learning_rate * batch_size / base_batch_size` (Goyal et al. 2017).

    Raises:
        ValueError: for a batch size that is not positive.

    Example:
    >>> linear_scaling(0.1, batch_size=4096, base_batch_size=128)
    3.2
    """
    return learning_rate * _ratio(batch_size, base_batch_size)


def sqrt_scaling(learning_rate: float, batch_size: int, base_batch_size: int) -> float:
    """The learning rate for `batch_size` that keeps the variance of an update (Hoffer et al. 2017).

    Args:
        learning_rate: the rate at `base_batch_size`.
        batch_size: the batch size to scale to.
        base_batch_size: the batch size that `learning_rate` was chosen for.

    Returns:
        `learning_rate * sqrt(batch_size / base_batch_size)`.

    Raises:
        ValueError: for a batch size that is not positive.

    Example:
    >>> sqrt_scaling(0.1, batch_size=400, base_batch_size=100)
    0.2
    """
    return learning_rate * _ratio(batch_size, base_batch_size) ** 0.5


def _ratio(batch_size, base_batch_size):
    if not (batch_size > 0 and base_batch_size > 0):
        raise ValueError(
            "Batch sizes must be positive. Received: "
            f"batch_size={batch_size}, base_batch_size={base_batch_size}"
        )
    return batch_size / base_batch_size
