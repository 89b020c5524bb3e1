"""A batch, and the chunks in which it may be computed."""

import dataclasses
import functools
import math
from typing import Any

import keras
import tensorflow as tf

from keras_noisylb.gradients.blocks import sizes
from keras_noisylb.gradients.taps import all_layers
from keras_noisylb.layers import GhostBatchNormalization


def batch_size(x):
    """Number of examples in the (nested) inputs `x`: an integer if known, else a scalar tensor."""
    first = next(leaf for leaf in keras.tree.flatten(x) if leaf is not None)
    return tf.shape(first)[0] if first.shape[0] is None else first.shape[0]


@dataclasses.dataclass(frozen=True)
class Batch:
    """The data of one update on one device, and the rows of it that are computed now.

    Args:
        x: inputs, M examples first; nested for models with several inputs.
        y: targets.
        sample_weight: weights, or `None`.
        start: first row of the chunk, or `None` for the whole batch.
        count: number of rows of the chunk.
        contrast: the weight of the chunk's gradient in the difference of the batch's halves.
        single: whether these are all rows, so that both halves are among them.
        state: tuple of `(state variable, value)` where it is not the variable's own.
        masks: the `Masks` of the whole batch's outputs, where the batch is computed in chunks.
    """

    x: object
    y: object = None
    sample_weight: object = None
    start: object = None
    count: object = None
    contrast: object = 0.0
    single: object = True
    state: tuple = ()
    masks: Any = None

    @property
    def num_examples(self):
        """M, the number of examples of the whole batch."""
        return batch_size(self.x)

    @property
    def num_rows(self):
        """The number of examples of the chunk."""
        return self.num_examples if self.start is None else self.count

    @property
    def first_row(self):
        """The place of the chunk in the batch."""
        return 0 if self.start is None else self.start

    def share(self, dtype):
        """The chunk's part of the batch, from 0 to 1."""
        rows, examples = tf.cast(self.num_rows, dtype), tf.cast(self.num_examples, dtype)
        return tf.math.divide_no_nan(rows, examples)

    def share_of(self, max_examples):
        """How many of the chunk's rows are used where the batch may use `max_examples`."""
        rows, examples = self.num_rows, self.num_examples
        if max_examples is None:
            return rows
        if isinstance(rows, int) and isinstance(examples, int):
            return min(rows, -(-max_examples * rows // examples))
        examples = tf.maximum(examples, 1)
        return tf.minimum(rows, -(-max_examples * rows // examples))

    def chunk(self, start, count, contrast=0.0, single=False, state=()):
        """The same batch with other rows to be computed."""
        return dataclasses.replace(
            self, start=start, count=count, contrast=contrast, single=single, state=state
        )

    def rows(self, structure):
        """The chunk's rows of `structure`, whose tensors have M rows."""
        if self.start is None:
            return structure

        def cut(tensor):
            if tensor is None:
                return None
            begin = [self.start] + [0] * (len(tensor.shape) - 1)
            known = self.count if isinstance(self.count, int) else None
            part = tf.slice(tensor, begin, [self.count, *sizes(tensor)[1:]])
            return tf.ensure_shape(part, (known, *tensor.shape[1:]))

        return keras.tree.map_structure(cut, structure)

    def placed(self, rows, whole=None):
        """Put the chunk's rows where they belong in the whole batch.

        Args:
            rows: nested tensors with the chunk's rows.
            whole: what the other rows hold; `None` for copies of `rows` without a gradient.

        Returns:
            Nested tensors of M rows.
        """
        if self.start is None:
            return rows
        index = tf.range(self.num_examples) - self.start
        inside = tf.logical_and(index >= 0, index < self.count)
        index = tf.clip_by_value(index, 0, tf.maximum(self.count - 1, 0))

        def place(rows, whole):
            # A gather, because XLA cannot pad by an amount that depends on the chunk.
            spread = tf.gather(rows, index)
            others = tf.stop_gradient(spread) if whole is None else whole
            return tf.where(tf.reshape(inside, (-1, *[1] * (len(rows.shape) - 1))), spread, others)

        if whole is None:
            whole = keras.tree.map_structure(lambda _: None, rows)
        return keras.tree.map_structure(place, rows, whole)


@dataclasses.dataclass(frozen=True)
class Chunks:
    """How a batch of M examples is cut: between units, example i belonging to unit i * U // M.

    Every chunk but the first has equally many units; the first has what is left. Their numbers of
    rows may still differ by one.

    Args:
        num_examples: M, integer or scalar tensor.
        units: U.
        number: of chunks, the first included.
        per_chunk: units of every chunk but the first.
        even: whether all chunks but the first are known to have `size` rows.
        single: whether there is one chunk only, although more were wanted.
    """

    num_examples: object
    units: object
    number: object
    per_chunk: object
    even: bool
    single: object

    def start(self, chunk):
        """The first row of a chunk, counted from 0; M for the chunk after the last."""
        unit = _at_least(self.units - (self.number - chunk) * self.per_chunk, 0)
        return _ceil(unit, self.num_examples, self.units)

    @property
    def size(self):
        """The fewest rows of a chunk that is not the first: others have one more at most."""
        if self.even:
            return self.start(2) - self.start(1)
        return -_ceil(-self.per_chunk, self.num_examples, self.units)

    @property
    def largest(self):
        """The most rows of a chunk."""
        return max(self.start(k + 1) - self.start(k) for k in range(self.number))

    def contrast(self, chunk):
        """The weight of a chunk's gradient in the difference of the halves.

        Args:
            chunk: its number, counted from 0.

        Returns:
            Scalar float32 tensor; see `halves_contrast`.
        """
        half = (self.number + 1) // 2
        return halves_contrast(chunk < half, self.start(half), self.num_examples)


def halves_contrast(in_first, first, total):
    """The weights that make of a batch's gradient the difference of its halves.

    With parts g_i / M of the gradient, their weighted sum is sqrt(n_A n_B / M) (G_A - G_B), n and G
    being the halves' numbers of examples and mean gradients: it has the covariance of one g_i.

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


def cut(num_examples, num_chunks, ghosts=()):
    """Cut a batch into at most `num_chunks` chunks that keep the ghosts of the whole batch.

    Layers whose ghost batch sizes differ have fewer boundaries in common, so that there may be
    fewer chunks than wanted. A batch with less than two ghosts is one chunk.

    Args:
        num_examples: M, integer or scalar tensor.
        num_chunks: the number wanted.
        ghosts: the layers' ghost batch sizes; none where examples may be cut anywhere.

    Returns:
        `Chunks`.
    """
    # Ghost k of G begins at row ceil(k M / G): what G and G' have in common divides both.
    counts = [_at_least(num_examples // ghost, 1) for ghost in ghosts]
    units = functools.reduce(_gcd, counts) if counts else _at_least(num_examples, 1)
    per_chunk = -(-units // num_chunks)
    number = -(-units // per_chunk)
    known = isinstance(num_examples, int)
    even = not ghosts or num_chunks <= 2 or (known and per_chunk * num_examples % units == 0)
    return Chunks(num_examples, units, number, per_chunk, even, bool(ghosts) and number == 1)


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
    for _ in range(46):  # as many as 32 bits can need; what a loop finds is no constant to XLA
        a, b = tf.where(b > 0, b, a), tf.where(b > 0, a % tf.maximum(b, 1), 0)
    return a
