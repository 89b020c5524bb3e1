"""Isotropic noise with the trace of the Fisher."""

from typing import Any

from keras import ops

from keras_noisylb.noise.base import scaled, serializable
from keras_noisylb.noise.diagonal import DiagonalNoise
from keras_noisylb.types import Nested, Scalar


@serializable
class FisherTrace(DiagonalNoise):
    """Isotropic noise with the total variance of the Fisher: C = scale · sqrt(tr F / d) I.

    Args:
        small_batch_size: M_S, the batch size whose gradient covariance is imitated.
        estimator: `"per_example"`, `"weighted"` or `"split"`, as in `DiagonalFisher`.
        fisher: `"empirical"` or `"true"`, as in `DiagonalFisher`.
        engine: as in `DiagonalFisher`.
        max_examples: as in `DiagonalFisher`.
        conv: as in `DiagonalFisher`.
        multiplier: λ of C_λ = λ C.
        sampler: as in `DiagonalFisher`.

    Raises:
        ValueError: for an argument with another value, or that the estimator does not use.

    Example:
    ```python
    noise = FisherTrace(small_batch_size=128, estimator="split")
    ```
    """

    def sample(self, statistic: Nested, amplitude: Scalar, draws: Any) -> Nested:
        known = [s for s in statistic if s is not None]
        squares = known if self.estimator == "per_example" else [ops.square(v) for v in known]
        total = sum(ops.cast(ops.sum(s), "float32") for s in squares)
        deviation = ops.sqrt(total / sum(s.shape.num_elements() for s in known))
        noise = [None if s is None else draws.normal(s.shape, s.dtype) for s in statistic]
        return scaled(noise, amplitude * deviation)
