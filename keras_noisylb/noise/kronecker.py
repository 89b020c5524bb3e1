"""Noise with a Kronecker-factored covariance for each layer."""

from typing import Any

from keras import ops

from keras_noisylb.noise.base import not_negative, positive_integer, scaled, serializable
from keras_noisylb.noise.diagonal import diagonal_sample
from keras_noisylb.noise.fisher import FisherNoise
from keras_noisylb.types import Fisher, Nested, Sampler, Scalar


@serializable
class KroneckerFactored(FisherNoise):
    """Noise with the covariance of the K-FAC approximation of the Fisher (Wen et al. 2020, A.6).

    Each Dense and (ungrouped) Conv1D or Conv2D layer has the covariance scale² · A ⊗ G: A is the
    second moment of the layer's inputs with a 1 for the bias, G that of the gradients at its
    pre-activation (Martens & Grosse 2015; for convolutions Grosse & Martens 2016). A sample is
    scale · L_A Z L_Gᵀ, where Z is standard normal and L Lᵀ is the damped factor. All other
    parameters, and those of layers that share a parameter, get the noise of the diagonal Fisher;
    `report` shows which. Every trainable variable needs a layer rule.

    Args:
        small_batch_size: M_S, the batch size whose gradient covariance is imitated.
        fisher: `"empirical"` or `"true"`, as in `DiagonalFisher`.
        damping: fraction of its mean eigenvalue that is added to the diagonal of each factor, so
            that it has a root. It raises the noise's variance by about twice that fraction.
        update_every: number of updates that use the same factors. More than 1 saves time; the
            factors are then stored, and saved, with the optimizer.
        max_examples: number of examples of the batch that the factors are computed from, the first
            ones (of each microbatch); `None` for all.
        multiplier: λ of C_λ = λ C.
        sampler: as in `DiagonalFisher`.

    Raises:
        ValueError: for an argument with another value.

    Example:
    ```python
    noise = KroneckerFactored(small_batch_size=128, update_every=10)
    ```
    """

    statistic = "factors"

    def __init__(
        self,
        small_batch_size: int,
        *,
        fisher: Fisher = "empirical",
        damping: float = 0.01,
        update_every: int = 1,
        max_examples: int | None = None,
        multiplier: float = 1.0,
        sampler: Sampler | None = None,
    ) -> None:
        super().__init__(small_batch_size, fisher=fisher, sampler=sampler, multiplier=multiplier)
        not_negative("damping", damping, "a fraction of each factor's mean eigenvalue")
        if damping == 0:
            raise ValueError(
                "`damping` must be positive: factors of few examples are singular and have no "
                "root without it. Received: damping=0"
            )
        positive_integer("update_every", update_every, "a number of updates")
        if max_examples is not None:
            positive_integer("max_examples", max_examples, "or None for the whole batch")
        self.damping = damping
        self.update_every = update_every
        self.max_examples = max_examples

    def sample(self, statistic: Nested, amplitude: Scalar, draws: Any) -> Nested:
        squares, roots = statistic
        matrices = []
        for root_a, root_g in roots:
            z = draws.normal((root_a.shape[0], root_g.shape[0]), root_a.dtype)
            matrices.append(ops.matmul(ops.matmul(root_a, z), ops.transpose(root_g)))
        return diagonal_sample(squares, amplitude, draws), scaled(matrices, amplitude)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "damping": self.damping,
            "update_every": self.update_every,
            "max_examples": self.max_examples,
        }
