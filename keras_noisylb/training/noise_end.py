"""When the noise of a `noise_fraction` ends, from the epochs and steps of `fit`."""

import math

import keras
import tensorflow as tf

from keras_noisylb.schedules import updates_in


class NoiseEnd(keras.callbacks.Callback):
    """Computes the end of the noise when an epoch starts.

    Every epoch computes it again, because a `BatchChange` changes the number of steps. It depends
    on counts only, so a resumed run ends the noise at the same step as an uninterrupted run.

    Args:
        noisy: the `NoisyOptimizer`.
    """

    def __init__(self, noisy):
        super().__init__()
        self.noisy = noisy

    def on_epoch_begin(self, epoch, logs=None):
        noisy, fraction = self.noisy, self.noisy.noise_fraction
        if fraction is None:
            return
        epochs, steps = self.params["epochs"], self.params.get("steps")
        if steps is not None:
            batches = int(keras.ops.convert_to_numpy(noisy.inner_optimizer._iterations))
            end = batches - epoch * steps + updates_in(fraction, epochs * steps)
            noisy.end_noise_after(max(math.ceil(end / noisy.accumulated), 0))
            return
        # The number of steps is unknown: the noise ends between two epochs.
        updates = int(keras.ops.convert_to_numpy(noisy.iterations))
        if epoch < updates_in(fraction, epochs):
            noisy.end_noise_after(None)
        elif noisy.noise_steps is None or noisy.noise_steps > updates:
            noisy.end_noise_after(updates)


def check_noise_end(noisy):
    """Reject a step before `fit` has computed the end of the noise from `noise_fraction`."""
    if noisy.noise_fraction is None:
        return
    with tf.init_scope():  # the value at the time when the step is traced
        known = noisy.noise_end_known
    if not known:
        raise RuntimeError(
            "`noise_fraction` is a fraction of the training by NoisyModel.fit. A step outside of "
            "`fit` does not know the length of the training. For train_on_batch and custom loops, "
            "pass the number of updates with noise to NoisyOptimizer: noise_steps=... "
            f"Received: noise_fraction={noisy.noise_fraction}"
        )
