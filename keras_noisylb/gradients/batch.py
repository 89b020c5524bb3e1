"""A batch, and the rows of it that are computed now."""

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from keras_noisylb.gradients.blocks import sizes


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
        start: first row of the microbatch, or `None` for the whole batch.
        count: number of rows of the microbatch.
        index: number of the microbatch, counted from 0.
        contrast: the weight of the microbatch's gradient in the difference of the batch's halves.
        single: whether the batch has one microbatch only, so that both halves are in it.
        state: tuple of `(state variable, value)`, the values that earlier microbatches left.
        masks: the `Masks` of the whole batch's outputs, where the batch has several microbatches.
    """

    x: object
    y: object = None
    sample_weight: object = None
    start: object = None
    count: object = None
    index: object = 0
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
        """The number of examples of the microbatch."""
        return self.num_examples if self.start is None else self.count

    @property
    def first_row(self):
        """The place of the microbatch in the batch."""
        return 0 if self.start is None else self.start

    def share(self, dtype):
        """The microbatch's part of the batch, from 0 to 1."""
        rows, examples = tf.cast(self.num_rows, dtype), tf.cast(self.num_examples, dtype)
        return tf.math.divide_no_nan(rows, examples)

    def share_of(self, max_examples):
        """Number of the microbatch's rows in use where the batch uses `max_examples`."""
        rows, examples = self.num_rows, self.num_examples
        if max_examples is None:
            return rows
        if isinstance(rows, int) and isinstance(examples, int):
            return min(rows, -(-max_examples * rows // examples))
        examples = tf.maximum(examples, 1)
        return tf.minimum(rows, -(-max_examples * rows // examples))

    def microbatch(self, start, count, *, single=False, **options):
        """The same batch with other rows to be computed; `options` are attributes."""
        return dataclasses.replace(self, start=start, count=count, single=single, **options)

    def rows(self, structure):
        """The microbatch's rows of `structure`, whose tensors have M rows."""
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
        """Put the microbatch's rows in their place in the whole batch.

        Args:
            rows: nested tensors with the microbatch's rows.
            whole: the other rows; `None` for copies of `rows` without a gradient.

        Returns:
            Nested tensors of M rows.
        """
        if self.start is None:
            return rows
        index = tf.range(self.num_examples) - self.start
        inside = tf.logical_and(index >= 0, index < self.count)
        index = tf.clip_by_value(index, 0, tf.maximum(self.count - 1, 0))

        def place(rows, whole):
            # A gather, because XLA cannot pad by an amount that depends on the microbatch.
            spread = tf.gather(rows, index)
            others = tf.stop_gradient(spread) if whole is None else whole
            return tf.where(tf.reshape(inside, (-1, *[1] * (len(rows.shape) - 1))), spread, others)

        if whole is None:
            whole = keras.tree.map_structure(lambda _: None, rows)
        return keras.tree.map_structure(place, rows, whole)
