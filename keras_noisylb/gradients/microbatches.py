"""How a batch is cut into microbatches that keep its ghost batches whole."""

import dataclasses
import functools
import math

import tensorflow as tf

from keras_noisylb.gradients.taps import all_layers
from keras_noisylb.layers import GhostBatchNormalization


@dataclasses.dataclass(frozen=True)
class Microbatches:
    """The microbatches of a batch of M examples, each made of whole units.

    Example i belongs to unit i * U // M. Every microbatch but the first has the same number of
    units; the first has the rest. Their numbers of rows may still differ by one.

    Args:
        num_examples: M, integer or scalar tensor.
        units: U.
        number: number of microbatches, with the first.
        per_microbatch: units of every microbatch but the first.
        even: whether all microbatches but the first are known to have `size` rows.
        single: whether there is one microbatch only, although more were wanted.
    """

    num_examples: object
    units: object
    number: object
    per_microbatch: object
    even: bool
    single: object

    def start(self, index):
        """The first row of microbatch `index`, from 0; M for the one after the last."""
        unit = _at_least(self.units - (self.number - index) * self.per_microbatch, 0)
        return _ceil(unit, self.num_examples, self.units)

    @property
    def size(self):
        """The fewest rows of a microbatch but the first; another one has at most one more."""
        if self.even:
            return self.start(2) - self.start(1)
        return -_ceil(-self.per_microbatch, self.num_examples, self.units)

    @property
    def largest(self):
        """The most rows of a microbatch."""
        return max(self.start(k + 1) - self.start(k) for k in range(self.number))

    def contrast(self, index):
        """The weight of a microbatch's gradient in the difference of the halves; a scalar."""
        half = (self.number + 1) // 2
        return halves_contrast(index < half, self.start(half), self.num_examples)


def halves_contrast(in_first, first, total):
    """The weights of the examples in the scaled difference of the batch's halves.

    The weighted sum of the parts g_i / M of the gradient is sqrt(n_A n_B / M) (G_A - G_B), where n
    and G are the halves' numbers of examples and mean gradients. It has the covariance of one g_i.

    Args:
        in_first: boolean tensor, whether an example is in the first half.
        first: n_A.
        total: M.

    Returns:
        Float32 tensor of the shape of `in_first`.
    """
    total, first = tf.cast(total, "float32"), tf.cast(first, "float32")
    ratio = tf.math.divide_no_nan(total - first, first)
    inverse = tf.math.divide_no_nan(first, total - first)
    return tf.where(in_first, tf.sqrt(total * ratio), -tf.sqrt(total * inverse))


def ghost_layers(model):
    """The layers of `model` that make ghost batches in training."""
    return [
        layer
        for layer in all_layers(model)
        if isinstance(layer, GhostBatchNormalization) and layer.trainable
    ]


def ghost_sizes(model):
    """The ghost batch sizes of `model`'s layers in training, each once."""
    return sorted({layer.ghost_batch_size for layer in ghost_layers(model)})


def cut(num_examples, num_microbatches, ghosts=()):
    """Cut a batch into at most `num_microbatches` microbatches of whole ghosts of the batch.

    Layers with different ghost batch sizes have fewer boundaries in common, so there may be fewer
    microbatches than wanted. A batch with less than two ghosts is one microbatch.

    Args:
        num_examples: M, integer or scalar tensor.
        num_microbatches: the number that is wanted.
        ghosts: the layers' ghost batch sizes; none where examples may be cut anywhere.

    Returns:
        `Microbatches`.
    """
    # Ghost k of G begins at row ceil(k M / G): what G and G' have in common divides both.
    counts = [_at_least(num_examples // ghost, 1) for ghost in ghosts]
    units = functools.reduce(_gcd, counts) if counts else _at_least(num_examples, 1)
    per_microbatch = -(-units // num_microbatches)
    number = -(-units // per_microbatch)
    known = isinstance(num_examples, int)
    whole = known and per_microbatch * num_examples % units == 0
    even = not ghosts or num_microbatches <= 2 or whole
    single = bool(ghosts) and number == 1
    return Microbatches(num_examples, units, number, per_microbatch, even, single)


def _at_least(value, least):
    return max(value, least) if isinstance(value, int) else tf.maximum(value, least)


def at_most(value, most):
    """The smaller of two integers or scalar tensors."""
    known = isinstance(value, int) and isinstance(most, int)
    return min(value, most) if known else tf.minimum(value, most)


def _ceil(a, b, c):
    """A b / c, rounded up."""
    if all(isinstance(value, int) for value in (a, b, c)):
        return -(-a * b // c)
    a, b, c = (tf.cast(value, "int64") for value in (a, b, c))  # a b may exceed 32 bits
    return tf.cast(-(-a * b // c), "int32")


def _gcd(a, b):
    """Greatest common divisor of positive integers."""
    if isinstance(a, int):
        return math.gcd(a, b)
    for _ in range(46):  # enough for 32 bits; XLA takes no result of a loop for a constant
        a, b = tf.where(b > 0, b, a), tf.where(b > 0, a % tf.maximum(b, 1), 0)
    return a
