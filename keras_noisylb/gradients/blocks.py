"""The per-example gradient of one variable, in the form that is cheapest to sum and to square.

Every block stands for a tensor g of shape (M, *variable.shape). `sums` returns (Σ_i g_i, Σ_i g_i²)
and `per_example` returns g itself. A compact block computes its sums without g. The sums of other
blocks can leave out examples, by `keep`, a vector of ones and zeros.

A block consists of arrays with the examples first; a part of it consists of parts of these. A rule
sees the whole batch, so functions of all examples, such as batch statistics, hold for every part.
"""

import copy
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


class Block:
    """Base class.

    Args:
        arrays: tensors with the examples first.
    """

    compact = False

    def __init__(self, *arrays):
        self.arrays = arrays

    def of(self, arrays):
        """The same block made of other `arrays`."""
        other = copy.copy(self)
        other.arrays = tuple(arrays)
        return other

    def rows(self, cut):
        """The block of the examples in the slice `cut`."""
        return self.of([array[cut] for array in self.arrays])


class Outer(Block):
    """g_i = a_i d_iᵀ, for a (M, p) and d (M, q): its square factorises, (a_i²)(d_i²)ᵀ."""

    compact = True

    def __init__(self, a, d):
        super().__init__(a, d)

    def sums(self):
        a, d = self.arrays
        total = tf.matmul(a, d, transpose_a=True)
        return total, tf.matmul(tf.square(a), tf.square(d), transpose_a=True)

    def per_example(self):
        a, d = self.arrays
        return a[:, :, None] * d[:, None, :]


class Rows(Block):
    """g_i = Σ_t onehot(ids_it) d_itᵀ for ids (M, T) and d (M, T, q): a table of `num_rows` rows."""

    compact = True

    def __init__(self, ids, d, num_rows):
        super().__init__(ids, d)
        self.num_rows = num_rows

    def sums(self):
        # Gradients of a row that example i reads more than once are added at the first of its
        # places among the sorted ids, before the square. The other places stay zero.
        ids, d = self.arrays
        ordered = tf.sort(ids, axis=1)
        places = tf.searchsorted(ordered, ids)
        rows = _sum_by_example(d, places, sizes(ids)[1])
        return self._sum_by_row(d, ids), self._sum_by_row(tf.square(rows), ordered)

    def _sum_by_row(self, values, ids):
        values = tf.reshape(values, (-1, values.shape[-1]))
        return tf.math.unsorted_segment_sum(values, tf.reshape(ids, (-1,)), self.num_rows)

    def per_example(self):
        ids, d = self.arrays
        return _sum_by_example(d, ids, self.num_rows)


def _sum_by_example(values, places, count):
    """Add up the `values` (M, T, q) of each example by their `places` (M, T): (M, count, q)."""
    examples = sizes(places)[0]
    places = tf.reshape(places + count * tf.range(examples)[:, None], (-1,))
    flat = tf.reshape(values, (-1, values.shape[-1]))
    summed = tf.math.unsorted_segment_sum(flat, places, examples * count)
    return tf.reshape(summed, (examples, count, values.shape[-1]))


class Pieces(Block):
    """g cut into pieces of shape (M, ...), which `join` puts together along trailing axes.

    `make_pieces(*arrays)` is called when the pieces are needed, with some rows of the arrays; it
    must treat each row alone. `join` must accept pieces with and without the example axis.
    """

    def __init__(self, make_pieces, *arrays, join=lambda pieces: pieces[0], compact=False):
        super().__init__(*arrays)
        self.make_pieces, self.join, self.compact = make_pieces, join, compact

    def sums(self, keep=None):
        pieces = self.make_pieces(*self.arrays)
        total = self.join([_sum_over_examples(piece, keep) for piece in pieces])
        return total, self.join([_sum_over_examples(tf.square(p), keep) for p in pieces])

    def per_example(self):
        return self.join(self.make_pieces(*self.arrays))


class Uncorrelated(Block):
    """Sums of g_i = Σ_t g_it with E[Σ_t g_it²] put in place of E[(Σ_t g_it)²] (paper, A.5).

    `contract(a, d)` sums the outer products of inputs and output gradients over all examples and
    positions, so that squared arguments give the squares.
    """

    compact = True

    def __init__(self, contract, a, d):
        super().__init__(a, d)
        self.contract = contract

    def sums(self):
        a, d = self.arrays
        return self.contract(a, d), self.contract(tf.square(a), tf.square(d))


class Shared(Block):
    """The sum of the blocks of a variable that is used more than once, which is then squared."""

    def __init__(self, blocks):
        super().__init__(*(array for block in blocks for array in block.arrays))
        self.blocks = blocks
        self.uncorrelated = all(isinstance(block, Uncorrelated) for block in blocks)
        self.compact = self.uncorrelated

    def of(self, arrays):
        arrays = iter(arrays)
        return Shared([block.of([next(arrays) for _ in block.arrays]) for block in self.blocks])

    def sums(self, keep=None):
        if self.uncorrelated:  # A.5 drops the cross terms between uses as between positions
            totals, squares = zip(*(block.sums() for block in self.blocks), strict=True)
            return tf.add_n(totals), tf.add_n(squares)
        gradients = self.per_example()
        squares = _sum_over_examples(tf.square(gradients), keep)
        return _sum_over_examples(gradients, keep), squares

    def per_example(self):
        return tf.add_n([block.per_example() for block in self.blocks])


def added(blocks):
    """The block of a variable that is used once for each of `blocks`."""
    if len(blocks) == 1:
        return blocks[0]
    if all(isinstance(block, Rows) for block in blocks):
        ids, d = (tf.concat(parts, 1) for parts in zip(*(b.arrays for b in blocks), strict=True))
        return Rows(ids, d, blocks[0].num_rows)
    return Shared(blocks)


def summed(d, shape):
    """The gradients (M, *shape) of a variable that is added to an output, trailing axes aligned.

    Args:
        d: gradient of the output, shape (M, ...).
        shape: the variable's shape; axes of size 1 are broadcast.

    Returns:
        Tensor.
    """
    extra = len(d.shape) - len(shape)
    axes = list(range(1, extra)) + [extra + k for k, size in enumerate(shape) if size == 1]
    return tf.reshape(tf.reduce_sum(d, axis=axes), (-1, *shape)) if axes else d


def offset(d, shape):
    """The block of a variable that is added to the output; see `summed` for the arguments."""
    return Pieces(lambda d: [summed(d, shape)], d, compact=True)
