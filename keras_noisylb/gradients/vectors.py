"""Statistics that are vectors of the gradient's shape with the gradients' covariance.

They need no per-example gradient, so they accept every model and every loss that is a sum over
examples. Both vectors are called v; docs/noise.md derives their covariances.
"""

import dataclasses

import keras
import tensorflow as tf

from keras_noisylb.gradients.accumulate import packing
from keras_noisylb.gradients.loss import statistics_dtype
from keras_noisylb.gradients.microbatches import cut, ghost_sizes, halves_contrast
from keras_noisylb.gradients.statistics import STATISTICS, Cost, Statistic, where_known


class Weighted(Statistic):
    """v = M^(-1/2) Σ_i w_i g_i with w_i ~ N(0, 1): Cov(v) = F (paper, A.9)."""

    def measure(self, objective, batch, draws):
        # One number for each example of the whole batch, for any number of microbatches.
        weights = draws.normal((batch.num_examples,), "float32")
        recorded = objective.record(batch, draws)
        output_gradients = recorded.output_gradients(recorded.fisher_loss)
        gradients = recorded.data_gradients()
        found = _weighted_sum(recorded, output_gradients, batch.rows(weights), gradients)
        return recorded, gradients, where_known(gradients, found)

    def finish(self, sums, gradients, num_examples):
        # The sums are those of w_i g_i / M.
        return [None if s is None else s * tf.sqrt(tf.cast(num_examples, s.dtype)) for s in sums]

    def cost(self, layer, size, positions, batch_size):
        return Cost(2 * positions * size, "weighted backward pass", True, size)


STATISTICS.register("weighted", Weighted)


class Split(Statistic):
    """v = sqrt(n_A n_B / M) (G_A - G_B), G_A and G_B the mean gradients of the batch's halves.

    Cov(v) is the covariance of one example's gradient, the centred matrix of the paper's
    equation 3. Where the batch has two microbatches or more, each half is made of whole ones. Else
    the halves are the first and the second half of its rows. Their gradients then pass through the
    ghosts that they share, which costs one more backward pass.
    """

    num_microbatches = 2

    def measure(self, objective, batch, draws):
        recorded = objective.record(batch, draws)
        gradients = recorded.data_gradients()
        return recorded, gradients, contrasted(recorded, gradients)

    def finish(self, sums, gradients, num_examples):
        return sums

    def cost(self, layer, size, positions, batch_size):
        return Cost(0, "difference of the halves", True, size)

    def notes(self, model, batch_size):
        found = ["Covariance around the mean gradient (equation 3), not F around zero."]
        if cut(batch_size, 2, ghost_sizes(model)).number < 2:
            found.insert(
                0,
                f"The {batch_size} examples cannot be halved between ghost batches: the halves "
                "share them, which costs one more backward pass.",
            )
        return found


STATISTICS.register("split", Split)


def as_statistics(gradients, variables):
    """Dense gradients in the dtype of statistics, or `None`."""
    pairs = zip(gradients, variables, strict=True)
    return [
        None if g is None else tf.cast(tf.convert_to_tensor(g), statistics_dtype(v))
        for g, v in pairs
    ]


def contrasted(recorded, gradients):
    """The microbatch's part of the scaled difference of the halves' gradients.

    `gradients` is the microbatch's part of the gradient of the data loss.
    """
    objective, batch = recorded.objective, recorded.batch

    def of_microbatch():
        known = as_statistics(gradients, objective.variables)
        return [None if g is None else g * tf.cast(batch.contrast, g.dtype) for g in known]

    def of_rows(recorded):
        total = batch.num_rows  # all of them
        half = (total + 1) // 2
        contrast = halves_contrast(tf.range(total) < half, half, total)
        output_gradients = recorded.output_gradients(recorded.data_loss)
        found = _weighted_sum(recorded, output_gradients, contrast, gradients)
        return where_known(gradients, found)

    if isinstance(batch.single, bool):
        return of_rows(recorded) if batch.single else of_microbatch()
    # A second forward pass: the first one need not stay in memory for this branch.
    pack, unpack = packing(gradients)
    found = tf.cond(
        batch.single,
        lambda: pack(of_rows(dataclasses.replace(objective, labels=None).record(batch, None))),
        lambda: pack(of_microbatch()),
    )
    return unpack(found)


def _weighted_sum(recorded, output_gradients, weights, gradients):
    """Σ_i w_i g_i / M over the microbatch, from the outputs' gradients: one more backward pass."""
    # After the backward pass of `gradients`: both at once would need a third more memory.
    with tf.control_dependencies([g for g in gradients if g is not None]):
        weighted = [
            g * tf.cast(tf.reshape(weights, (-1, *[1] * (len(g.shape) - 1))), g.dtype)
            for g in output_gradients
        ]
    outputs, variables = keras.tree.flatten(recorded.y_pred), recorded.objective.variables
    found = recorded.tape.gradient(outputs, variables, output_gradients=weighted)
    return as_statistics(found, variables)
