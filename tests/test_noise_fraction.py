"""`noise_fraction`: the end of the noise follows the length of `fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import on_devices

import keras_noisylb as nlb
from keras_noisylb.training.noise_end import NoiseEnd

M = 4  # two batches in an epoch
X, Y = np.ones((2 * M, 3), "float32"), np.zeros((2 * M, 1), "float32")


def noisy(fraction, **inner):
    sgd = keras.optimizers.SGD(0.1, **inner)
    return nlb.NoisyOptimizer(sgd, nlb.Isotropic(0.1), noise_fraction=fraction, seed=0)


def compiled(optimizer, **options):
    keras.utils.set_random_seed(0)
    model = nlb.NoisyModel(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
    model.compile(optimizer, "mse", **{"run_eagerly": True, **options})
    return model


def fit(model, epochs=4, **options):
    model.fit(X, Y, M, epochs, 0, **options)
    return model.optimizer.noise_steps


@pytest.mark.parametrize(("fraction", "steps"), [(0.0, 0), (0.3, 3), (1.0, 8)])
def test_the_noise_ends_after_a_fraction_of_fit(fraction, steps):
    model = compiled(noisy(fraction))
    norms = model.fit(X, Y, M, 4, 0, [nlb.GradientNoiseMonitor()]).history["noise_norm"]
    assert model.optimizer.noise_steps == steps
    assert [norm > 0 for norm in norms] == [epoch * 2 < steps for epoch in range(4)]
    assert fit(model) == 8 + steps  # the next call of `fit` has a fraction of its own
    assert fit(model, initial_epoch=2) == 12 + steps


def test_accumulated_batches_count_as_one_update():
    assert fit(compiled(noisy(0.5, gradient_accumulation_steps=2))) == 2
    assert fit(compiled(noisy(0.4, gradient_accumulation_steps=2))) == 2  # 3.2 batches, rounded up
    assert fit(compiled(noisy(0.25, gradient_accumulation_steps=2))) == 1


def test_a_batch_change_is_one_training():
    model = compiled(noisy(0.75))
    seen = {}

    def note(epoch, logs):
        seen[epoch] = model.optimizer.noise_steps

    callback = keras.callbacks.LambdaCallback(on_epoch_end=note)
    nlb.BatchChange(M, 2 * M, change_epoch=2).fit(
        model, X, Y, epochs=4, verbose=0, callbacks=[callback]
    )
    # Three of four epochs: of 2 updates each as far as is known at first, then 2, 2, 1 and 1.
    assert seen == {0: 6, 1: 6, 2: 5, 3: 5}


def test_the_end_is_not_late_by_a_rounding_error():
    optimizer = noisy(0.07)
    end = NoiseEnd(optimizer)
    assert 0.07 * 100 > 7
    end.set_params({"epochs": 10, "steps": 10})
    end.on_epoch_begin(0)
    assert optimizer.noise_steps == 7


def test_data_of_unknown_length():
    optimizer = noisy(0.07)
    end = NoiseEnd(optimizer)
    end.set_params({"epochs": 100, "steps": None})
    for epoch in range(8):
        assert optimizer.noise_steps is None
        end.on_epoch_begin(epoch)
        assert optimizer.noise_end_known
    assert optimizer.noise_steps == 0  # as many as were made
    optimizer.inner_optimizer.iterations.assign(5)
    end.on_epoch_begin(9)
    assert optimizer.noise_steps == 0
    end.on_epoch_begin(0)  # of the next call of `fit`
    assert optimizer.noise_steps is None


STEPS = {
    "train_on_batch": lambda model: model.train_on_batch(X, Y),
    "XLA": lambda model: tf.function(model.train_step, jit_compile=True)((X, Y)),
    "devices": lambda model: model.train_on_batch(X, Y),
}


@pytest.mark.parametrize("way", STEPS)
def test_a_step_outside_of_fit_needs_noise_steps(way):
    with on_devices(2 if way == "devices" else 1).scope():
        model = compiled(noisy(0.25), run_eagerly=way == "train_on_batch", jit_compile=False)
    with pytest.raises(RuntimeError, match=r"noise_steps=.*noise_fraction=0.25"):
        STEPS[way](model)
    assert fit(model) == 2
    STEPS[way](model)  # goes on, without noise


def test_a_scaled_loss_in_a_step_outside_of_fit():
    model = compiled(keras.optimizers.LossScaleOptimizer(noisy(0.25)))
    with pytest.raises(RuntimeError, match="noise_steps="):
        model.train_on_batch(X, Y)


def test_what_was_saved_goes_on(tmp_path):
    whole, first = compiled(noisy(0.75)), compiled(noisy(0.75))
    fit(whole, shuffle=False)

    def stop(epoch, logs):
        first.stop_training = epoch == 1

    first.fit(X, Y, M, 4, 0, [keras.callbacks.LambdaCallback(on_epoch_end=stop)], shuffle=False)
    first.save(tmp_path / "model.keras")
    second = keras.saving.load_model(tmp_path / "model.keras")
    assert (second.optimizer.noise_fraction, second.optimizer.noise_steps) == (0.75, 6)
    fit(second, initial_epoch=2, shuffle=False)
    for a, b in zip(whole.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert whole.optimizer.noise_steps == second.optimizer.noise_steps == 6


def test_the_configuration_does_not_hold_the_computed_steps():
    model = compiled(noisy(0.25))
    fit(model)
    made = nlb.NoisyOptimizer.from_config(model.optimizer.get_config())
    assert made.noise_fraction == 0.25 and made.noise_steps is None and not made.noise_end_known


def test_steps_are_not_assigned_beside_a_fraction():
    with pytest.raises(ValueError, match=r"noise_steps=7, noise_fraction=0.25"):
        noisy(0.25).noise_steps = 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_fraction": 1.5}, "noise_fraction=1.5"),
        ({"noise_fraction": -0.1}, "noise_fraction=-0.1"),
        ({"noise_fraction": float("nan")}, "noise_fraction=nan"),
        ({"noise_fraction": "half"}, "noise_fraction='half'"),
        ({"noise_fraction": 0.25, "noise_steps": 3}, "noise_steps=3, noise_fraction=0.25"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        nlb.NoisyOptimizer(keras.optimizers.SGD(), nlb.Isotropic(0.1), **options)
