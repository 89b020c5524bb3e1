"""What all noises share: the scale of the paper's equations 5 and 6, and the base classes."""

import numbers
from typing import Any, Self, get_args

import keras
from keras import ops

from keras_noisylb.types import Fisher, Nested, Sampler, Scalar, Tensor


def noise_scale(large_batch_size: Scalar, small_batch_size: Scalar) -> Tensor:
    """Standard deviation that the noise of one large-batch update needs, per unit of √F.

    Averaging M examples leaves a gradient variance F / M. Noise of variance
    F (1 / M_S - 1 / M_L) raises that of the large batch to that of the small one (Wen et al. 2020,
    equations 5 and 6): the scale is sqrt((M_L - M_S) / (M_L M_S)), and 0 where M_L <= M_S.

    Args:
        large_batch_size: M_L, number or scalar tensor: all the examples that one update averages.
        small_batch_size: M_S, the batch size to imitate.

    Returns:
        Scalar float32 tensor.

    Example:
    >>> float(noise_scale(4096, 128))  # doctest: +ELLIPSIS
    0.0869...
    """
    large = ops.cast(large_batch_size, "float32")
    small = ops.cast(small_batch_size, "float32")
    excess = ops.maximum(large - small, 0.0)
    return ops.sqrt(ops.divide_no_nan(excess, large * small))


class Noise:
    """Base class: what is added to the gradient of a large batch.

    A noise names the statistic of the batch that it needs and turns it into one sample. It knows
    nothing of models, batches or devices.

    Attributes:
        statistic: "squares" (the mean of g_i²), "weighted" or "split" (a vector whose covariance is
            that of the per-example gradients), "factors" (Kronecker factors), or "gradient".
        fisher: whose labels make the statistic, `"empirical"` or `"true"`.
        sampler: function that draws labels for `fisher="true"`, or `None`.
        small_batch_size: M_S, or `None` for a noise whose size does not depend on the batch.
        shared: whether all devices and accumulated batches of an update must draw the same numbers,
            because the noise multiplies a gradient of which each of them holds a part.
        update_every: number of updates for which one statistic is used.
    """

    statistic: str
    fisher: Fisher = "empirical"
    sampler: Sampler | None = None
    small_batch_size: int | None = None
    shared: bool = False
    update_every: int = 1

    def amplitude(self, num_examples: Scalar, parts: int, unit: Scalar) -> Scalar:
        """What the sample of one part of the batch is multiplied by.

        The parts' gradients are averaged to the gradient of the update, each with a noise of its
        own. Independent noise √parts as large adds up to the noise of the whole batch.

        Args:
            num_examples: examples in one part.
            parts: number of equal parts (devices times accumulated batches).
            unit: the size that a gradient of 1 has in this part, where losses are scaled.

        Returns:
            Scalar.
        """
        raise NotImplementedError

    def sample(self, statistic: Nested, amplitude: Scalar, draws: Any) -> Nested:
        """Draw one sample of the noise.

        Args:
            statistic: list of tensors (or `None`) aligned with the trainable variables; for
                "factors" see `KroneckerFactored`.
            amplitude: scalar, from `amplitude`.
            draws: source of random numbers with `normal(shape, dtype)` and `signs(shape, dtype)`.

        Returns:
            Tensors (or `None`), nested as the statistic is.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**config)


def positive_integer(name, value, meaning):
    """Check an argument that counts something.

    Args:
        name: the argument.
        value: what was received.
        meaning: what it counts.

    Raises:
        ValueError: if it is not a positive integer.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"`{name}` must be a positive integer, {meaning}. Received: {name}={value!r}"
        )


def not_negative(name, value, meaning):
    """Check an argument that measures a size.

    Args:
        name: the argument.
        value: what was received.
        meaning: what it measures.

    Raises:
        ValueError: if it is not a number, negative or not finite.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value < float("inf"):
        raise ValueError(
            f"`{name}` must be a number that is not negative, {meaning}. Received: {name}={value!r}"
        )


def one_of(name, value, options):
    """Check that an argument has one of its allowed values.

    Args:
        name: the argument.
        value: what was received.
        options: the `Literal` type of the values that it may have.

    Raises:
        ValueError: otherwise.
    """
    allowed = get_args(options)
    if value not in allowed:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, allowed))}. Received: {name}={value!r}"
        )


def scaled(sample, amplitude):
    """Every tensor of `sample` times a scalar; `None` stays `None`."""
    return [None if s is None else s * ops.cast(amplitude, s.dtype) for s in sample]


serializable = keras.saving.register_keras_serializable(package="keras_noisylb")
