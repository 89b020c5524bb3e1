"""Statistics that are single vectors of the gradient's shape, with the covariance asked for.

They need no per-example gradient, so they accept every model and every loss that is a sum over
examples. Both vectors are written v; docs/noise.md derives their covariances.
"""

import tensorflow as tf

from keras_noisylb.gradients.objective import statistics_dtype
from keras_noisylb.gradients.statistic import Statistic, where_known


class Weighted(Statistic):
    """v = M^(-1/2) Σ_i w_i g_i with w_i ~ N(0, 1): Cov(v) = F (paper, A.9)."""

    def measure(self, objective, batch, draws):
        # One number for each example of the whole batch, whatever the chunks.
        weights = draws.normal((batch.num_examples,), "float32")
        recorded = objective.record(batch, draws)
        outputs, gradients = recorded.output_gradients()
        weights = batch.rows(weights)
        weighted = [
            g * tf.cast(tf.reshape(weights, (-1, *[1] * (len(g.shape) - 1))), g.dtype)
            for g in gradients
        ]
        gradients = recorded.data_gradients()
        # One backward pass after the other: both at once would need a third more memory.
        with tf.control_dependencies([g for g in gradients if g is not None]):
            weighted = [tf.identity(w) for w in weighted]
        found = recorded.tape.gradient(outputs, objective.variables, output_gradients=weighted)
        return (
            recorded,
            gradients,
            as_statistics(where_known(gradients, found), objective.variables),
        )

    def finish(self, sums, gradients, num_examples):
        # The sums are those of w_i g_i / M.
        return [None if s is None else s * tf.sqrt(tf.cast(num_examples, s.dtype)) for s in sums]


class Split(Statistic):
    """v = sqrt(n_A n_B / M) (G_A - G_B), G_A and G_B the mean gradients of the batch's halves.

    Cov(v) is the covariance of one example's gradient, the centred matrix of the paper's
    equation 3. The batch must be computed in two chunks or more.
    """

    def measure(self, objective, batch, draws):
        recorded = objective.record(batch, draws)
        gradients = recorded.data_gradients()
        return recorded, gradients, contrasted(as_statistics(gradients, objective.variables), batch)

    def finish(self, sums, gradients, num_examples):
        return sums


def as_statistics(gradients, variables):
    """Dense gradients in the dtype of statistics, or `None`."""
    pairs = zip(gradients, variables, strict=True)
    return [
        None if g is None else tf.cast(tf.convert_to_tensor(g), statistics_dtype(v))
        for g, v in pairs
    ]


def contrasted(gradients, batch):
    """The chunk's part of the scaled difference of the halves' gradients."""
    return [None if g is None else g * tf.cast(batch.contrast, g.dtype) for g in gradients]
