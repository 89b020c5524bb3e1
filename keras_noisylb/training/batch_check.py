"""Refuses batches that are too small for the noise, or for the chunks they shall be computed in."""

import keras
from keras import ops

from keras_noisylb.gradients.microbatches import cut, ghost_sizes


class LargestBatch(keras.metrics.Metric):
    """The number of examples of the largest batch, those of all devices together.

    Keras' callbacks see the data of several steps at once, where the last batch may be short.

    Args:
        name: name of the metric.
        dtype: its dtype.
    """

    def __init__(self, name="largest_batch", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.examples = self.add_variable((), "zeros", dtype="float32", name="examples")

    def update_state(self, num_examples):
        """See one batch on one device.

        Args:
            num_examples: its number of examples.
        """
        self.examples.assign(ops.maximum(self.examples, ops.cast(num_examples, "float32")))

    def result(self):
        return ops.convert_to_tensor(self.examples)


class BatchSizeCheck(keras.callbacks.Callback):
    """Refuses a nominal batch size that leaves no noise; looks at the first batches of the data.

    Args:
        noisy: the `NoisyOptimizer`, or `None`.
        model: the `NoisyModel`.
        largest: the `LargestBatch` that its steps update.
    """

    def __init__(self, noisy, model, largest):
        super().__init__()
        self.noisy, self.num_microbatches = noisy, model.num_microbatches or 1
        self.ghosts, self.largest = ghost_sizes(model), largest

    def check(self, batch_size):
        """Check the number of examples of a full batch.

        Args:
            batch_size: the number.

        Raises:
            ValueError: if it is too small.
        """
        most = cut(batch_size, batch_size, self.ghosts).number
        if most < self.num_microbatches and self.num_microbatches > 1:
            sizes = " and of ".join(map(str, self.ghosts)) or "1"
            raise ValueError(
                f"Microbatches hold whole ghost batches, of {sizes} examples. Received: batch "
                f"size {batch_size}, num_microbatches={self.num_microbatches}. Use at most "
                f"num_microbatches={most}, or a larger batch, best a multiple of all these numbers."
            )
        small = self.noisy and self.noisy.noise.small_batch_size
        if not small:
            return
        accumulated = self.noisy.accumulated
        if batch_size * accumulated <= small:
            raise ValueError(
                "The noise imitates a small batch by a large one, so the batch size of one update "
                f"must be larger than `small_batch_size`. Received: batch size {batch_size} "
                f"(times {accumulated} accumulated), small_batch_size={small}. Raise the "
                "batch size or lower small_batch_size."
            )

    def on_train_begin(self, logs=None):
        self.first = True
        self.largest.reset_state()

    def on_train_batch_end(self, batch, logs=None):
        if self.first:
            self.first = False
            self.check(int(keras.ops.convert_to_numpy(self.largest.result())))
