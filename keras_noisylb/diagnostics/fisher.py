"""Frobenius norms of the empirical Fisher and its diagonal, without forming the matrix."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_noisylb.diagnostics.batches import EMPTY, batched
from keras_noisylb.diagnostics.checks import MeanLoss, check_finite, check_model
from keras_noisylb.diagnostics.products import gradients_of
from keras_noisylb.diagnostics.progress import progress_bar
from keras_noisylb.gradients import objective
from keras_noisylb.types import Engine, Loss, Nested


@dataclasses.dataclass(frozen=True)
class FisherNorms:
    """Norms of the empirical Fisher F of all parameters, and of each variable's diagonal block.

    Args:
        full: ‖F‖_F.
        diagonal: ‖diag F‖_F.
        trace: tr F, the mean of ‖g_i‖².
        block_full: array of ‖F_vv‖_F, one for each of `model.trainable_variables`.
        block_diagonal: array of ‖diag F_vv‖_F.
        block_trace: array of tr F_vv.
        paths: the variables' paths.
        num_examples: N.
    """

    full: float
    diagonal: float
    trace: float
    block_full: np.ndarray
    block_diagonal: np.ndarray
    block_trace: np.ndarray
    paths: tuple[str, ...]
    num_examples: int


def fisher_norms(
    model: keras.Model,
    loss: Loss,
    x: Any,
    y: Nested = None,
    *,
    batch_size: int = 256,
    engine: Engine = "auto",
    verbose: int = 1,
) -> FisherNorms:
    """The Frobenius norms of the full empirical Fisher and of its diagonal (Wen et al. 2020, 5.2).

    F = (1/N) Σ_i g_i g_iᵀ (equation 4) over the N examples of `x`, as in Figure 5a. Its norm is
    computed exactly:

        ‖F‖_F² = (1/N²) Σ_ij (g_i · g_j)²,    g_i · g_j = Σ_v g_iv · g_jv over the variables v.

    The Gram matrix g_i · g_j is computed layer by layer for two batches at a time; Dense layers
    need no per-example gradients for it. g_i is the gradient of `gradients.per_example_gradients`:
    in training mode, without regularisers, with the statistics of its batch of `batch_size` in
    batch or ghost normalisation. Losses with reduction mean and sum give the same result. The model
    is not changed.

    Time grows as N². Memory does not grow with N: it holds the activations of one batch, the
    layers' inputs and output gradients of two batches, two matrices of batch_size², about 128 MiB
    of per-example gradients of a single layer, and one float64 vector of the size of the model.
    (The vectorized_map engine instead holds two slices of per-example gradients, 64 MiB each, and
    recomputes them for each pair of slices.)

    Args:
        model: a Keras model.
        loss: a Keras loss, its name, or a function `(y, y_pred)` that returns losses or their mean.
        x: inputs, N examples first, or nested; or a `tf.data.Dataset` of batches `(x, y)` or
            `(x, y, sample_weight)` that is the same on every pass.
        y: targets; `None` with a dataset.
        batch_size: number of examples that are differentiated together; ignored with a dataset.
        engine: `"auto"`, `"layerwise"` or `"vectorized_map"`, as in `per_example_gradients`.
        verbose: 0, or 1 for a progress bar.

    Returns:
        A `FisherNorms`, in units of a squared gradient.

    Raises:
        ValueError: if there are no data or no trainable variables, if weights or gradients are not
            finite, if `loss` is not a loss, or if the engine does not support the model.

    Example:
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.set_weights([np.zeros((2, 1))])
    >>> norms = fisher_norms(model, "mse", np.eye(2), np.ones((2, 1)), verbose=0)
    >>> norms.trace, norms.full == norms.diagonal  # F = 2 I
    (4.0, True)
    """
    loss, dataset = MeanLoss(loss), batched(x, y, batch_size)
    check_model(model, dataset)
    variables = model.trainable_variables
    parts = gradients_of(objective(model, loss), dataset, engine)
    number = sum(1 for _ in parts())
    if not number:
        raise ValueError(EMPTY)
    products, all_products = np.zeros(len(variables)), 0.0
    squares = [np.zeros(v.shape) for v in variables]
    num_examples = 0
    with progress_bar("Pairs of batches", number * (number + 1) // 2, verbose) as advance:
        for k, compute in enumerate(parts()):
            left = compute()
            num_examples += left.num_examples
            for v, square in left.squares():
                squares[v] += square.numpy()
            for j, compute_other in enumerate(parts()):
                if j < k:  # the Gram matrix is symmetric
                    continue
                right = left if j == k else compute_other()
                found, total = _squared_sums(left.products(right), len(variables))
                products += found if j == k else 2 * found
                all_products += total if j == k else 2 * total
                advance()
    paths = tuple(v.path for v in variables)
    check_finite("The Fisher", products, paths)
    fisher = [square / num_examples for square in squares]
    diagonal = np.array([np.linalg.norm(f) for f in fisher])
    trace = np.array([np.sum(f) for f in fisher])
    return FisherNorms(
        full=float(np.sqrt(all_products)) / num_examples,
        diagonal=float(np.linalg.norm(diagonal)),
        trace=float(np.sum(trace)),
        block_full=np.sqrt(products) / num_examples,
        block_diagonal=diagonal,
        block_trace=trace,
        paths=paths,
        num_examples=num_examples,
    )


def _squared_sums(products, num_variables):
    """Σ_ij (g_i · g_j)² for each variable and for all variables together, in float64."""
    found, total = np.zeros(num_variables), 0.0
    for k, matrix in products:
        matrix = tf.cast(matrix, "float64")
        found[k] = tf.reduce_sum(tf.square(matrix))
        total += matrix
    return found, float(tf.reduce_sum(tf.square(total)))
