"""Division of a batch into ghost batches, and sums and broadcasts between the two."""

import contextlib
import threading

from keras import ops

_active = threading.local()  # each replica of a distribution strategy runs in its own thread


@contextlib.contextmanager
def part_of_batch(batch, start, rows):
    """Context in which layers process consecutive rows of a batch with the whole batch's ghosts.

    Args:
        batch: number of examples of the whole batch.
        start: the first row, which must be the first of a ghost.
        rows: number of rows; the last row must be the last of a ghost.

    Yields:
        Nothing.
    """
    with _within((batch, start, rows)):
        yield


def whole_batch():
    """Context in which layers process a whole batch; it overrides an outer context."""
    return _within(None)


@contextlib.contextmanager
def _within(part):
    before, _active.part = getattr(_active, "part", None), part
    try:
        yield
    finally:
        _active.part = before


def _part(rows):
    """The size of the whole batch, and the index of the first of the layer's `rows` in it."""
    part = getattr(_active, "part", None)
    if part is None:
        return rows, 0
    batch, start, expected = part
    if isinstance(rows, int) and isinstance(expected, int) and rows != expected:
        raise ValueError(
            "If a batch is computed in microbatches, the first axis of a GhostBatchNormalization's "
            f"inputs must be the examples. Received: inputs with {rows} rows for {expected} "
            "examples. Leave num_microbatches out and use an estimator other than "
            '"split", or do not merge other axes into the first one.'
        )
    return batch, start


class Ghosts:
    """A batch of B examples divided into G ghosts; example i belongs to ghost i * G // B.

    Within `part_of_batch` the B examples are rows of a larger batch and keep its ghosts.

    The gradients of the operations are composed of the same operations. This avoids the scatter
    operation that differentiates a gather, keeps branches out of the tape, and works for
    derivatives of any order.

    Args:
        batch: number of examples, an integer or a scalar tensor; it may be 0.
        ghost_batch_size: number of examples in a ghost.
        large: whether the arrays (B, C) are as large as the layer's inputs. If so, and the ghosts
            have equal sizes, arrays are reshaped to (G, B / G, C), so that ghost values are not
            copied for each example. For small arrays this does not repay the time of tracing.
    """

    def __init__(self, batch, ghost_batch_size, large):
        self.batch, self.large = batch, large
        self.count = ops.maximum(batch // ghost_batch_size, 1)
        whole, start = _part(batch)
        first = ops.cast(start, "int64")  # B * G may exceed 32 bits

        def ghost_of(rows):
            count = ops.cast(ops.maximum(whole // ghost_batch_size, 1), "int64")
            return rows * count // ops.cast(ops.maximum(whole, 1), "int64")

        rows = first + ops.cast(ops.arange(batch), "int64")
        self.index = ops.cast(ghost_of(rows) - ghost_of(first), "int32")
        self.sizes = ops.segment_sum(ops.ones_like(self.index), self.index, self.count)
        self.equal = self.batch % self.count == 0

    def sum(self, per_example):
        """Sum over each ghost, (B, C) to (G, C)."""

        def any_ghosts(values):
            return ops.segment_sum(values, self.index, self.count)

        def equal_ghosts(values):
            total = ops.sum(self._rows(values), axis=1)
            return ops.broadcast_to(total, (self.count, values.shape[-1]))

        def choose(values):
            return self._choose(any_ghosts, equal_ghosts, values), self.spread

        return ops.custom_gradient(choose)(per_example)

    def spread(self, per_ghost):
        """Copy the values of each ghost to its examples, (G, C) to (B, C)."""
        return ops.custom_gradient(lambda values: (ops.take(values, self.index, axis=0), self.sum))(
            per_ghost
        )

    def add(self, per_example, per_ghost):
        """`per_example + spread(per_ghost)`."""
        return ops.custom_gradient(
            lambda a, b: (self._combine(ops.add, a, b), lambda d: (d, self.sum(d)))
        )(per_example, per_ghost)

    def multiply(self, per_example, per_ghost):
        """`per_example * spread(per_ghost)`."""
        return ops.custom_gradient(
            lambda a, b: (
                self._combine(ops.multiply, a, b),
                lambda d: (self.multiply(d, b), self.sum(d * a)),
            )
        )(per_example, per_ghost)

    def mean(self, per_example):
        """Mean over each ghost, (B, C) to (G, C); 0 for a ghost without examples."""
        total = self.sum(per_example)
        return ops.divide_no_nan(total, ops.cast(self.sizes, total.dtype)[:, None])

    def _combine(self, operation, per_example, per_ghost):
        def any_ghosts(values, per_ghost):
            return operation(values, ops.take(per_ghost, self.index, axis=0))

        def equal_ghosts(values, per_ghost):
            rows = self._rows(values)
            return ops.reshape(
                operation(rows, per_ghost[: ops.shape(rows)[0], None]), ops.shape(values)
            )

        return self._choose(any_ghosts, equal_ghosts, per_example, per_ghost)

    def _choose(self, any_ghosts, equal_ghosts, *arguments):
        if not self.large:
            return any_ghosts(*arguments)
        return ops.cond(
            self.equal, lambda: equal_ghosts(*arguments), lambda: any_ghosts(*arguments)
        )

    def _rows(self, values):
        # XLA compiles this branch even if it is not taken, so the sizes must always be valid.
        count = ops.where(self.equal, self.count, 1)
        return ops.reshape(values, (count, self.batch // count, values.shape[-1]))
