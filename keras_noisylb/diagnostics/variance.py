"""The variance of a training regime's gradient at frozen weights."""

import dataclasses
import itertools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_noisylb.diagnostics.batches import minibatches
from keras_noisylb.diagnostics.checks import check_finite, check_model, checked_loss
from keras_noisylb.diagnostics.minibatches import MinibatchGradients
from keras_noisylb.diagnostics.progress import progress_bar
from keras_noisylb.noise.base import Noise, positive_integer
from keras_noisylb.types import AddLossReduction, Loss, Nested


@dataclasses.dataclass(frozen=True)
class GradientVariance:
    """The trace of a gradient's covariance, averaged over parameters.

    Args:
        variance: tr Cov(G) / d over all d parameters.
        standard_error: its standard error.
        block_variance: array of tr Cov(G_v) / d_v, one for each of `model.trainable_variables`.
        block_standard_error: their standard errors.
        sizes: array of d_v, so that `block_variance * sizes` are the traces.
        paths: the variables' paths.
        batch_size: number of examples of a minibatch.
        num_draws: number of gradients.
    """

    variance: float
    standard_error: float
    block_variance: np.ndarray
    block_standard_error: np.ndarray
    sizes: np.ndarray
    paths: tuple[str, ...]
    batch_size: int
    num_draws: int


def gradient_variance(
    model: keras.Model,
    loss: Loss,
    x: Any,
    y: Nested = None,
    *,
    batch_size: int | None = None,
    noise: Noise | None = None,
    draws: int = 100,
    seed: int = 0,
    num_microbatches: int = 1,
    verbose: int = 1,
    add_loss_reduction: AddLossReduction | None = None,
) -> GradientVariance:
    """The variance of one update's gradient over minibatches and noise (Wen et al. 2020, Figure 2).

    The result is tr Cov(G) averaged over parameters. G is the gradient of one update in training
    mode, noise included, at the model's weights: of a small batch, a large batch, or a large batch
    with noise. Every draw has fresh noise and dropout masks and takes `batch_size` of the N
    examples at random, without replacement. Without noise, Cov(G) = (1 / batch_size − 1 / N) Σ',
    where Σ' is the covariance of the per-example gradients (divisor N − 1).

    Moments are accumulated draw by draw (Welford 1962): memory holds one step and a few float64
    vectors of the size of the model. The term (1 − 1/k) ‖G_k − mean of the first k − 1‖² of draw k
    has the expectation tr Cov(G). The terms are uncorrelated; their mean is the sample variance
    with divisor `draws` − 1, and their spread gives the standard error.

    Weights and state do not change: moving statistics are not updated, and dropout's seeds, which
    advance from draw to draw, are restored.

    Args:
        model: a Keras model.
        loss: a Keras loss, its name, or a function `(y, y_pred) -> scalar`.
        x: inputs, N examples first, or nested; or a `tf.data.Dataset` of shuffled batches of equal
            size, `(x, y)` or `(x, y, sample_weight)`. Each batch is one draw; the dataset is
            repeated as often as necessary.
        y: targets; `None` with a dataset.
        batch_size: number of examples in a minibatch; `None` with a dataset.
        noise: the noise to add, such as `FullFisher(128, estimator="split")`, or `None`.
        draws: number of gradients.
        seed: integer, seed of minibatches and noise.
        num_microbatches: number of microbatches in which a batch is computed in sequence.
        verbose: 0, or 1 for a progress bar.
        add_loss_reduction: as in `noisy_gradients`.

    Returns:
        A `GradientVariance`, in units of a squared gradient.

    Raises:
        ValueError: if there are fewer than `batch_size` examples or fewer than 3 draws, if the
            batch is not larger than the noise's small batch, if weights or gradients are not
            finite, or if the noise cannot be computed for the model.

    Example:
    ```python
    small = gradient_variance(model, loss, x_train, y_train, batch_size=128)
    noise = FullFisher(128, estimator="split")
    large = gradient_variance(model, loss, x_train, y_train, batch_size=4096, noise=noise)
    print(small.block_variance / large.block_variance)
    ```
    """
    loss = checked_loss(loss)
    positive_integer("draws", draws, "the number of gradients")
    if draws < 3:
        raise ValueError(f"A standard error needs at least 3 draws. Received: draws={draws}")
    if noise is not None and not isinstance(noise, Noise):
        raise ValueError(
            "`noise` must be a noise, such as keras_noisylb.FullFisher(128, estimator='split'), "
            f"or None. Received: {noise!r}"
        )
    batches = minibatches(x, y, batch_size)
    small = noise is not None and noise.small_batch_size
    if small and small >= batches.batch_size:
        raise ValueError(
            "`small_batch_size` must be less than the batch size: the noise makes the large batch "
            f"imitate a smaller one. Received: small_batch_size={small}, batch size "
            f"{batches.batch_size}. Raise the batch size or lower small_batch_size."
        )
    check_model(model, batches)
    source = MinibatchGradients(
        model, loss, batches, noise, seed, num_microbatches, add_loss_reduction
    )
    variables = model.trainable_variables
    moments, drawn = Moments(), batches.draw(np.random.default_rng(seed))
    with progress_bar("Gradients", draws, verbose) as advance:

        def use(gradients):
            moments.add(gradients)
            advance()

        source.visit(itertools.islice(drawn, draws), use)
    terms = np.array(moments.terms)
    sizes = np.array([v.shape.num_elements() for v in variables])
    paths = tuple(v.path for v in variables)
    check_finite("The gradient's variance", terms.sum(axis=0), paths)
    total = terms.sum(axis=1) / sizes.sum()
    return GradientVariance(
        variance=float(total.mean()),
        standard_error=float(_standard_error(total)),
        block_variance=terms.mean(axis=0) / sizes,
        block_standard_error=_standard_error(terms) / sizes,
        sizes=sizes,
        paths=paths,
        batch_size=batches.batch_size,
        num_draws=draws,
    )


class Moments:
    """The running mean of gradients, and one variance term for each gradient after the first.

    The term of draw k is (1 − 1/k) ‖G_k − mean of the first k − 1‖²: the squared length of a
    Helmert contrast. Helmert contrasts are orthogonal, so the terms are uncorrelated.
    """

    def __init__(self):
        self.count, self.mean, self.terms = 0, None, []

    def add(self, gradients):
        self.count += 1
        if self.mean is None:
            self.mean = gradients
            return
        deltas = [g - mean for g, mean in zip(gradients, self.mean, strict=True)]
        self.mean = [m + d / self.count for m, d in zip(self.mean, deltas, strict=True)]
        squares = [float(tf.reduce_sum(tf.square(delta))) for delta in deltas]
        self.terms.append((1 - 1 / self.count) * np.array(squares))


def _standard_error(terms):
    return np.std(terms, axis=0, ddof=1) / np.sqrt(len(terms))
