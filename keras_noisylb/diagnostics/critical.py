"""The gradient noise scale at frozen weights, with a confidence interval."""

import dataclasses
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_noisylb.diagnostics.batches import minibatches
from keras_noisylb.diagnostics.checks import MeanLoss, check_finite, check_model
from keras_noisylb.diagnostics.minibatches import MinibatchGradients
from keras_noisylb.diagnostics.progress import progress_bar
from keras_noisylb.types import Loss, Nested

FEWEST_BATCHES = 5  # the coverage of the interval is tested for this number and more


@dataclasses.dataclass(frozen=True)
class CriticalBatchSize:
    """An estimate of tr Σ / ‖G‖².

    Args:
        value: the estimate, in examples; infinite if the estimate of ‖G‖² is not positive.
        lower: lower end of the confidence interval.
        upper: upper end; infinite if ‖G‖² does not differ significantly from 0.
        confidence: the interval's nominal coverage.
        trace: estimate of tr Σ, the total variance of one example's gradient.
        trace_error: its standard error.
        squared_norm: estimate of ‖G‖², unbiased, so it may be negative.
        squared_norm_error: its standard error.
        batch_size: number of examples in a batch.
        num_batches: number of batches.
    """

    value: float
    lower: float
    upper: float
    confidence: float
    trace: float
    trace_error: float
    squared_norm: float
    squared_norm_error: float
    batch_size: int
    num_batches: int


def critical_batch_size(
    model: keras.Model,
    loss: Loss,
    x: Any,
    y: Nested = None,
    *,
    batch_size: int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    verbose: int = 1,
) -> CriticalBatchSize:
    """The batch size beyond which more examples help little: the simple gradient noise scale.

    B_simple = tr Σ / ‖G‖² (McCandlish et al. 2018, https://arxiv.org/abs/1812.06162, section 2.2).
    G is the expected gradient, regularisers included, and Σ the covariance of one example's
    gradient. At this batch size the noise of a batch gradient is as large as the gradient.

    The K batches of one pass have gradients G_k with mean G and covariance Σ / b. The estimates

        ‖G‖² ≈ Σ_{k≠l} G_k · G_l / (K (K − 1)),    tr Σ ≈ b Σ_k ‖G_k − mean‖² / (K − 1)

    are unbiased. The interval is Fieller's for their ratio, with their covariance from the
    jackknife over batches and Student's t with K − 1 degrees of freedom. It assumes that the
    examples are independent draws from one distribution, for which tr Σ and G are defined.

    The data are read twice. Memory holds a gradient and a few float64 vectors of the size of the
    model. Weights and state do not change. The model runs in training mode: with batch or ghost
    statistics, Σ / b is the covariance of a batch gradient, coupling between examples included.

    Args:
        model: a Keras model.
        loss: a Keras loss, its name, or a function `(y, y_pred)` that returns losses or their mean.
        x: inputs, N examples first, or nested; or a `tf.data.Dataset` of batches of equal size,
            `(x, y)` or `(x, y, sample_weight)`, the same on every pass. A smaller last batch is
            dropped.
        y: targets; `None` with a dataset.
        batch_size: b, number of examples in a batch; the arrays are shuffled first. `None` with a
            dataset. At least 5 batches are needed; more batches make ‖G‖² more precise and the
            interval shorter.
        confidence: coverage of the interval, between 0 and 1.
        seed: integer, seed of the order of the examples.
        verbose: 0, or 1 for a progress bar.

    Returns:
        A `CriticalBatchSize`. Warns if the interval has no upper end.

    Raises:
        ValueError: if there are fewer than 5 batches, if `confidence` is not between 0 and 1, if
            weights or gradients are not finite, or if the model has no trainable variables.

    Example:
    ```python
    found = critical_batch_size(model, loss, x_train, y_train, batch_size=64)
    print(f"{found.value:.0f} examples, between {found.lower:.0f} and {found.upper:.0f}")
    ```
    """
    if not 0 < confidence < 1:
        raise ValueError(
            f"`confidence` must be between 0 and 1. Received: confidence={confidence!r}"
        )
    loss, batches = MeanLoss(loss), minibatches(x, y, batch_size)
    size = batches.batch_size
    number = sum(1 for _ in batches.disjoint(np.random.default_rng(seed)))
    if number < FEWEST_BATCHES:
        raise ValueError(
            f"A confidence interval needs at least {FEWEST_BATCHES} full batches. Received: "
            f"{number} of {size} examples. Pass more data, or use smaller batches."
        )
    check_model(model, batches)
    source = MinibatchGradients(model, loss, batches)
    norms: list[float] = []
    products: list[float] = []
    total: Any = None

    def add(gradients):
        nonlocal total
        pairs = zip(total or gradients, gradients, strict=True)
        total = [a + b for a, b in pairs] if total else gradients
        advance()

    def multiply(gradients):
        norms.append(_dot(gradients, gradients))
        products.append(_dot(gradients, total))
        advance()

    with progress_bar("Gradients", 2 * number, verbose) as advance:
        for use in (add, multiply):
            source.visit(batches.disjoint(np.random.default_rng(seed)), use)
    paths = [v.path for v in model.trainable_variables]
    check_finite("The gradient", [float(tf.reduce_sum(t)) for t in total], paths)
    result = noise_scale_interval(norms, products, size, confidence)
    if np.isinf(result.upper):
        warnings.warn(
            f"The critical batch size has no upper bound at confidence {confidence:g}: the squared "
            f"gradient, {result.squared_norm:.3g} ± {result.squared_norm_error:.2g}, does not "
            "differ significantly from 0. Pass more data for an upper bound.",
            stacklevel=2,
        )
    return result


