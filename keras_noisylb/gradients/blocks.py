"""The per-example gradient of one variable, held in whatever form is cheapest to sum and square.

Every block stands for a tensor g of shape (M, *variable.shape). `sums` returns (Σ_i g_i, Σ_i g_i²)
and `per_example` returns g itself. A compact block gets its sums without ever holding g; the sums
of other blocks can leave out examples, by `keep`, a vector of ones and zeros.
"""

import math

import tensorflow as tf


def sizes(tensor):
    """Shape of `tensor` as a list: integers where known, scalars of the graph elsewhere."""
    if tensor.shape.is_fully_defined():
        return list(tensor.shape)
    dynamic = tf.shape(tensor)
    return [dynamic[k] if size is None else size for k, size in enumerate(tensor.shape)]


def positions(tensor):
    """Merge all axes between the first and the last: (M, ..., c) becomes (M, T, c)."""
    first, *middle, last = sizes(tensor)
    return tf.reshape(tensor, (first, math.prod(middle), last))


def _sum_over_examples(values, keep):
    if keep is None:
        return tf.reduce_sum(values, axis=0)
    return tf.tensordot(tf.cast(keep, values.dtype), values, axes=1)


class Outer:
    """g_i = a_i d_iᵀ, for a (M, p) and d (M, q): its square factorises, (a_i²)(d_i²)ᵀ."""

    compact = True

    def __init__(self, a, d):
        self.a, self.d = a, d

    def sums(self):
        total = tf.matmul(self.a, self.d, transpose_a=True)
        return total, tf.matmul(tf.square(self.a), tf.square(self.d), transpose_a=True)

    def per_example(self):
        return self.a[:, :, None] * self.d[:, None, :]


class Rows:
    """g_i = Σ_t onehot(ids_it) d_itᵀ for ids (M, T) and d (M, T, q): a table of `num_rows` rows."""

    compact = True

    def __init__(self, ids, d, num_rows):
        self.ids, self.d, self.num_rows = ids, d, num_rows

    def sums(self):
        # A row that example i reads n times appears n times below, each time with its whole
        # gradient: dividing the squares by n counts it once.
        same = tf.cast(self.ids[:, :, None] == self.ids[:, None, :], self.d.dtype)
        count = tf.reduce_sum(same, axis=-1, keepdims=True)
        squares = tf.square(tf.matmul(same, self.d)) / count
        return self._scatter(self.d), self._scatter(squares)

    def _scatter(self, values):
        values = tf.reshape(values, (-1, values.shape[-1]))
        return tf.math.unsorted_segment_sum(values, tf.reshape(self.ids, (-1,)), self.num_rows)

    def per_example(self):
        return tf.matmul(
            tf.one_hot(self.ids, self.num_rows, dtype=self.d.dtype), self.d, transpose_a=True
        )


class Pieces:
    """g cut into pieces of shape (M, ...), which `join` puts together along trailing axes.

    `make_pieces` is called when the pieces are needed; `join` must accept pieces with and without
    the example axis.
    """

    def __init__(self, make_pieces, join=lambda pieces: pieces[0], compact=False):
        self.make_pieces, self.join, self.compact = make_pieces, join, compact

    def sums(self, keep=None):
        pieces = self.make_pieces()
        total = self.join([_sum_over_examples(piece, keep) for piece in pieces])
        return total, self.join([_sum_over_examples(tf.square(p), keep) for p in pieces])

    def per_example(self):
        return self.join(self.make_pieces())


class Uncorrelated:
    """Sums of g_i = Σ_t g_it with E[Σ_t g_it²] put in place of E[(Σ_t g_it)²] (paper, A.5).

    `contract(a, d)` sums the outer products of inputs and output gradients over all examples and
    positions, so that squared arguments give the squares.
    """

    compact = True

    def __init__(self, contract, a, d):
        self.contract, self.a, self.d = contract, a, d

    def sums(self):
        squares = self.contract(tf.square(self.a), tf.square(self.d))
        return self.contract(self.a, self.d), squares


class Shared:
    """The sum of the blocks of a layer that is called more than once: add first, then square."""

    def __init__(self, blocks):
        self.blocks = blocks
        self.uncorrelated = all(isinstance(block, Uncorrelated) for block in blocks)
        self.compact = self.uncorrelated

    def sums(self, keep=None):
        if self.uncorrelated:  # A.5 drops the cross terms between uses as between positions
            totals, squares = zip(*(block.sums() for block in self.blocks), strict=True)
            return tf.add_n(totals), tf.add_n(squares)
        return Pieces(lambda: [self.per_example()]).sums(keep)

    def per_example(self):
        return tf.add_n([block.per_example() for block in self.blocks])


def offset(d, shape):
    """The block of a variable that is added to the output, trailing axes aligned.

    Args:
        d: gradient of the output, shape (M, ...).
        shape: the variable's shape; axes of size 1 are broadcast.

    Returns:
        A compact block.
    """
    extra = len(d.shape) - len(shape)
    axes = list(range(1, extra)) + [extra + k for k, size in enumerate(shape) if size == 1]
    gradient = tf.reshape(tf.reduce_sum(d, axis=axes), (-1, *shape)) if axes else d
    return Pieces(lambda: [gradient], compact=True)
