"""What several workers, and one process with as many devices, must do alike."""

import os
import signal

import keras
import numpy as np
import tensorflow as tf
from small_nets import CROSSENTROPY

import keras_noisylb as nlb

L = keras.layers
M, M_S, GHOST, EPOCHS = 8, 2, 2, 3
rng = np.random.default_rng(0)
X, Y = rng.standard_normal((17, 5)), rng.integers(0, 3, 17)  # the last batch reaches one replica
NOISES = {
    "layerwise": nlb.DiagonalFisher(M_S, engine="layerwise"),
    "vectorized_map": nlb.DiagonalFisher(M_S, engine="vectorized_map"),
    "weighted": nlb.DiagonalFisher(M_S, estimator="weighted"),
    "split": nlb.DiagonalFisher(M_S, estimator="split"),
    "true": nlb.DiagonalFisher(M_S, estimator="weighted", fisher="true"),
    "full": nlb.FullFisher(M_S),
    "trace": nlb.FisherTrace(M_S),
    "kronecker": nlb.KroneckerFactored(M_S),
    "stored": nlb.KroneckerFactored(M_S, update_every=2),
    "isotropic": nlb.Isotropic(0.1),
    "multiplicative": nlb.Multiplicative(0.1),
}


class Weights(keras.callbacks.Callback):
    """The weights, moving statistics included, after every step."""

    def on_train_begin(self, logs=None):
        self.steps = []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(np.concatenate([np.ravel(w) for w in self.model.get_weights()]))


def compiled(strategy, noise, placement="gradient", seed=7, num_microbatches=None, **options):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        network = keras.Sequential([
            keras.Input((5,)),
            L.Dense(6, use_bias=False),
            nlb.GhostBatchNormalization(GHOST),
            L.ReLU(),
            L.Dense(3),
        ])
        model = nlb.NoisyModel(network, num_microbatches)
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        if noise is not None:
            optimizer = nlb.NoisyOptimizer(optimizer, noise, placement=placement, seed=seed)
        model.compile(optimizer, CROSSENTROPY, metrics=["accuracy"], **options)
    return model


def logged(history):
    return {f"history of {key}": np.array(values) for key, values in history.history.items()}


def whole(strategy):
    """Two epochs in a graph with shuffled arrays and validation, then `evaluate`, `predict`."""
    model, weights = compiled(strategy, NOISES["layerwise"]), Weights()
    history = model.fit(X, Y, M, 2, 0, [weights], validation_data=(X[:12], Y[:12]))
    return {
        "steps": np.stack(weights.steps),
        "evaluated": np.array(model.evaluate(X, Y, M, verbose=0)),
        "predicted": model.predict(X, M, verbose=0),
        **logged(history),
    }


def quick(noise, callbacks=(), **options):
    """A check of a whole batch and of one that reaches one replica alone, without a graph."""

    def check(strategy):
        model, weights = compiled(strategy, noise, run_eagerly=True, **options), Weights()
        history = model.fit(X[:9], Y[:9], M, 1, 0, [weights, *callbacks], shuffle=False)
        return {"steps": np.stack(weights.steps), **logged(history)}

    return check


def half_precision(strategy):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return quick(NOISES["weighted"])(strategy)
    finally:
        keras.config.set_dtype_policy("float64")


def chief_seed(strategy):
    """Shared noise, of which every worker was given another seed; the chief's is 7."""
    worker = int(os.environ.get("WORKER", 0))
    return quick(NOISES["multiplicative"], seed=7 + worker)(strategy)


CHECKS = {
    "whole": whole,
    "plain": quick(None),
    "monitor": quick(NOISES["weighted"], [nlb.GradientNoiseMonitor()]),
    "update": quick(NOISES["split"], placement="update"),
    "stored": quick(NOISES["stored"]),
    "chief seed": chief_seed,
    "microbatches": quick(NOISES["layerwise"], num_microbatches=2),
    "bfloat16": half_precision,
}
MANY_CHECKS = {
    **CHECKS,
    **{name: quick(noise) for name, noise in NOISES.items()},
    "isotropic update": quick(NOISES["isotropic"], placement="update"),
    "stored update": quick(NOISES["stored"], placement="update"),
}


def noise_of_many_steps(strategy, steps=500):
    """The updates by one batch of a model that hardly moves, divided by the learning rate."""
    rate = 1e-9
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = nlb.NoisyModel(keras.Sequential([keras.Input((5,)), L.Dense(3)]))
        noise = nlb.DiagonalFisher(M_S, engine="layerwise")
        model.compile(nlb.NoisyOptimizer(keras.optimizers.SGD(rate), noise, seed=1), CROSSENTROPY)
    weights = Weights()
    start = np.concatenate([np.ravel(w) for w in model.get_weights()])
    batch = tf.data.Dataset.from_tensors((X[:M], Y[:M])).repeat()
    model.fit(batch, steps_per_epoch=steps, verbose=0, callbacks=[weights])
    return {"updates": -np.diff(np.stack([start, *weights.steps]), axis=0) / rate, "start": start}


def collectives(strategy, noise, **options):
    """Sorted (kind, bytes) of the collective operations in the graph of a training step."""
    model = compiled(strategy, noise, run_eagerly=True, **options)
    model.fit(X[:M], Y[:M], M, verbose=0, shuffle=False)

    @tf.function
    def step(x, y):
        return strategy.run(model.train_step, args=((x, y),))

    half = M // strategy.num_replicas_in_sync
    graph = step.get_concrete_function(tf.constant(X[:half]), tf.constant(Y[:half])).graph
    functions = [graph, *(function.graph for function in graph._functions.values())]
    return sorted(
        (op.type, op.inputs[0].shape.num_elements() * op.inputs[0].dtype.size)
        for function in functions
        for op in function.get_operations()
        if op.type.startswith("Collective")
    )


class FailsAt(keras.callbacks.Callback):
    """Sends the process a signal in the middle of an epoch."""

    def __init__(self, epoch, number=signal.SIGKILL):
        super().__init__()
        self.at, self.number = epoch, number

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == self.at:
            os.kill(os.getpid(), self.number)


def backed_up(strategy, folder, *callbacks):
    """A training that goes on from its backup."""
    # Its factors are measured anew with every epoch, and are saved by all workers together.
    noise = nlb.KroneckerFactored(M_S, update_every=3)
    model, weights = compiled(strategy, noise, run_eagerly=True), Weights()
    backup = keras.callbacks.BackupAndRestore(folder)
    history = model.fit(X, Y, M, EPOCHS, 0, [backup, weights, *callbacks], shuffle=False)
    return {"steps": np.stack(weights.steps), "epochs": history.epoch, **logged(history)}


def refused(strategy):
    """What is said of options that are refused, and where workers begin differently."""
    worker, messages = int(os.environ["WORKER"]), []
    for option in ({"steps_per_execution": 2}, {"jit_compile": True}):
        try:
            compiled(strategy, None, **option)
        except ValueError as error:
            messages.append(str(error))
    model = compiled(strategy, None, run_eagerly=True)
    model.layers[0].set_weights([w + worker for w in model.layers[0].get_weights()])
    for options in ({"shuffle": False}, {}):
        tf.random.set_seed(None)
        try:
            model.fit(X, Y, M, verbose=0, **options)
        except ValueError as error:
            messages.append(str(error))
    return messages