def noise_scale_interval(norms, products, batch_size, confidence=0.95):
    """The ratio tr Σ / ‖G‖² and its interval, from scalar products of K independent gradients.

    Args:
        norms: the K numbers ‖G_k‖².
        products: the K numbers G_k · S, where S is the sum of all gradients.
        batch_size: b, number of examples of each gradient.
        confidence: the interval's nominal coverage.

    Returns:
        A `CriticalBatchSize`.

    Example:
    >>> noise_scale_interval([4.0, 4.0, 4.0], [12.0, 12.0, 12.0], batch_size=8).value
    0.0
    """
    from scipy import stats  # here, because it takes long to import

    norms, products = np.asarray(norms, "float64"), np.asarray(products, "float64")
    number, square, sum_norms = len(norms), np.sum(products), np.sum(norms)

    def estimates(number, square, sum_norms):
        """The estimates of tr Σ and ‖G‖², from ‖S‖² and Σ ‖G_k‖²."""
        trace = batch_size * (sum_norms - square / number) / (number - 1)
        return np.array([trace, (square - sum_norms) / (number * (number - 1))])

    trace, squared_norm = found = estimates(number, square, sum_norms)
    without_one = estimates(number - 1, square - 2 * products + norms, sum_norms - norms)
    pseudo_values = number * found[:, None] - (number - 1) * without_one
    covariance = np.cov(pseudo_values) / number
    lower, upper = _fieller(found, covariance, stats.t.ppf((1 + confidence) / 2, number - 1))
    errors = np.sqrt(np.diag(covariance))
    return CriticalBatchSize(
        value=float(trace / squared_norm) if squared_norm > 0 else np.inf,
        lower=lower,
        upper=upper,
        confidence=confidence,
        trace=float(trace),
        trace_error=float(errors[0]),
        squared_norm=float(squared_norm),
        squared_norm_error=float(errors[1]),
        batch_size=batch_size,
        num_batches=number,
    )


def _fieller(estimates, covariance, quantile):
    """The positive ratios R at which trace − R · squared_norm may be 0, at the given quantile.

    They solve a R² − 2 b R + c ≤ 0. If a ≤ 0, the denominator does not differ significantly from 0,
    and the set has no upper end (Fieller 1954).
    """
    (c, b), (_, a) = np.outer(estimates, estimates) - quantile**2 * covariance
    root = np.sqrt(max(b**2 - a * c, 0.0))
    if a > 0 and estimates[1] > 0:
        return max(float((b - root) / a), 0.0), float((b + root) / a)
    # The larger root, in the form without cancellation.
    return (max(float(c / (b + root)), 0.0) if c > 0 else 0.0), np.inf


def _dot(left, right):
    return float(sum(tf.reduce_sum(a * b) for a, b in zip(left, right, strict=True)))
