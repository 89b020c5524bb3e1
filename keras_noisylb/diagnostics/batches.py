"""A data set in batches, visited as often as needed."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf


def batched(x, y, batch_size):
    """The batches of a data set, and the `element_spec` that describes them.

    Args:
        x: inputs, examples first, or nested; or a `tf.data.Dataset` of batches `(x, y)` or
            `(x, y, sample_weight)`, finite and the same on every pass.
        y: targets, examples first, or nested; `None` with a dataset.
        batch_size: number of examples in a batch of arrays.

    Returns:
        An iterable of `(x, y)` or `(x, y, sample_weight)`; the last batch may be smaller.

    Raises:
        ValueError: if there are no examples, not equally many of all, or if a dataset has another
            form.

    Example:
    >>> [len(y) for _, y in batched(np.ones((5, 3)), np.ones(5), batch_size=2)]
    [2, 2, 1]
    """
    if isinstance(x, tf.data.Dataset):
        _check_dataset(x, y)
        return x
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1. Received: batch_size={batch_size}")
    if y is None:
        raise ValueError("`y` is missing: hand the targets, or a tf.data.Dataset of (x, y) as `x`.")
    data = keras.tree.map_structure(np.asarray, (x, y))
    counts = {len(array) if array.ndim else None for array in keras.tree.flatten(data)}
    if len(counts) != 1 or counts & {0, None}:
        raise ValueError(
            "`x` and `y` must be arrays (or nested arrays) with the examples first, equally many "
            "of them and at least one. Received: shapes (x, y) = "
            f"{keras.tree.map_structure(np.shape, data)}"
        )
    return _ArrayBatches(data, counts.pop(), batch_size)


@dataclasses.dataclass(frozen=True)
class _ArrayBatches:
    data: tuple
    num_examples: int
    batch_size: int

    @property
    def element_spec(self):
        return keras.tree.map_structure(
            lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), self.data
        )

    def __iter__(self):
        for start in range(0, self.num_examples, self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield keras.tree.map_structure(lambda array, rows=rows: array[rows], self.data)


def _check_dataset(dataset, y):
    spec = dataset.element_spec
    if y is not None:
        raise ValueError("`x` is a tf.data.Dataset, which holds the targets: leave `y` out (None).")
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise ValueError(
            "The dataset must yield (x, y) or (x, y, sample_weight). Received: elements of the "
            f"form {spec}"
        )
    if any(leaf.shape.rank == 0 for leaf in keras.tree.flatten(spec)):
        raise ValueError(
            "The dataset must yield batches, but single examples were received: "
            f"{spec}. Use dataset.batch(256)."
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("The dataset must end, but it repeats for ever. Drop its `.repeat()`.")
