"""Random numbers that depend on a seed only, and the random states of a model."""

import itertools

import tensorflow as tf


class Draws:
    """A source of independent random tensors. Every call returns new numbers.

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
        # One seed for each call, because draws of different shapes from one seed share numbers.
        return tf.random.fold_in(self.seed, next(self._calls))

    def restarted(self):
        """The same source from its beginning, for code that may be traced more than once."""
        return Draws(self.seed)

    def fold_in(self, number):
        """An independent source for `number`, such as that of a replica or a microbatch."""
        return Draws(tf.random.fold_in(self._next(), number))

    def normal(self, shape, dtype):
        """Standard normal numbers."""
        return tf.random.stateless_normal(shape, self._next(), dtype=dtype)

    def uniform(self, shape, dtype):
        """Uniform numbers from [0, 1)."""
        return tf.random.stateless_uniform(shape, self._next(), dtype=dtype)

    def signs(self, shape, dtype):
        """-1 or 1, each with probability one half."""
        bits = tf.random.stateless_uniform(shape, self._next(), None, None, dtype="int32")
        return tf.where(bits < 0, tf.constant(-1, dtype), tf.constant(1, dtype))


def seed_states(model):
    """The states of random layers such as Dropout, as variables in the order of the layers.

    A resumed run needs them in addition to the weights.
    """
    weights = {id(weight) for weight in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]
