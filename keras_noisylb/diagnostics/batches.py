"""Batches of a data set that can be read several times."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

EMPTY = "The dataset is empty: there is no loss to differentiate. Pass at least one example."


def batched(x, y, batch_size):
    """The batches of a data set, and the `element_spec` that describes them.

    Args:
        x: inputs, examples first, or nested; or a `tf.data.Dataset` of batches `(x, y)` or
            `(x, y, sample_weight)`, finite and the same on every pass.
        y: targets, examples first, or nested; `None` with a dataset.
        batch_size: number of examples in a batch; ignored with a dataset.

    Returns:
        An iterable of `(x, y)` or `(x, y, sample_weight)`; the last batch may be smaller.

    Raises:
        ValueError: if there are no examples, if the arrays have different numbers of examples, or
            if a dataset has another form.

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
        raise ValueError("`y` is missing: pass the targets, or a tf.data.Dataset of (x, y) as `x`.")
    data = keras.tree.map_structure(np.asarray, (x, y))
    counts = {len(array) if array.ndim else None for array in keras.tree.flatten(data)}
    if len(counts) != 1 or counts & {0, None}:
        raise ValueError(
            "`x` and `y` must be arrays (or nested arrays) with the same number of examples, at "
            "least one, on the first axis. Received: shapes (x, y) = "
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
            yield self._rows(slice(start, start + self.batch_size))

    def _rows(self, rows):
        return keras.tree.map_structure(lambda array: array[rows], self.data)

    def draw(self, rng):
        """Endless random batches; no batch contains an example twice."""
        while True:
            yield self._rows(rng.choice(self.num_examples, self.batch_size, replace=False))

    def disjoint(self, rng):
        """Full batches of the shuffled data; the remaining examples are dropped."""
        order = rng.permutation(self.num_examples)
        for start in range(0, self.num_examples - self.batch_size + 1, self.batch_size):
            yield self._rows(order[start : start + self.batch_size])


def minibatches(x, y, batch_size):
    """Minibatches of equal size.

    Args:
        x: inputs, examples first, or nested; or a `tf.data.Dataset` of batches.
        y: targets, examples first, or nested; `None` with a dataset.
        batch_size: number of examples in a minibatch; `None` with a dataset, where the first batch
            determines it.

    Returns:
        An object with `batch_size`, `element_spec`, `draw(rng)`, which yields minibatches without
        end, and `disjoint(rng)`, which yields the minibatches of one pass over the data.

    Raises:
        ValueError: if there are fewer examples than `batch_size`, or as in `batched`.

    Example:
    >>> batches = minibatches(np.ones((5, 3)), np.ones(5), batch_size=2)
    >>> len(list(batches.disjoint(np.random.default_rng(0))))
    2
    """
    if isinstance(x, tf.data.Dataset):
        if batch_size is not None:
            raise ValueError(
                "`x` is a tf.data.Dataset, which determines the batch size: leave `batch_size` "
                f"out (None). Received: batch_size={batch_size}"
            )
        return _DatasetMinibatches(batched(x, y, None))
    if batch_size is None:
        raise ValueError(
            "`batch_size` is missing: the number of examples in a minibatch. Received: None"
        )
    batches = batched(x, y, batch_size)
    if batch_size > batches.num_examples:
        raise ValueError(
            f"`batch_size` must be at most the {batches.num_examples} examples of the data. "
            f"Received: batch_size={batch_size}. Lower it, or pass more data."
        )
    return batches


class _DatasetMinibatches:
    def __init__(self, dataset):
        self.dataset, self.element_spec = dataset, dataset.element_spec
        self.batch_size = next((_num_rows(batch) for batch in dataset), 0)
        if not self.batch_size:
            raise ValueError(EMPTY)

    def __iter__(self):
        return iter(self.dataset)

    def draw(self, rng):
        """Full batches of repeated passes; the data set itself must shuffle."""
        while True:
            yield from self.disjoint(rng)

    def disjoint(self, rng):
        """Full batches of one pass; a smaller last batch is dropped."""
        for batch in self.dataset:
            rows = _num_rows(batch)
            if rows > self.batch_size:
                raise ValueError(
                    "The dataset's batches must have equal size. Received: batches of "
                    f"{self.batch_size} and {rows} examples."
                )
            if rows == self.batch_size:
                yield batch


def _num_rows(batch):
    return int(tf.shape(keras.tree.flatten(batch)[0])[0])


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
        raise ValueError(
            "The dataset must be finite, but it repeats forever. Drop its `.repeat()`."
        )
