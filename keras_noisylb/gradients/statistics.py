"""What an update wants to know of its batch beside the gradient."""


class Statistic:
    """Base class, and the plain step: nothing but the gradient is computed.

    A statistic is made of sums over examples, so that a batch can be computed chunk by chunk.
    """

    def measure(self, objective, batch, draws):
        """Run one chunk forward and backward.

        Args:
            objective: an `Objective`.
            batch: a `Batch` with the rows to be computed.
            draws: `Draws` for labels and weights.

        Returns:
            Tuple `(recorded, gradients, sums)`: a `Recorded`, the chunk's part of the gradient of
            the data loss, and nested tensors (or `None`) that are added up over the chunks.
        """
        recorded = objective.record(batch, draws)
        return recorded, recorded.data_gradients(), ()

    def finish(self, sums, gradients, num_examples):
        """The statistic.

        Args:
            sums: of all chunks.
            gradients: the gradient of the batch.
            num_examples: M.

        Returns:
            Nested tensors (or `None`).
        """
        return None

    def arrange(self, sample):
        """Bring a noise's sample into a list aligned with the trainable variables."""
        return sample


class Gradient(Statistic):
    """The gradient itself, for noises that multiply it or only need its shape."""

    def finish(self, sums, gradients, num_examples):
        return gradients


def where_known(gradients, statistic):
    """`statistic`, aligned with `gradients`, without the variables that have no gradient."""
    return [None if g is None else s for g, s in zip(gradients, statistic, strict=True)]
