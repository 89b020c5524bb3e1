"""One regime with one seed: trained, or continued, in a folder of its own."""

import math
import time
import warnings
import zipfile

import keras
import numpy as np

from keras_noisylb.experiments import records
from keras_noisylb.optimizer import NoisyOptimizer
from keras_noisylb.schedules import WarmupStepDecay, updates_in
from keras_noisylb.training.model import NoisyModel
from keras_noisylb.training.randomness import seed_states

HISTORY = {"epochs": [], "batch_loss": [], "step_seconds": [], "first_steps": [], "noise_steps": 0}
RECORD = (
    "diverged_epoch", "steps", "train_loss", "train_accuracy", "test_loss", "test_accuracy",
    "seconds", "step_seconds",
)  # fmt: skip
# What a checkpoint raises that is damaged, or of another model.
UNLOADABLE = (
    OSError, EOFError, KeyError, RuntimeError, ValueError, UserWarning, zipfile.BadZipFile,
)  # fmt: skip


class Journal(keras.callbacks.Callback):
    """Writes history and checkpoint after every epoch, and stops where the loss is not finite.

    The history is the one file that says how far the run is: the checkpoint is written first, under
    a name with its epoch, so a run killed at any moment finds a pair that belongs together. (Keras'
    BackupAndRestore writes weights and epoch one after the other, and knows no history.)

    Args:
        folder: `pathlib.Path` of the run.
        history: what the epochs so far have left, in the form of `HISTORY`.
        make_batches: function `batch_size -> Batches`; `fit` must not shuffle these.
    """

    def __init__(self, folder, history, make_batches):
        super().__init__()
        self.folder, self.history, self.make_batches = folder, history, make_batches
        self.diverged_epoch = None

    def data(self, batch_size):
        """The batches that the coming epochs train on.

        Args:
            batch_size: number of examples of each.
        """
        self.batches = self.make_batches(batch_size)
        return self.batches

    def on_train_begin(self, logs=None):
        self.history["first_steps"].append(len(self.history["batch_loss"]))

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
        seen = min(self.seen + self.batches.batch_size, len(self.batches.x))
        loss = (mean * seen - self.total) / (seen - self.seen)
        self.seen, self.total = seen, mean * seen
        self.history["batch_loss"].append(loss)
        self.history["step_seconds"].append(self.ended - self.step_began)
        if not math.isfinite(loss):
            self.diverged_epoch = self.epoch + 1
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        # "val" is Keras' word for whatever is looked at during training.
        logs = {name.replace("val_", "test_"): float(value) for name, value in logs.items()}
        seconds = self.ended - self.began
        self.history["epochs"].append({"epoch": epoch + 1, **logs, "seconds": seconds})
        if self.diverged_epoch is not None:
            return  # nothing to continue from: `train` writes the history with the record
        self.history["seed_states"] = [state.numpy().tolist() for state in seed_states(self.model)]
        path = checkpoint(self.folder, epoch + 1)
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
        # Keras would go on with an optimizer that lost its momentum and its step count.
        warnings.filterwarnings("error", "Skipping variable loading")
        model.load_weights(path)


def schedule(regime, learning_rate, options, num_examples):
    """The learning rate over the updates.

    It falls to a tenth after a half and after three quarters of the epochs. The small batches of a
    regime that changes to large ones have the learning rate of SB, and no regime warms up then.

    Args:
        regime: the `Regime`.
        learning_rate: its peak learning rate.
        options: the options of the run.
        num_examples: number of training examples.

    Returns:
        A Keras schedule.
    """
    change = regime.batch_change(options)

    def update(epoch):
        """The first update from an epoch on, which may be a part of one."""
        whole = math.floor(epoch)
        before, after = (change.updates(num_examples, number) for number in (whole, whole + 1))
        return before + math.floor((epoch - whole) * (after - before))

    decays = [options.epochs / 2, options.epochs * 3 / 4]
    if regime.batch != "change":
        warmup = round(options.warmup_fraction * update(options.epochs))
        return WarmupStepDecay(
            learning_rate, warmup_steps=warmup, decay_steps=map(update, decays), decay_factor=0.1
        )
    ends = [update(max(epoch, change.change_epoch)) for epoch in (change.change_epoch, *decays)]
    rates = [options.learning_rates["sb"], *(learning_rate * f for f in (1.0, 0.1, 0.01))]
    # Keras' boundaries are the last steps of their rates, not the first of the next.
    return keras.optimizers.schedules.PiecewiseConstantDecay([end - 1 for end in ends], rates)


