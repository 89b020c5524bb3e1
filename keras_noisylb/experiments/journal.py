"""The state of an unfinished run: its history and its checkpoint, written after its epochs."""

import math
import time
import warnings
import zipfile

import keras

from keras_noisylb.experiments import records
from keras_noisylb.training.randomness import seed_states

PAUSE = 20  # from one write to the next, in durations of a write: it is a twentieth of the time
HISTORY = {"epochs": [], "batch_loss": [], "step_seconds": [], "first_steps": [], "noise_steps": 0}
# What Keras raises for a checkpoint that is damaged, or of another model.
UNLOADABLE = (
    OSError, EOFError, KeyError, RuntimeError, ValueError, UserWarning, zipfile.BadZipFile,
)  # fmt: skip


class Journal(keras.callbacks.Callback):
    """Writes history and checkpoint, and stops where the loss is not finite.

    They are written after every epoch, unless epochs are short: then after the first and the last
    one, and so often between them that writing takes little of the time (`PAUSE`).

    The history alone tells how many epochs are finished. The checkpoint is written first, under a
    name with its epoch, so that a run that is killed at any moment finds a history and a checkpoint
    of the same epoch. (Keras' BackupAndRestore writes weights and epoch one after the other, and
    keeps no history.)

    Args:
        folder: `pathlib.Path` of the run.
        history: the history so far, with the keys of `HISTORY`.
        make_batches: function `batch_size -> Batches`; `fit` must not shuffle these.
    """

    def __init__(self, folder, history, make_batches):
        super().__init__()
        self.folder, self.history, self.make_batches = folder, history, make_batches
        self.diverged_epoch = None

    def data(self, batch_size):
        """The batches that the coming epochs train on, as a `tf.data.Dataset`.

        Args:
            batch_size: number of examples of each.
        """
        self.batches = self.make_batches(batch_size)
        return self.batches.dataset()

    def on_train_begin(self, logs=None):
        self.history["first_steps"].append(len(self.history["batch_loss"]))
        self.next_write = -math.inf

    def on_epoch_begin(self, epoch, logs=None):
        # Here, not in the data's own `on_epoch_end`: Keras calls that once too often, after it has
        # looked at a batch to build the model.
        self.batches.start(epoch)
        self.epoch, self.seen, self.total = epoch, 0, 0.0
        self.began = self.ended = time.perf_counter()

    def on_train_batch_begin(self, batch, logs=None):
        self.step_began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        # Keras reports the mean over the epoch so far; the loss of this batch is what changed it.
        mean = float(logs["loss"])
        self.ended = time.perf_counter()
        seen = min(self.seen + self.batches.batch_size, len(self.batches.order))
        loss = (mean * seen - self.total) / (seen - self.seen)
        self.seen, self.total = seen, mean * seen
        self.history["batch_loss"].append(loss)
        self.history["step_seconds"].append(self.ended - self.step_began)
        if not math.isfinite(loss):
            self.diverged_epoch = self.epoch + 1
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        # Keras calls whatever is evaluated during training "val".
        logs = {name.replace("val_", "test_"): float(value) for name, value in logs.items()}
        seconds = self.ended - self.began
        self.history["epochs"].append({"epoch": epoch + 1, **logs, "seconds": seconds})
        if self.diverged_epoch is not None:
            return  # there is nothing to continue: `train_run` writes the history
        began = time.perf_counter()
        if began >= self.next_write or epoch + 1 == self.params["epochs"]:
            self.write(epoch + 1)
            ended = time.perf_counter()
            self.next_write = ended + PAUSE * (ended - began)

    def write(self, epochs):
        """Write the state after a number of epochs."""
        self.history["seed_states"] = [state.numpy().tolist() for state in seed_states(self.model)]
        path = checkpoint(self.folder, epochs)
        with records.replacing(path) as temporary:
            self.model.save(temporary)  # not save_weights: HDF5 crashes where the disk is full
        records.write_json(self.folder / "history.json", self.history, indent=None)
        for old in self.folder.glob("checkpoint-*.keras"):
            if old != path:
                old.unlink()


def checkpoint(folder, epoch):
    """The file with the state of the training after an epoch.

    Args:
        folder: `pathlib.Path` of the run.
        epoch: number of finished epochs.
    """
    return folder / f"checkpoint-{epoch:04}.keras"


def finished_epochs(folder):
    """The number of finished epochs of an unfinished run.

    Args:
        folder: `pathlib.Path` of the run.
    """
    names = [path.name for path in folder.glob("checkpoint-*.keras")]
    return max((int(name.split("-")[1].split(".")[0]) for name in names), default=0)


def load_checkpoint(model, path):
    """Load the state of a training.

    Args:
        model: the compiled model.
        path: a file that `checkpoint` names.

    Raises:
        zipfile.BadZipFile: if the file is damaged.
    """
    with zipfile.ZipFile(path) as archive:  # Keras reads without checksums from Python 3.12 on
        damaged = archive.testzip()
    if damaged:
        raise zipfile.BadZipFile(f"{path}: the checksum of {damaged} is wrong.")
    model.optimizer.build(model.trainable_variables)
    with warnings.catch_warnings():
        # Otherwise Keras continues with an optimizer without its momentum and its step count.
        warnings.filterwarnings("error", "Skipping variable loading")
        model.load_weights(path)


def resume(model, folder, say):
    """Load the state that was written last.

    Args:
        model: the compiled model.
        folder: `pathlib.Path` of the run.
        say: function that prints a line.

    Returns:
        The history so far, empty if the training starts now; `None` if a damaged checkpoint was
        set aside, after which the model may be half loaded.
    """
    path = folder / "history.json"
    empty = {
        key: list(value) if isinstance(value, list) else value for key, value in HISTORY.items()
    }
    history = records.read_json(path, HISTORY, say)
    if history is None:
        return empty
    saved = checkpoint(folder, len(history["epochs"]))
    try:
        load_checkpoint(model, saved)
    except UNLOADABLE as error:
        if getattr(error, "errno", None) and not isinstance(error, FileNotFoundError):
            raise  # the disk's, or another process's: the file itself may be sound
        if saved.exists():
            records.set_aside(saved, f"cannot be loaded ({type(error).__name__})", say)
        records.set_aside(path, f"has no {saved.name} that can be loaded", say)
        return None
    for variable, state in zip(seed_states(model), history.get("seed_states", ()), strict=False):
        variable.assign(state)
    say(f"Continues after epoch {len(history['epochs'])}.")
    return history
