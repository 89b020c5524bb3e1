"""Callbacks that keep the workers of a cluster together."""

import tempfile
import zlib

import keras
import numpy as np
import tensorflow as tf

from keras_noisylb.training.exchange import of_all
from keras_noisylb.training.workers import is_chief, several_workers


def for_workers(callbacks, strategy, shuffled):
    """The callbacks of `fit`, as this worker needs them.

    Args:
        callbacks: list of callbacks.
        strategy: the strategy of the model.
        shuffled: whether every worker shuffles the data by itself.

    Returns:
        List of callbacks.

    Raises:
        ValueError: if several calls of `fit` share a backup, as those of a `BatchChange` do.
    """
    if not several_workers(strategy):
        return callbacks
    for shared in callbacks:
        if isinstance(shared, keras.callbacks.CallbackList) and any(
            isinstance(c, keras.callbacks.BackupAndRestore) for c in shared.callbacks
        ):
            raise ValueError(
                "With several workers, BackupAndRestore works in one call of `fit`, not in a "
                "BatchChange or a CallbackList: every worker would write the same files. Leave it "
                "out there, or train on one worker."
            )
    if not is_chief(strategy):
        callbacks = [
            BackupOfChief(c) if type(c) is keras.callbacks.BackupAndRestore else c
            for c in callbacks
        ]
    return [*callbacks, SameStart(strategy, shuffled)]


class BackupOfChief(keras.callbacks.Callback):
    """Restores from the backup that the chief writes, and leaves that as it is.

    Reading the weights may be a collective operation, so this worker saves whenever the chief does,
    to a folder of its own.

    Args:
        backup: the `keras.callbacks.BackupAndRestore` of the chief.
    """

    def __init__(self, backup):
        super().__init__()
        self.reader = backup
        self.writer = keras.callbacks.BackupAndRestore(tempfile.mkdtemp(), backup.save_freq)

    def set_model(self, model):
        super().set_model(model)
        self.reader.set_model(model)
        self.writer.set_model(model)

    def on_train_begin(self, logs=None):
        self.reader.on_train_begin(logs)

    def on_train_batch_end(self, batch, logs=None):
        self.writer.on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self.writer.on_epoch_end(epoch, logs)

    def on_train_end(self, logs=None):
        self.writer.on_train_end(logs)


class SameStart(keras.callbacks.Callback):
    """Refuses workers that begin with different states, which would never become equal.

    Args:
        strategy: the strategy of the model.
        shuffled: whether every worker shuffles the data by itself.
    """

    def __init__(self, strategy, shuffled):
        super().__init__()
        self.strategy, self.shuffled = strategy, shuffled

    def on_train_begin(self, logs=None):
        self.first = True

    def on_epoch_begin(self, epoch, logs=None):
        if not self.first:
            return
        self.first = False
        with self.strategy.scope():
            weights = zlib.crc32(b"".join(np.ravel(w).tobytes() for w in self.model.get_weights()))
            updates = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
            own = f"epoch {epoch}, updates {updates}, checksum of the weights {weights}"
            if self.shuffled:
                own += f", random seed {_global_seed()}"
            states = [state.decode() for state in of_all(self.strategy, own.encode())]
        if len(set(states)) > 1:
            found = "; ".join(f"worker {number}: {state}" for number, state in enumerate(states))
            raise ValueError(
                "All workers must begin with the same state: load the same weights, give "
                "BackupAndRestore a folder that all of them can read, and call "
                f"keras.utils.set_random_seed with the same number. Received: {found}"
            )


def _global_seed():
    """TensorFlow's global seed, by which it shuffles arrays.

    Raises:
        ValueError: if there is none.
    """
    seed = tf.compat.v1.random.get_seed(0)[0]
    with tf.Graph().as_default():
        if seed == tf.compat.v1.random.get_seed(0)[0]:
            raise ValueError(
                "Every worker shuffles the arrays by itself, so that their parts of a batch would "
                "overlap. Call keras.utils.set_random_seed, with the same number on all workers, "
                "after the strategy is made; or pass shuffle=False."
            )
    return seed
