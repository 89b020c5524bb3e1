"""Random numbers that depend on a seed alone, and the random state of a model."""

import itertools

import tensorflow as tf


class Draws:
    """A source of independent random tensors; every call gives new numbers.

    Args:
        seed: integer tensor of shape (2,).

    Example:
    >>> draws = Draws([7, 0])
    >>> draws.normal((2, 3), "float32").shape
    TensorShape([2, 3])
    """

    def __init__(self, seed):
        self.seed = tf.convert_to_tensor(seed)
        self._calls = itertools.count()

    def _next(self):
        # One seed for each call: tensors of different shapes drawn from the same one share numbers.
        return tf.random.fold_in(self.seed, next(self._calls))

    def restarted(self):
        """The same source from its beginning, for what may be traced or run any number of times."""
        return Draws(self.seed)

    def fold_in(self, number):
        """A source of its own for `number`, such as a replica or the place of a chunk."""
        return Draws(tf.random.fold_in(self._next(), number))

    def normal(self, shape, dtype):
        """Standard normal numbers."""
        return tf.random.stateless_normal(shape, self._next(), dtype=dtype)

    def uniform(self, shape, dtype):
        """Numbers from [0, 1)."""
        return tf.random.stateless_uniform(shape, self._next(), dtype=dtype)

    def signs(self, shape, dtype):
        """-1 or 1, each with probability one half."""
        bits = tf.random.stateless_uniform(shape, self._next(), None, None, dtype="int32")
        return tf.where(bits < 0, tf.constant(-1, dtype), tf.constant(1, dtype))


def seed_states(model):
    """The states of random layers such as Dropout: what a resumed run needs beside the weights.

    Args:
        model: a Keras model.

    Returns:
        List of variables, in the order of the layers.
    """
    weights = {id(weight) for weight in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]
