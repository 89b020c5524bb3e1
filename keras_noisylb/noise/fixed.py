"""Noises whose size is an argument, to compare with those of the Fisher."""

from typing import Any, Literal

from keras import ops

from keras_noisylb.noise.base import Noise, not_negative, one_of, scaled, serializable
from keras_noisylb.types import Nested, Scalar

Form = Literal["coordinate", "example"]


class FixedNoise(Noise):
    """Base class of the noises whose size is an argument.

    Args:
        sigma: σ, the standard deviation.

    Raises:
        ValueError: if `sigma` is not a number, or negative.
    """

    def __init__(self, sigma: float) -> None:
        not_negative("sigma", sigma, "the noise's standard deviation")
        self.sigma = sigma

    def get_config(self) -> dict[str, Any]:
        return {"sigma": self.sigma}


@serializable
class Isotropic(FixedNoise):
    """Gaussian noise of the same standard deviation for every parameter: N(0, σ² I).

    Args:
        sigma: σ, in units of the gradient of one update.

    Raises:
        ValueError: if `sigma` is not a number, or negative.

    Example:
    ```python
    noise = Isotropic(sigma=0.01)
    ```
    """

    statistic = "gradient"

    def amplitude(self, num_examples: Scalar, parts: int, unit: Scalar) -> Scalar:
        return self.sigma * parts**0.5 * unit

    def sample(self, statistic: Nested, amplitude: Scalar, draws: Any) -> Nested:
        noise = [None if g is None else draws.normal(g.shape, g.dtype) for g in statistic]
        return scaled(noise, amplitude)


@serializable
class Multiplicative(FixedNoise):
    """Gradient multiplied by Gaussian noise of constant variance.

    `form="coordinate"`: every coordinate of the gradient is multiplied by its own 1 + σ ξ, as Wen
    et al. 2020 describe it (A.8). `form="example"`: every example's gradient is multiplied by its
    own number from N(1, σ²), as in Hoffer et al. 2017, which costs one more backward pass. The
    paper does not state its σ.

    Args:
        sigma: σ, relative to the gradient.
        form: `"coordinate"` or `"example"`.

    Raises:
        ValueError: for an argument with another value.

    Example:
    ```python
    noise = Multiplicative(sigma=0.5)
    ```
    """

    def __init__(self, sigma: float, *, form: Form = "coordinate") -> None:
        super().__init__(sigma)
        one_of("form", form, Form)
        self.form = form
        self.shared = form == "coordinate"
        self.statistic = "gradient" if self.shared else "weighted"

    def amplitude(self, num_examples: Scalar, parts: int, unit: Scalar) -> Scalar:
        if self.form == "coordinate":
            return self.sigma
        # The statistic is Σ_i w_i g_i / √M, the noise is σ Σ_i w_i g_i / M.
        return self.sigma * ops.rsqrt(ops.maximum(ops.cast(num_examples, "float32"), 1.0))

    def sample(self, statistic: Nested, amplitude: Scalar, draws: Any) -> Nested:
        if self.form == "example":
            return scaled(statistic, amplitude)
        noise = [None if g is None else g * draws.normal(g.shape, g.dtype) for g in statistic]
        return scaled(noise, amplitude)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "form": self.form}
