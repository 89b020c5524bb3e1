"""One regime with one seed: trained, or continued, in a folder of its own."""

import contextlib
import math

import keras
import numpy as np
import tensorflow as tf

from keras_noisylb.experiments import records
from keras_noisylb.experiments.journal import HISTORY, Journal, resume
from keras_noisylb.experiments.progress import EpochLines, has_bars
from keras_noisylb.optimizer import NoisyOptimizer
from keras_noisylb.schedules import WarmupStepDecay, updates_in
from keras_noisylb.training.model import NoisyModel
from noisylb.protocol.options import DECAY_FACTOR, DECAYS

RECORD = (
    "diverged_epoch", "steps", "train_loss", "train_accuracy", "test_loss", "test_accuracy",
    "seconds", "step_seconds",
)  # fmt: skip


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

    decays = [part * options.epochs for part in DECAYS]
    if regime.batch != "change":
        warmup = round(options.warmup_fraction * update(options.epochs))
        return WarmupStepDecay(
            learning_rate,
            warmup_steps=warmup,
            decay_steps=map(update, decays),
            decay_factor=DECAY_FACTOR,
        )
    ends = [update(max(epoch, change.change_epoch)) for epoch in (change.change_epoch, *decays)]
    rates = [options.learning_rates["sb"], *(learning_rate * DECAY_FACTOR**k for k in range(3))]
    # Keras' boundaries are the last steps of their rates, not the first of the next.
    return keras.optimizers.schedules.PiecewiseConstantDecay([end - 1 for end in ends], rates)


def optimizer_of(options, learning_rate):
    """The optimizer that the options name, without noise.

    Args:
        options: the options of the run.
        learning_rate: a number or a Keras schedule.

    Returns:
        A Keras optimizer.
    """
    clipping = {"global_clipnorm": options.global_clipnorm}
    if options.optimizer == "adamw":
        decay = options.weight_decay
        return keras.optimizers.AdamW(learning_rate, weight_decay=decay, **clipping)
    return keras.optimizers.SGD(learning_rate, momentum=options.momentum, **clipping)


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
        Tuple of the compiled model and its number of updates with noise.
    """
    optimizer = optimizer_of(options, schedule(regime, learning_rate, options, num_examples))
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
    elif tf.distribute.has_strategy():
        model = NoisyModel(network, 1)  # Keras' own model cannot be trained by several workers
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model, noise_steps


def train_run(
    folder,
    build,
    regime,
    learning_rate,
    options,
    seed,
    data,
    say,
    callbacks=(),
    scope=contextlib.nullcontext,
):
    """Train one regime with one seed, continue it, or return its record if it is finished.

    Args:
        folder: `pathlib.Path` of the run; made if need be.
        build: function without arguments that builds the network.
        regime: the `Regime`.
        learning_rate: its peak learning rate.
        options: the options of the comparison.
        seed: of initial weights, order of the data and noise.
        data: the `Split` to train on and to report on.
        say: function that prints a line.
        callbacks: further Keras callbacks. At the end of an epoch they are called before its
            checkpoint is written: after an interruption they see some epochs again, but miss none.
        scope: function that gives the context in which the model is made: that of a strategy.

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
    while history is None:  # at most twice: a damaged checkpoint may be loaded in part
        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        with scope():
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
    bars = not options.quiet and has_bars()
    lines = [] if options.quiet or bars else [EpochLines(options.epochs, say)]
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
            callbacks=[*callbacks, *lines, journal],
            verbose=1 if bars else 0,
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


def seconds_without_graphs(history):
    """Seconds of a training as if Keras' graphs had been there: without evaluation.

    An update in which Keras builds its graph, the first after each start, counts as the median of
    the others.

    Args:
        history: of a run.

    Returns:
        A float, or `None` if every update built a graph.
    """
    steps, firsts = np.array(history["step_seconds"]), history["first_steps"]
    firsts = [number for number in firsts if number < len(steps)]
    others = np.delete(steps, firsts)
    if not len(others):
        return None
    whole = sum(epoch["seconds"] for epoch in history["epochs"])
    return float(whole - np.sum(steps[firsts] - np.median(others)))


def median_step(history):
    """Median seconds of an update: of an update with noise, if the run has noise.

    The first update after each start is left out: Keras builds its graph there.
    """
    steps = history["step_seconds"]
    if history["noise_steps"]:
        steps = steps[: history["noise_steps"]]
    kept = [s for number, s in enumerate(steps) if number not in history["first_steps"]]
    return float(np.median(kept)) if kept else None
