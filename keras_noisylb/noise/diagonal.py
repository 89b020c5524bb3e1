"""Noise with the covariance of the diagonal Fisher, the paper's method."""

from typing import Any

from keras import ops

from keras_noisylb.noise.base import one_of, positive_integer, scaled, serializable
from keras_noisylb.noise.fisher import FisherNoise, check_split
from keras_noisylb.types import Conv, Engine, Estimator, Fisher, Nested, Sampler, Scalar


class DiagonalNoise(FisherNoise):
    """Base class of the noises that are derived from the diagonal of the Fisher.

    Args:
        small_batch_size: M_S, the batch size whose gradient covariance is imitated.
        estimator: `"per_example"`, from the gradient of each example; `"weighted"`, by a backward
            pass of the examples' losses with random weights; or `"split"`, from the difference of
            the batch's two halves.
        fisher: `"empirical"` or `"true"`.
        engine: what computes per-example gradients: `"layerwise"`, `"vectorized_map"` or `"auto"`.
        max_examples: number of examples of the batch to use; `None` for all.
        conv: `"exact"` or `"uncorrelated"`.
        multiplier: λ of C_λ = λ C.
        sampler: for `fisher="true"`.

    Raises:
        ValueError: for an argument with another value, or that the estimator does not use.
    """

    def __init__(
        self,
        small_batch_size: int,
        *,
        estimator: Estimator = "per_example",
        fisher: Fisher = "empirical",
        engine: Engine = "auto",
        max_examples: int | None = None,
        conv: Conv = "exact",
        multiplier: float = 1.0,
        sampler: Sampler | None = None,
    ) -> None:
        super().__init__(small_batch_size, fisher=fisher, sampler=sampler, multiplier=multiplier)
        one_of("estimator", estimator, Estimator)
        one_of("engine", engine, Engine)
        one_of("conv", conv, Conv)
        if conv == "uncorrelated" and engine == "vectorized_map":
            raise ValueError(
                'conv="uncorrelated" is a formula for single layers, but engine="vectorized_map" '
                'differentiates the model as a whole. Use engine="layerwise" or engine="auto".'
            )
        if max_examples is not None:
            positive_integer("max_examples", max_examples, "or None for the whole batch")
        if estimator != "per_example":
            for name, value, default in (
                ("engine", engine, "auto"),
                ("max_examples", max_examples, None),
                ("conv", conv, "exact"),
            ):
                if value != default:
                    raise ValueError(
                        f'`{name}` is an option of estimator="per_example" only. '
                        f"Received: {name}={value!r}, estimator={estimator!r}"
                    )
        check_split(estimator, fisher)
        self.statistic = "squares" if estimator == "per_example" else estimator
        self.estimator = estimator
        self.engine = engine
        self.max_examples = max_examples
        self.conv = conv

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "estimator": self.estimator,
            "engine": self.engine,
            "max_examples": self.max_examples,
            "conv": self.conv,
        }


@serializable
class DiagonalFisher(DiagonalNoise):
    """Noise with the covariance of the per-example gradients' diagonal Fisher.

    The covariance is scale² · diag F with F = (1/M) Σ_i g_i g_iᵀ over the examples of the large
    batch: Algorithm 1 and equation 6 of Wen et al. 2020. With `estimator="per_example"` the sample
    is scale · sqrt(diag F) ⊙ ξ, ξ ~ N(0, I). With `"weighted"` and `"split"` it is scale · s ⊙ v:
    v has the full covariance, and a random sign s for each coordinate removes what is off the
    diagonal. Its coordinates are uncorrelated and each is Gaussian (`"split"`: for many examples),
    but they are not jointly Gaussian. The paper's theorem 4.1 still holds for them.

    Args:
        small_batch_size: M_S, the batch size whose gradient covariance is imitated.
        estimator: `"per_example"`, from the gradient of each example; `"weighted"`, by one more
            backward pass, for any model; or `"split"`, from the difference of the batch's two
            halves, for any model, at no cost. `"split"` has the covariance around the mean
            gradient.
        fisher: whose labels: `"empirical"`, those of the data, or `"true"`, drawn from the model's
            predictive distribution (not with `"split"`).
        engine: what computes per-example gradients: `"layerwise"` (fast, needs a rule for each
            layer), `"vectorized_map"` (the reference, slow), or `"auto"`: layerwise where rules
            cover every trainable variable, else the reference, with one warning.
        max_examples: number of examples of the batch that diag F is estimated from, the first ones
            (of each microbatch); `None` for all. The gradient always uses all.
        conv: `"exact"`, or `"uncorrelated"` for the formula printed in the paper's A.5. It drops
            the products between positions of a convolution, is much cheaper and gives less noise.
        multiplier: λ of C_λ = λ C.
        sampler: function `(y, y_pred, draws) -> y` that draws labels for `fisher="true"`, for a
            loss whose distribution is not known.

    Raises:
        ValueError: for an argument with another value, or that the estimator does not use.

    Example:
    ```python
    noise = DiagonalFisher(small_batch_size=128, estimator="split")
    optimizer = NoisyOptimizer(keras.optimizers.SGD(0.1, momentum=0.9), noise)
    ```
    """

    def sample(self, statistic: Nested, amplitude: Scalar, draws: Any) -> Nested:
        if self.estimator == "per_example":
            return diagonal_sample(statistic, amplitude, draws)
        signed = [None if v is None else v * draws.signs(v.shape, v.dtype) for v in statistic]
        return scaled(signed, amplitude)


def diagonal_sample(squares, amplitude, draws):
    """The sample amplitude · sqrt(squares) ⊙ ξ with ξ ~ N(0, I); `None` stays `None`."""
    roots = [None if f is None else ops.sqrt(f) * draws.normal(f.shape, f.dtype) for f in squares]
    return scaled(roots, amplitude)
