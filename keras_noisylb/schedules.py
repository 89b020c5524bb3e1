"""Learning rates of large-batch training: warm-up, step decay, scaling with the batch size."""

import math
from collections.abc import Iterable
from typing import Any, Literal

import keras
from keras import ops

from keras_noisylb.types import Scalar, Tensor

__all__ = [
    "WarmupStepDecay", "linear_scaling", "matched_multiplier", "noise_temperature", "peak",
    "sqrt_scaling",
]  # fmt: skip


@keras.saving.register_keras_serializable(package="keras_noisylb")
class WarmupStepDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then a constant rate with step decay (Wen et al. 2020, A.7).

    The rate at step k = 0, 1, ... is `learning_rate * min((k + 1) / warmup_steps, 1)` times
    `decay_factor**n`, where n is the number of `decay_steps` that are at most k. Without warm-up,
    `min(...)` is 1.

    Args:
        learning_rate: the rate after warm-up.
        warmup_steps: number of updates of the warm-up; 0 for none.
        decay_steps: increasing step numbers. From each of them on, the rate is multiplied by
            `decay_factor`.
        decay_factor: the factor of one decay.

    Raises:
        ValueError: if the rate or a number of steps is negative, if `decay_steps` do not increase,
            or if `decay_factor` is not positive.

    Example:
    ```python
    # 12 updates an epoch: 10 epochs of warm-up, a tenth of the rate from epochs 100 and 150 on
    WarmupStepDecay(1.6, warmup_steps=120, decay_steps=(1200, 1800))
    ```
    """

    def __init__(
        self,
        learning_rate: float,
        *,
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
        """The rate at a step, which is a number or a scalar tensor, as a float32 scalar."""
        step = ops.cast(step, "float32")
        rate = ops.convert_to_tensor(self.learning_rate, dtype="float32")
        if self.warmup_steps:
            rate = rate * ops.minimum((step + 1.0) / self.warmup_steps, 1.0)
        for boundary in self.decay_steps:
            rate = ops.where(step >= boundary, rate * self.decay_factor, rate)
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
    """The learning rate for `batch_size`, proportional to it (Goyal et al. 2017).

    One epoch then moves the parameters as far as one with `base_batch_size` does.

    Args:
        learning_rate: the rate at `base_batch_size`.
        batch_size: the batch size to scale to.
        base_batch_size: the batch size that `learning_rate` was chosen for.

    Returns:
        `learning_rate * batch_size / base_batch_size`.

    Raises:
        ValueError: if a batch size is not positive.

    Example:
    >>> linear_scaling(0.1, batch_size=4096, base_batch_size=128)
    3.2
    """
    return learning_rate * _ratio(batch_size, base_batch_size)


def sqrt_scaling(learning_rate: float, batch_size: int, base_batch_size: int) -> float:
    """The learning rate for `batch_size`, proportional to its root (Hoffer et al. 2017).

    The variance of an update is then as with `base_batch_size`.

    Args:
        learning_rate: the rate at `base_batch_size`.
        batch_size: the batch size to scale to.
        base_batch_size: the batch size that `learning_rate` was chosen for.

    Returns:
        `learning_rate * sqrt(batch_size / base_batch_size)`.

    Raises:
        ValueError: if a batch size is not positive.

    Example:
    >>> sqrt_scaling(0.1, batch_size=400, base_batch_size=100)
    0.2
    """
    return learning_rate * _ratio(batch_size, base_batch_size) ** 0.5


def noise_temperature(
    learning_rate: float,
    batch_size: int,
    *,
    small_batch_size: int | None = None,
    multiplier: float = 1.0,
    momentum: float = 0.0,
) -> float:
    """The temperature T of a training: the strength of the gradient noise in its updates.

    Let Σ be the covariance of one example's gradient. In the time η k / (1 - μ) after k updates,
    SGD moves along directions of small curvature like a diffusion with covariance T Σ:

        T = η / (1 - μ) · (1 / M + λ² (1 / M_S - 1 / M))

    1 / M comes from the batch of M examples, the second term from the added noise. Two trainings
    with the same T differ in speed, but stay equally far from a minimum: along a direction of small
    curvature, the stationary loss is T / 4 times the variance of one example's gradient. For plain
    SGD, T is the "noise scale" of Smith & Le 2018 (https://arxiv.org/abs/1710.06451) over the
    number of examples. Mandt et al. 2017 (https://arxiv.org/abs/1704.04289) derive the diffusion.
    T is valid for learning rates far below those at which training is unstable. Diagonal noise has
    the total variance of full noise, but in other directions, so T is only a first guess for it.
    Where the gradient is clipped, the training is colder than T.

    Args:
        learning_rate: η.
        batch_size: M, the number of examples that one update averages over.
        small_batch_size: M_S of the noise; `None` for training without noise.
        multiplier: λ of the noise.
        momentum: μ of SGD with momentum.

    Returns:
        T.

    Raises:
        ValueError: if a learning rate or batch size is not positive, if M_S ≥ M, if the multiplier
            is negative, or if the momentum is outside of [0, 1).

    Example:
    >>> round(noise_temperature(0.1, batch_size=128, momentum=0.9), 6)
    0.007812
    >>> round(noise_temperature(3.2, 4096, small_batch_size=128, momentum=0.9), 6)
    0.25
    """
    _positive(learning_rate=learning_rate, batch_size=batch_size)
    if not multiplier >= 0:
        raise ValueError(f"`multiplier` must not be negative. Received: multiplier={multiplier!r}")
    if not 0 <= momentum < 1:
        raise ValueError(
            f"`momentum` must be at least 0 and below 1. Received: momentum={momentum!r}"
        )
    variance = 1 / batch_size
    if small_batch_size is not None:
        _positive(small_batch_size=small_batch_size)
        _larger(batch_size, small_batch_size)
        variance += multiplier**2 * (1 / small_batch_size - 1 / batch_size)
    return learning_rate / (1 - momentum) * variance


def matched_multiplier(
    large_batch_size: int,
    small_batch_size: int,
    large_learning_rate: float,
    small_learning_rate: float,
    scaling: Literal["linear", "square root"] = "linear",
) -> float:
    """The multiplier λ that gives a large batch with noise the temperature of the small batch.

    For SGD with the same momentum in both trainings, their `noise_temperature` is equal for

        λ² = (η_S / (M_S η_L) - 1 / M_L) / (1 / M_S - 1 / M_L)

    λ is 1 for equal learning rates and decreases when η_L increases. For linear scaling,
    η_L = η_S M_L / M_S, and for larger rates, λ is 0: the large batch has this temperature without
    noise. For square-root scaling, λ ≈ (M_S / M_L)^(1/4). For η_L below η_S, λ is larger than 1.

    Adam and similar optimizers divide the gradient by its size. If the noise dominates this size,
    they move like a diffusion with the temperature η √(1 / M + λ² (1 / M_S - 1 / M)) (Malladi et
    al. 2022, https://arxiv.org/abs/2205.10287). It is equal in both trainings for

        λ² = ((η_S / η_L)² / M_S - 1 / M_L) / (1 / M_S - 1 / M_L)

    which is 0 for square-root scaling, η_L = η_S √(M_L / M_S), and for larger rates.

    Args:
        large_batch_size: M_L.
        small_batch_size: M_S.
        large_learning_rate: η_L, the largest rate of the training with the large batch.
        small_learning_rate: η_S, the largest rate of the training with the small batch.
        scaling: the rule by which the learning rate of the optimizer follows the batch size:
            `"linear"` for SGD, `"square root"` for Adam and similar optimizers.

    Returns:
        λ, for the `multiplier` of a noise.

    Raises:
        ValueError: if a learning rate or batch size is not positive, if M_S ≥ M_L, or for another
            `scaling`.

    Example:
    >>> round(matched_multiplier(4096, 128, large_learning_rate=0.1, small_learning_rate=0.1), 6)
    1.0
    >>> round(matched_multiplier(4096, 128, large_learning_rate=1.6, small_learning_rate=0.1), 3)
    0.18
    >>> round(matched_multiplier(4096, 128, 0.002, 0.001, scaling="square root"), 3)
    0.475
    """
    _positive(
        large_batch_size=large_batch_size,
        small_batch_size=small_batch_size,
        large_learning_rate=large_learning_rate,
        small_learning_rate=small_learning_rate,
    )
    _larger(large_batch_size, small_batch_size)
    powers = {"linear": 1, "square root": 2}
    if scaling not in powers:
        raise ValueError(
            f"`scaling` must be 'linear' or 'square root'. Received: scaling={scaling!r}"
        )
    ratio = (small_learning_rate / large_learning_rate) ** powers[scaling]
    wanted = ratio / small_batch_size - 1 / large_batch_size
    return (max(wanted, 0.0) / (1 / small_batch_size - 1 / large_batch_size)) ** 0.5


def peak(optimizer: keras.optimizers.Optimizer) -> float:
    """The learning rate of an optimizer; for a schedule, its largest value.

    The schedule is evaluated at 0 and at about 200 steps, each a tenth larger than the last.

    Args:
        optimizer: a Keras optimizer.

    Returns:
        A float.
    """
    rate = optimizer.get_config()["learning_rate"]
    if not isinstance(rate, dict):
        return float(rate)
    schedule = keras.saving.deserialize_keras_object(rate)
    steps = {0, *(round(1.1**k) for k in range(200))}
    return max(float(schedule(step)) for step in steps)


def _positive(**values):
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"`{name}` must be a positive number. Received: {name}={value!r}")


def _larger(large_batch_size, small_batch_size):
    if small_batch_size >= large_batch_size:
        raise ValueError(
            "The noise imitates the gradient variance of a small batch, so the small batch size "
            "must be less than the large one. Received: "
            f"small {small_batch_size}, large {large_batch_size}"
        )


def _ratio(batch_size, base_batch_size):
    if not (batch_size > 0 and base_batch_size > 0):
        raise ValueError(
            "Batch sizes must be positive. Received: "
            f"batch_size={batch_size}, base_batch_size={base_batch_size}"
        )
    return batch_size / base_batch_size


def updates_in(fraction, updates):
    """The number of updates (or epochs) in a fraction of a training, rounded up.

    Example:
    >>> updates_in(0.3, 11)
    4
    """
    # 0.07 * 100 is a little more than 7 in floating-point numbers.
    return math.ceil(round(fraction * updates, 6))
