"""What all noises share: the scale of the paper's equations 5 and 6, and the base class."""

import keras
from keras import ops


def noise_scale(large_batch_size, small_batch_size):
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

    Args:
        small_batch_size: M_S, the batch size whose gradient covariance is imitated.
        multiplier: λ of C_λ = λ C; 1 is the paper's noise.

    Raises:
        ValueError: if `small_batch_size` is not a positive integer, or `multiplier` is negative.
    """

    def __init__(self, small_batch_size, multiplier=1.0):
        if not isinstance(small_batch_size, int) or small_batch_size < 1:
            raise ValueError(
                "`small_batch_size` must be a positive integer, the batch size to imitate. "
                f"Received: small_batch_size={small_batch_size!r}"
            )
        if not multiplier >= 0:
            raise ValueError(
                "`multiplier` must be a number that is not negative; 1 is the paper's noise. "
                f"Received: multiplier={multiplier!r}"
            )
        self.small_batch_size = small_batch_size
        self.multiplier = multiplier

    def sample(self, statistic, scale, normal):
        """Draw one sample of the noise.

        Args:
            statistic: list of tensors (or `None`) aligned with the trainable variables.
            scale: scalar, `noise_scale` of the batch.
            normal: function `shape, dtype -> tensor` of independent standard normal numbers, new
                ones at each call.

        Returns:
            List of tensors (or `None`) aligned with `statistic`.
        """
        raise NotImplementedError

    def get_config(self):
        return {"small_batch_size": self.small_batch_size, "multiplier": self.multiplier}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def one_of(name, value, allowed):
    """Check that an argument has one of its allowed values.

    Args:
        name: the argument.
        value: what was received.
        allowed: the values that it may have.

    Raises:
        ValueError: otherwise.
    """
    if value not in allowed:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, allowed))}. Received: {name}={value!r}"
        )


serializable = keras.saving.register_keras_serializable(package="keras_noisylb")
