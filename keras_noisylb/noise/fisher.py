"""The base class of the noises whose covariance is derived from the Fisher."""

from typing import Any, Self

import keras

from keras_noisylb.noise.base import Noise, noise_scale, not_negative, one_of, positive_integer
from keras_noisylb.types import Fisher, Sampler, Scalar


class FisherNoise(Noise):
    """Base class of the noises whose covariance is derived from the Fisher.

    Args:
        small_batch_size: M_S, the batch size whose gradient covariance is imitated.
        fisher: whose labels: `"empirical"`, those of the data, or `"true"`, drawn from the model's
            predictive distribution.
        sampler: function `(y, y_pred, draws) -> y` that draws labels, for a loss whose
            distribution is not known.
        multiplier: λ of C_λ = λ C; 1 is the paper's noise.

    Raises:
        ValueError: for an argument with another value.
    """

    def __init__(
        self,
        small_batch_size: int,
        *,
        fisher: Fisher = "empirical",
        sampler: Sampler | None = None,
        multiplier: float = 1.0,
    ) -> None:
        positive_integer("small_batch_size", small_batch_size, "the batch size to imitate")
        not_negative("multiplier", multiplier, "where 1 is the paper's noise")
        one_of("fisher", fisher, Fisher)
        if sampler is not None and (fisher != "true" or not callable(sampler)):
            raise ValueError(
                "`sampler` must be a function (y, y_pred, draws) -> y, and needs "
                f'fisher="true". Received: sampler={sampler!r}, fisher={fisher!r}'
            )
        self.small_batch_size = small_batch_size
        self.fisher = fisher
        self.sampler = sampler
        self.multiplier = multiplier

    def amplitude(self, num_examples: Scalar, parts: int, unit: Scalar) -> Scalar:
        scale = noise_scale(parts * num_examples, self.small_batch_size)
        return self.multiplier * parts**0.5 * scale

    def get_config(self) -> dict[str, Any]:
        sampler = self.sampler
        return {
            "small_batch_size": self.small_batch_size,
            "fisher": self.fisher,
            "sampler": sampler and keras.saving.serialize_keras_object(sampler),
            "multiplier": self.multiplier,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        if config.get("sampler") is not None:
            config["sampler"] = keras.saving.deserialize_keras_object(config["sampler"])
        return cls(**config)


def check_split(estimator, fisher):
    """Reject `"split"` with labels that are not those of the data."""
    if estimator == "split" and fisher == "true":
        raise ValueError(
            'estimator="split" is the difference of two gradients that the update computes with '
            'the labels of the data. With fisher="true", use estimator="weighted".'
        )
