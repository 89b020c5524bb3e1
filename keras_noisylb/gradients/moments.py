"""Unbiased moments of the per-example gradients, from the two halves of a batch."""

import tensorflow as tf

from keras_noisylb.gradients.statistics import Statistic
from keras_noisylb.gradients.vectors import as_statistics, contrasted


class WithMoments(Statistic):
    """Another statistic together with the moments `(tr Σ, |G|² of the data loss, |G|²)`.

    Σ is the covariance of one example's gradient. G is the expected gradient, without and with
    regularisers. All three estimates are unbiased.

    Args:
        inner: the other statistic.
    """

    def __init__(self, inner):
        self.inner = inner
        self.num_microbatches = max(inner.num_microbatches, 2)

    def measure(self, objective, batch, draws):
        recorded, gradients, sums = self.inner.measure(objective, batch, draws)
        known = as_statistics(gradients, objective.variables)
        return recorded, gradients, (sums, contrasted(recorded, gradients), known)

    def finish(self, sums, gradients, num_examples):
        sums, contrast, data = sums
        variance = squared_norm(contrast)
        # The mean of M gradients has |G|² + tr Σ / M.
        excess = tf.math.divide_no_nan(variance, tf.cast(num_examples, variance.dtype))
        moments = (variance, squared_norm(data) - excess, squared_norm(gradients) - excess)
        return self.inner.finish(sums, gradients, num_examples), moments

    def arrange(self, sample):
        return self.inner.arrange(sample)


def squared_norm(gradients):
    """Sum of squares over a list of tensors, in float32."""
    known = [tf.cast(g, "float32") for g in gradients if g is not None]
    return tf.add_n([tf.reduce_sum(tf.square(g)) for g in known])
