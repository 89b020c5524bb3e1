"""A batch cut into ghost batches, and the arithmetic between the two."""

from keras import ops


class Ghosts:
    """A batch of B examples cut into G ghosts, example i belonging to ghost i * G // B.

    Every operation's gradient is made of these operations again: that spares the scatter which
    differentiating a gather would cost, keeps branches out of the tape, and holds for derivatives
    of any order.

    Args:
        batch: number of examples, an integer or a scalar tensor; it may be 0.
        ghost_batch_size: number of examples in a ghost.
        large: whether the arrays (B, C) are as large as the layer's inputs. Where the ghosts are
            equal, such arrays are then read as (G, B / G, C), which needs no array of what each
            example takes from its ghost. For small ones, the time to trace this would not pay.
    """

    def __init__(self, batch, ghost_batch_size, large):
        self.batch, self.large = batch, large
        self.count = ops.maximum(batch // ghost_batch_size, 1)
        wide = ops.cast(ops.arange(batch), "int64")  # B * G may exceed 32 bits
        index = wide * ops.cast(self.count, "int64") // ops.cast(ops.maximum(batch, 1), "int64")
        self.index = ops.cast(index, "int32")
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
        """Hand each example what its ghost has, (G, C) to (B, C)."""
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
        # Sizes that are possible in any case: XLA compiles this branch even if it is not taken.
        count = ops.where(self.equal, self.count, 1)
        return ops.reshape(values, (count, self.batch // count, values.shape[-1]))
