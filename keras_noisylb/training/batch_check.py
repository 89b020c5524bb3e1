"""Rejects batches that are too small for the noise or for the microbatches."""

import keras
from keras import ops

from keras_noisylb.gradients.microbatches import cut, ghost_sizes


class LargestBatch(keras.metrics.Metric):
    """The number of examples of the largest batch on all devices.

    With `steps_per_execution`, callbacks see several batches at once, and the last one can be
    smaller than the others.
    """

    def __init__(self, name="largest_batch", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.examples = self.add_variable((), "zeros", dtype="float32", name="examples")

    def update_state(self, num_examples):
        """Add the number of examples of one batch on one device."""
        self.examples.assign(ops.maximum(self.examples, ops.cast(num_examples, "float32")))

    def result(self):
        return ops.convert_to_tensor(self.examples)


class BatchSizeCheck(keras.callbacks.Callback):
    """Rejects a batch size that is too small, after the first batches of the data.

    Args:
        noisy: the `NoisyOptimizer`, or `None`.
        model: the `NoisyModel`.
        largest: the `LargestBatch` that the training step updates.
    """

    def __init__(self, noisy, model, largest):
        super().__init__()
        self.noisy, self.num_microbatches = noisy, model.num_microbatches or 1
        self.ghosts, self.largest = ghost_sizes(model), largest

    def check(self, batch_size):
        """Reject a batch size that is too small."""
        most = cut(batch_size, batch_size, self.ghosts).number
        if most < self.num_microbatches and self.num_microbatches > 1:
            sizes = " and of ".join(map(str, self.ghosts)) or "1"
            raise ValueError(
                f"Microbatches hold whole ghost batches of {sizes} examples. Received: batch "
                f"size {batch_size}, num_microbatches={self.num_microbatches}. Use at most "
                f"num_microbatches={most}, or a larger batch size. It should be a multiple of all "
                "these numbers."
            )
        small = self.noisy and self.noisy.noise.small_batch_size
        if not small:
            return
        accumulated = self.noisy.accumulated
        if batch_size * accumulated <= small:
            raise ValueError(
                "The noise imitates the gradient variance of a small batch, so the batch size of "
                f"one update must be larger than `small_batch_size`. Received: batch size "
                f"{batch_size} (times {accumulated} accumulated), small_batch_size={small}. Use a "
                "larger batch size or a smaller small_batch_size."
            )

    def on_train_begin(self, logs=None):
        self.first = True
        self.largest.reset_state()

    def on_train_batch_end(self, batch, logs=None):
        if self.first:
            self.first = False
            self.check(int(keras.ops.convert_to_numpy(self.largest.result())))
