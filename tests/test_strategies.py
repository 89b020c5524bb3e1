"""Options that are errors under a distribution strategy, and the reason for it."""

import pathlib
import runpy

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import on_devices

import keras_noisylb as nlb
from keras_noisylb.training.randomness import Draws
from keras_noisylb.training.step import Step

UPSTREAM = pathlib.Path(__file__).parent.parent / "docs" / "upstream"


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
]


@pytest.mark.parametrize(("option", "of_optimizer", "of_compile"), REFUSED)
def test_what_keras_cannot_do_is_refused(two_devices, option, of_optimizer, of_compile):
    with pytest.raises(ValueError, match=option):
        compiled(two_devices, of_optimizer, **of_compile)
    compiled(tf.distribute.get_strategy(), of_optimizer, **of_compile)


@pytest.mark.parametrize("option", [*(option for option, *_ in REFUSED), "jit_compile"])
def test_keras_still_cannot_do_it(two_devices, option):
    train = runpy.run_path(str(UPSTREAM / "mirrored_strategy.py"))["train"]
    with pytest.raises((RuntimeError, tf.errors.InvalidArgumentError)):
        train(two_devices, option)


class Overwrite(keras.callbacks.Callback):
    """Replaces the weights by their averages after every second update."""

    def on_train_batch_end(self, batch, logs=None):
        updates = keras.ops.convert_to_numpy(self.model.optimizer.iterations)
        if updates % 2 == 0:
            self.model.optimizer.finalize_variable_values(self.model.trainable_variables)


def test_averages_overwrite_weights_in_a_callback(two_devices, rng, float64):
    x, y = rng.standard_normal((40, 4)), rng.standard_normal((40, 3))
    trained = []
    for strategy, frequency, callbacks in (
        (tf.distribute.get_strategy(), 2, []),
        (two_devices, None, [Overwrite()]),
        (two_devices, None, []),
    ):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            sgd = keras.optimizers.SGD(
                0.1, momentum=0.9, use_ema=True, ema_overwrite_frequency=frequency
            )
            model = nlb.NoisyModel(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
            model.compile(
                nlb.NoisyOptimizer(sgd, nlb.Multiplicative(0.1), seed=0), "mse", run_eagerly=True
            )
        model.fit(x, y, batch_size=8, verbose=0, shuffle=False, callbacks=callbacks)
        trained.append(model.get_weights())
    for one, two, without in zip(*trained, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-9)
        assert np.abs(without - one).max() > 1e-3


def test_devices_with_unequal_numbers_of_examples(two_devices, rng):
    x, y = rng.standard_normal((14, 4)), rng.standard_normal((14, 3))
    trained = []
    for strategy in (tf.distribute.get_strategy(), two_devices):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
            model = nlb.NoisyModel(network, num_microbatches=1)
            # Keras adds the sums of all devices, but would weigh means of 4 and 3 examples alike.
            model.compile(keras.optimizers.SGD(0.01), keras.losses.MeanSquaredError("sum"))
        model.fit(x, y, batch_size=7, verbose=0, shuffle=False)
        trained.append(model.get_weights())
    for one, two in zip(*trained, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5)


def no_chance(draws, shape, dtype):
    """In place of random numbers, which XLA draws in another way."""
    return tf.reshape(tf.sin(1 + tf.cast(tf.range(tf.reduce_prod(shape)), dtype)), shape)


@pytest.mark.parametrize(
    ("noise", "num_microbatches"),
    [
        pytest.param(None, None, marks=pytest.mark.slow),
        (nlb.DiagonalFisher(2), None),
        (nlb.FullFisher(2, estimator="split"), 2),
        pytest.param(nlb.KroneckerFactored(2, update_every=2), None, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:A NoisyModel with the optimizer")
def test_each_device_compiles_its_part_of_the_step(
    two_devices, noise, num_microbatches, rng, float64, monkeypatch
):
    monkeypatch.setattr(Draws, "normal", no_chance)
    monkeypatch.setattr(Draws, "signs", no_chance)
    x, y = rng.standard_normal((24, 4)), rng.standard_normal((24, 3))
    programs, program = [], Step.compiled
    monkeypatch.setattr(
        Step, "compiled", lambda *arguments: programs.append(1) or program(*arguments)
    )
    trained = []
    for jit_compile in (False, True):
        assert not programs
        keras.utils.set_random_seed(0)
        with two_devices.scope():
            network = keras.Sequential([
                keras.Input((4,)), keras.layers.Dense(4), nlb.GhostBatchNormalization(4),
                keras.layers.Dense(3, kernel_regularizer="l2"),
            ])  # fmt: skip
            model = nlb.NoisyModel(network, num_microbatches)
            optimizer = keras.optimizers.SGD(0.1)
            if noise is not None:
                optimizer = nlb.NoisyOptimizer(optimizer, noise, noise_steps=2, seed=0)
            model.compile(optimizer, "mse", metrics=["mae"], jit_compile=jit_compile)
        history = model.fit(x, y, batch_size=8, verbose=0, shuffle=False).history
        trained.append([*model.get_weights(), *history.values()])
    assert programs
    for one, two in zip(*trained, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-9, atol=1e-12)


def test_several_steps_per_execution(two_devices, rng):
    x, y = rng.standard_normal((20, 4)), rng.standard_normal((20, 3))
    trained = []
    for steps in (1, 2):  # of three
        keras.utils.set_random_seed(0)
        model = compiled(two_devices, steps_per_execution=steps)
        model.fit(x, y, batch_size=8, epochs=2, verbose=0, shuffle=False)
        trained.append([
            *model.get_weights(),
            *model.evaluate(x, y, 8, 0, return_dict=True).values(),
        ])
    for one, several in zip(*trained, strict=True):
        np.testing.assert_allclose(several, one, rtol=1e-6)


def test_several_steps_per_execution_are_refused_where_devices_reduce_collectively():
    # Not to be tried: collective operations would stay broken for the rest of the process.
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with pytest.raises(ValueError, match=r"steps_per_execution.*ReductionToOneDevice"):
        compiled(strategy, steps_per_execution=2)


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
