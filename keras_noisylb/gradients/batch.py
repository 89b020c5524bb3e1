"""A batch, and the chunks in which it may be computed."""

import dataclasses
import math

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
        state: tuple of `(state variable, value)` where it is not the variable's own.
        masks: the masks of the whole batch's outputs, where the batch is computed in chunks.
    """

    x: object
    y: object = None
    sample_weight: object = None
    start: object = None
    count: object = None
    contrast: object = 0.0
    state: tuple = ()
    masks: object = None

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

    def chunk(self, start, count, contrast, state=()):
        """The same batch with other rows to be computed."""
        return dataclasses.replace(self, start=start, count=count, contrast=contrast, state=state)

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
    """How a batch is cut: `first` rows, then `number - 1` chunks of `size` rows.

    Args:
        number: of chunks, the first included.
        first: rows of the first chunk, which also takes what is left over.
        size: rows of every other chunk.
    """

    number: object
    first: object
    size: object

    def contrast(self, chunk):
        """The weight of a chunk's gradient in the difference of the halves.

        With chunk gradients that add up to that of the batch (example i's part is g_i / M), the
        weighted sum is sqrt(n_A n_B / M) (G_A - G_B), n and G being the halves' numbers of examples
        and mean gradients: it has the covariance of one g_i.

        Args:
            chunk: its number, counted from 0.

        Returns:
            Scalar float32 tensor.
        """
        in_first = chunk < (self.number + 1) // 2
        first = self.first + ((self.number + 1) // 2 - 1) * self.size
        total = tf.cast(self.first + (self.number - 1) * self.size, "float32")
        first = tf.cast(first, "float32")
        ratio = tf.math.divide_no_nan(total - first, first)
        inverse = tf.math.divide_no_nan(first, total - first)
        return tf.where(in_first, tf.sqrt(total * ratio), -tf.sqrt(total * inverse))


def ghost_size(model):
    """The smallest number of examples that is a multiple of every ghost batch size of `model`."""
    ghosts = [
        layer.ghost_batch_size
        for layer in all_layers(model)
        if isinstance(layer, GhostBatchNormalization) and layer.trainable
    ]
    return math.lcm(*ghosts)


def cut(num_examples, num_chunks, ghost):
    """Cut a batch into at most `num_chunks` chunks of whole ghost batches.

    A batch of less than two ghost batches is cut without regard to them, so that it has halves.

    Args:
        num_examples: M, integer or scalar tensor.
        num_chunks: the number wanted.
        ghost: examples that are kept together.

    Returns:
        `Chunks`.
    """
    whole = min(num_chunks, 2) * ghost
    if isinstance(num_examples, int):
        at_least = max
        unit = ghost if num_examples >= whole else 1
    else:
        at_least = tf.maximum
        unit = tf.where(num_examples >= whole, ghost, 1)
    units = num_examples // unit
    per_chunk = at_least(-(-units // num_chunks), 1)
    number = at_least(-(-units // per_chunk), 1)
    size = per_chunk * unit
    return Chunks(number, num_examples - (number - 1) * size, size)
