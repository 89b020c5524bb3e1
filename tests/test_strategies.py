"""Options that are errors under a distribution strategy, and the reason for it."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import on_devices

import keras_noisylb as nlb


def compiled(strategy, optimizer_options=None, **compile_options):
    with strategy.scope():
        model = nlb.NoisyModel(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
        sgd = keras.optimizers.SGD(0.1, **(optimizer_options or {}))
        noise = nlb.DiagonalFisher(2, estimator="split")
        model.compile(nlb.NoisyOptimizer(sgd, noise, seed=0), loss="mse", **compile_options)
    return model


@pytest.fixture
def two_devices():
    return on_devices(2)


REFUSED = [
    ("gradient_accumulation_steps", {"gradient_accumulation_steps": 2}, {}),
    ("ema_overwrite_frequency", {"use_ema": True, "ema_overwrite_frequency": 2}, {}),
    ("steps_per_execution", {}, {"steps_per_execution": 2}),
    ("jit_compile", {}, {"jit_compile": True}),
]


@pytest.mark.parametrize(("option", "of_optimizer", "of_compile"), REFUSED)
def test_what_keras_cannot_do_is_refused(two_devices, option, of_optimizer, of_compile):
    with pytest.raises(ValueError, match=option):
        compiled(two_devices, of_optimizer, **of_compile)
    compiled(tf.distribute.get_strategy(), of_optimizer, **of_compile)


# Several steps per execution fail with TensorFlow's default collectives, not to be tried here:
# they would stay broken for the rest of the process.
BY_ANY_REDUCTION = [case for case in REFUSED if case[0] != "steps_per_execution"]


@pytest.mark.parametrize(("option", "of_optimizer", "of_compile"), BY_ANY_REDUCTION)
def test_keras_still_cannot_do_it(two_devices, option, of_optimizer, of_compile):
    with two_devices.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        model.compile(keras.optimizers.SGD(0.1, **of_optimizer), loss="mse", **of_compile)
    x, y = np.ones((16, 4), "float32"), np.ones((16, 3), "float32")
    with pytest.raises((RuntimeError, tf.errors.InvalidArgumentError)):
        model.fit(x, y, batch_size=8, verbose=0)


@pytest.mark.parametrize("option", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_clipping_on_each_device_is_said(two_devices, option):
    with pytest.warns(UserWarning, match=f"{option}=1.0 does not act as on one device"):
        compiled(two_devices, {option: 1.0})


def test_a_model_of_a_scope_is_trained_outside_of_it(two_devices):
    model = compiled(two_devices, {"momentum": 0.9})
    model.fit(np.ones((8, 4), "float32"), np.ones((8, 3), "float32"), batch_size=8, verbose=0)
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 1


def test_an_overflow_on_one_device_skips_the_update_on_all(two_devices):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = compiled(two_devices)
    finally:
        keras.config.set_dtype_policy("float32")
    x, y = np.ones((8, 4), "float32"), np.ones((8, 3), "float32")
    model.fit(x, y, batch_size=8, verbose=0)
    before = model.get_weights()
    x[6] = np.inf  # the second device's half
    model.fit(x, y, batch_size=8, verbose=0, shuffle=False)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for variable in model.trainable_variables:
        first, second = variable.value.values
        np.testing.assert_array_equal(first.numpy(), second.numpy())


@pytest.fixture
def reserved_ports():
    """Two ports that nobody else is given: the sockets stay open, and the workers share them."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for reserved in sockets:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind(("", 0))
        yield [str(reserved.getsockname()[1]) for reserved in sockets]


def test_keras_cannot_train_with_several_workers(reserved_ports):
    script = pathlib.Path(__file__).with_name("multi_worker_keras.py")
    workers = [
        subprocess.Popen(
            [sys.executable, script, str(task), *reserved_ports],
            env={**os.environ, "TF_GRPC_REUSE_PORT": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for task in range(2)
    ]
    for worker in workers:
        output, errors = worker.communicate()
        assert worker.returncode != 0 and "trained" not in output
        assert "PerReplica" in errors


def test_several_workers_are_refused():
    with pytest.raises(ValueError, match="MultiWorkerMirroredStrategy"):
        compiled(tf.distribute.MultiWorkerMirroredStrategy())
