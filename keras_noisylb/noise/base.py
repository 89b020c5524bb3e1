"""What all noises share: the scale of the paper's equations 5 and 6, the base class and checks."""

import numbers
from typing import Any, Self, get_args

import keras
from keras import ops

from keras_noisylb.types import Fisher, Nested, Sampler, Scalar, Tensor


def noise_scale(large_batch_size: Scalar, small_batch_size: Scalar) -> Tensor:
    """Standard deviation of the noise of one large-batch update, in units of √F.

    The mean gradient of M examples has the variance F / M. Noise of variance
    F (1 / M_S - 1 / M_L) raises that of the large batch to that of the small batch (Wen et al.
    2020, equations 5 and 6). The scale is sqrt((M_L - M_S) / (M_L M_S)), or 0 where M_L <= M_S.

    Args:
        large_batch_size: M_L, number or scalar tensor: all examples that one update averages.
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
    """Base class of the noises that are added to the gradient of a large batch.

    A noise names the statistic of the batch that it needs and turns it into one sample. It does not
    depend on models, batches or devices.

    Attributes:
        statistic: a name in `keras_noisylb.gradients.STATISTICS`: "squares" (the mean of g_i²),
            "weighted" or "split" (a vector with the covariance of the per-example gradients),
            "factors" (Kronecker factors), "gradient", or one that was registered.
        fisher: whose labels the statistic uses: `"empirical"`, those of the data, or `"true"`,
            drawn from the model.
        sampler: function that draws labels for `fisher="true"`, or `None`.
        small_batch_size: M_S, or `None` for a noise whose size does not depend on the batch.
        shared: whether all devices and accumulated batches of an update must draw the same numbers.
            This is so where the noise multiplies a gradient of which each of them has a part.
        update_every: number of updates that use the same statistic.
    """

    statistic: str
    fisher: Fisher = "empirical"
    sampler: Sampler | None = None
    small_batch_size: int | None = None
    shared: bool = False
    update_every: int = 1

    def amplitude(self, num_examples: Scalar, parts: int, unit: Scalar) -> Scalar:
        """The factor that `sample` multiplies the noise of one part of the batch by.

        The gradient of the update is the mean of the parts' gradients. Each part has independent
        noise, √parts times as large as that of the whole batch, so that the mean is right.

        Args:
            num_examples: examples in one part.
            parts: number of equal parts (devices times accumulated batches).
            unit: factor that scales this part's gradients: the loss scale over the number of
                devices.

        Returns:
            Scalar.
        """
        raise NotImplementedError

    def sample(self, statistic: Nested, amplitude: Scalar, draws: Any) -> Nested:
        """Draw one sample of the noise.

        Args:
            statistic: what the noise's statistic has computed: for all but "factors", a list of
                tensors (or `None`) aligned with the trainable variables.
            amplitude: scalar, from `amplitude`.
            draws: source of random numbers with `normal(shape, dtype)` and `signs(shape, dtype)`.

        Returns:
            List of tensors (or `None`) aligned with the trainable variables; for "factors", what
            its `arrange` brings into that form.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**config)


def positive_integer(name, value, meaning):
    """Raise `ValueError` if an argument is not a positive integer."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"`{name}` must be a positive integer, {meaning}. Received: {name}={value!r}"
        )


def not_negative(name, value, meaning):
    """Raise `ValueError` if an argument is not a finite number of at least 0."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value < float("inf"):
        raise ValueError(
            f"`{name}` must be a finite number of at least 0, {meaning}. Received: {name}={value!r}"
        )


def one_of(name, value, options):
    """Raise `ValueError` if an argument is none of the values of the `Literal` type `options`."""
    allowed = get_args(options)
    if value not in allowed:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, allowed))}. Received: {name}={value!r}"
        )


def scaled(sample, amplitude):
    """Every tensor of `sample` times a scalar; `None` stays `None`."""
    return [None if s is None else s * ops.cast(amplitude, s.dtype) for s in sample]


serializable = keras.saving.register_keras_serializable(package="keras_noisylb")
