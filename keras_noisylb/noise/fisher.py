"""Noise with the covariance of the diagonal Fisher: the method of the paper."""

from keras import ops

from keras_noisylb.noise.base import Noise, one_of, serializable


@serializable
class DiagonalFisher(Noise):
    """Gaussian noise with the covariance of the per-example gradients' diagonal Fisher.

    The sample is scale · sqrt(diag F) ⊙ ξ with ξ ~ N(0, I) and diag F = (1/M) Σ_i g_i² over the
    examples of the large batch: Algorithm 1 and equation 6 of Wen et al. 2020.

    Args:
        small_batch_size: M_S, the batch size whose gradient covariance is imitated.
        estimator: how diag F is obtained: `"per_example"`, from the gradient of each example.
        fisher: whose labels: `"empirical"`, those of the data.
        engine: `"layerwise"` (fast, needs a rule for each layer), `"vectorized_map"` (the
            reference, slow), or `"auto"`: layerwise where every trainable variable is covered,
            otherwise the reference, which is said once by a warning.
        max_examples: estimate diag F from the first so many examples of the batch only; `None`
            uses all. The gradient always uses all.
        conv: `"exact"`, or `"uncorrelated"` for the formula printed in the paper's A.5, which drops
            the products between positions of a convolution: much cheaper and much smaller.
        multiplier: λ of C_λ = λ C.

    Raises:
        ValueError: for an argument outside of these values.

    Example:
    ```python
    noise = DiagonalFisher(small_batch_size=128)
    optimizer = NoisyOptimizer(keras.optimizers.SGD(0.1, momentum=0.9), noise)
    ```
    """

    def __init__(
        self,
        small_batch_size,
        estimator="per_example",
        fisher="empirical",
        engine="auto",
        max_examples=None,
        conv="exact",
        multiplier=1.0,
    ):
        super().__init__(small_batch_size, multiplier)
        one_of("estimator", estimator, ("per_example",))
        one_of("fisher", fisher, ("empirical",))
        one_of("engine", engine, ("auto", "layerwise", "vectorized_map"))
        one_of("conv", conv, ("exact", "uncorrelated"))
        if conv == "uncorrelated" and engine == "vectorized_map":
            raise ValueError(
                'conv="uncorrelated" is a formula for single layers, but engine="vectorized_map" '
                'differentiates the model as a whole. Use engine="layerwise" or engine="auto".'
            )
        if max_examples is not None and (not isinstance(max_examples, int) or max_examples < 1):
            raise ValueError(
                "`max_examples` must be a positive integer, or None for the whole batch. "
                f"Received: max_examples={max_examples!r}"
            )
        self.estimator = estimator
        self.fisher = fisher
        self.engine = engine
        self.max_examples = max_examples
        self.conv = conv

    def sample(self, statistic, scale, normal):
        scale = scale * self.multiplier
        return [
            None if f is None else ops.cast(scale, f.dtype) * ops.sqrt(f) * normal(f.shape, f.dtype)
            for f in statistic
        ]

    def get_config(self):
        return {
            **super().get_config(),
            "estimator": self.estimator,
            "fisher": self.fisher,
            "engine": self.engine,
            "max_examples": self.max_examples,
            "conv": self.conv,
        }
