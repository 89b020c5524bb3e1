"""Noise with the covariance of the whole Fisher."""

from typing import Any

from keras_noisylb.noise.base import one_of, scaled, serializable
from keras_noisylb.noise.fisher import FisherNoise, check_split
from keras_noisylb.types import Fisher, Nested, Sampler, Scalar, VectorEstimator


@serializable
class FullFisher(FisherNoise):
    """Noise with the covariance of the whole Fisher, as a small batch has it (equation 5).

    The sample is scale · v, v = M^(-1/2) Σ_i w_i g_i (`"weighted"`) or the scaled difference of the
    gradients of the batch's two halves (`"split"`, with a random sign): Wen et al. 2020, A.9.
    With λ = 1 it converges as slowly as the small batch does at the same learning rate.
    `matched_multiplier` gives λ for a higher rate.

    Args:
        small_batch_size: M_S, the batch size whose gradient covariance is imitated.
        estimator: `"weighted"` or `"split"`, as in `DiagonalFisher`.
        fisher: `"empirical"` or `"true"`, as in `DiagonalFisher`.
        multiplier: λ of C_λ = λ C.
        sampler: as in `DiagonalFisher`.

    Raises:
        ValueError: for an argument with another value.

    Example:
    ```python
    multiplier = matched_multiplier(4096, 128, large_learning_rate=0.1, small_learning_rate=0.01)
    noise = FullFisher(small_batch_size=128, estimator="split", multiplier=multiplier)
    ```
    """

    def __init__(
        self,
        small_batch_size: int,
        *,
        estimator: VectorEstimator = "weighted",
        fisher: Fisher = "empirical",
        multiplier: float = 1.0,
        sampler: Sampler | None = None,
    ) -> None:
        super().__init__(small_batch_size, fisher=fisher, sampler=sampler, multiplier=multiplier)
        one_of("estimator", estimator, VectorEstimator)
        check_split(estimator, fisher)
        self.statistic = self.estimator = estimator

    def sample(self, statistic: Nested, amplitude: Scalar, draws: Any) -> Nested:
        # The halves of data in a fixed order differ in a fixed direction; the sign has mean zero.
        sign = draws.signs((), "float32")
        return scaled(statistic, amplitude * sign)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "estimator": self.estimator}