def compiled(network, regime, learning_rate, options, num_examples, seed):
    """The network ready for `fit` under a regime.

    Args:
        network: a Keras model that gives logits.
        regime: the `Regime`.
        learning_rate: its peak learning rate.
        options: the options of the run.
        num_examples: number of training examples.
        seed: of the noise.

    Returns:
        Tuple of the compiled model and the number of its updates with noise.
    """
    rates = schedule(regime, learning_rate, options, num_examples)
    if options.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(rates, weight_decay=options.weight_decay)
    else:
        optimizer = keras.optimizers.SGD(rates, momentum=options.momentum)
    noise, noise_steps, model = regime.noise(options, learning_rate), 0, network
    if noise is not None:
        steps = regime.batch_change(options).updates(num_examples, options.epochs)
        noise_steps = updates_in(options.noise_fraction, steps)
        optimizer = NoisyOptimizer(
            optimizer,
            noise,
            noise_steps=noise_steps,
            placement=options.placement,
            seed=seed,
        )
    if regime.batch != "small" and (noise is not None or options.num_microbatches):
        model = NoisyModel(network, options.num_microbatches)
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model, noise_steps


def resume(model, folder, say):
    """Load the state after the last finished epoch.

    Args:
        model: the compiled model.
        folder: `pathlib.Path` of the run.
        say: function that prints a line.

    Returns:
        The history so far, empty where the training starts from its beginning.
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


def train(folder, build, regime, learning_rate, options, seed, data, say):
    """Train one regime with one seed, unless its record says that this was done.

    Args:
        folder: `pathlib.Path` of the run; made if need be.
        build: function without arguments that builds the network.
        regime: the `Regime`.
        learning_rate: its peak learning rate.
        options: the options of the comparison.
        seed: of initial weights, order of the data and noise.
        data: the `Split` to train on and to report on.
        say: function that prints a line.

    Returns:
        Tuple `(record, history)` of dictionaries.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = records.read_json(folder / "record.json", RECORD, say)
    history = records.read_json(folder / "history.json", HISTORY, say)
    if record is not None and history is not None:
        say("Finished before; not trained again.")
        return record, history
    history = None
    while history is None:  # at most twice: a checkpoint that fails to load may have been half read
        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        network = build()
        model, noise_steps = compiled(
            network, regime, learning_rate, options, len(data.x_train), seed
        )
        history = resume(model, folder, say)
    history["noise_steps"] = noise_steps
    done = len(history["epochs"])
    journal = Journal(folder, history, lambda size: data.batches(size, seed, options.augment))

    def batches(size):
        if regime.batch == "change" and options.num_microbatches:
            # Only the large batches need microbatches. Keras traces the step anew for them.
            large = size == options.large_batch_size
            model.num_microbatches = options.num_microbatches if large else 1
            model.train_function = None
        return journal.data(size)

    evaluation = {"batch_size": 1000, "verbose": 0}
    if done < options.epochs:
        regime.batch_change(options).fit(
            model,
            batches,
            shuffle=False,  # of the order of the batches: `batches` has shuffled the examples
            epochs=options.epochs,
            initial_epoch=done,
            validation_data=(data.x_test, data.y_test),
            validation_batch_size=1000,
            validation_freq=options.validation_freq,
            callbacks=[journal],
            verbose=0 if options.quiet else 1,
        )
    train_loss, train_accuracy = model.evaluate(data.x_train, data.y_train, **evaluation)
    test_loss, test_accuracy = model.evaluate(data.x_test, data.y_test, **evaluation)
    held_out = {}
    if data.held_out is not None:
        loss, accuracy = model.evaluate(*data.held_out, **evaluation)
        held_out = {"held_out_loss": loss, "held_out_accuracy": accuracy}
    diverged = journal.diverged_epoch
    if diverged is None and not math.isfinite(train_loss + test_loss):
        diverged = options.epochs
    record = dict(
        diverged_epoch=diverged,
        steps=len(history["batch_loss"]),
        train_loss=train_loss,
        train_accuracy=train_accuracy,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        **held_out,
        seconds=sum(epoch["seconds"] for epoch in history["epochs"]),
        step_seconds=median_step(history),
        seed=seed,
        learning_rate=learning_rate,
        batch_size=regime.batch_size(options),
    )
    with records.replacing(folder / "model.keras") as temporary:
        network.save(temporary)
    records.write_json(folder / "history.json", history, indent=None)
    records.write_json(folder / "record.json", record)
    for path in folder.glob("checkpoint-*.keras"):
        path.unlink()
    return record, history


def median_step(history):
    """Median seconds of an update, of those with noise where there are any.

    The first update after each start is left out: Keras builds its graph there.

    Args:
        history: in the form of `HISTORY`.
    """
    steps = history["step_seconds"]
    if history["noise_steps"]:
        steps = steps[: history["noise_steps"]]
    kept = [s for number, s in enumerate(steps) if number not in history["first_steps"]]
    return float(np.median(kept)) if kept else None
