"""What the statistics that are made of per-example gradients share."""

import dataclasses

import tensorflow as tf

from keras_noisylb.gradients.statistics import Statistic


class PerExample(Statistic):
    """Base class of the statistics that are means over per-example gradients.

    Args:
        max_examples: number of examples that are used, the first ones; `None` for all.
        true_labels: whether the labels are drawn from the model, which costs a backward pass.
    """

    def __init__(self, max_examples=None, true_labels=False):
        self.max_examples, self.true_labels = max_examples, true_labels

    def cost(self, layer, size, positions, batch_size):
        share = min((self.max_examples or batch_size) / batch_size, 1)
        found = self.cost_per_example(layer, size, positions)
        labels = 2 * positions * size if self.true_labels else 0
        return dataclasses.replace(found, multiplications=share * found.multiplications + labels)

    def cost_per_example(self, layer, size, positions):
        """The `Cost` where every example of the batch is used, with the labels of the data."""
        raise NotImplementedError

    def notes(self, model, batch_size):
        if self.max_examples is None or self.max_examples >= batch_size:
            return []
        return [f"The statistic uses {self.max_examples} of {batch_size} examples."]


class Squares(PerExample):
    """Base class of the engines' statistics "mean over examples of g_i²"."""

    def finish(self, sums, gradients, num_examples):
        return mean_squares(sums)


def mean_squares(sums):
    """Means from sums over examples.

    Args:
        sums: tuple of the list of Σ g_i² (or `None`) and the number of examples in the sums.

    Returns:
        List of tensors (or `None`).
    """
    squares, count = sums
    return [
        None if s is None else tf.math.divide_no_nan(s, tf.cast(count, s.dtype)) for s in squares
    ]
