"""Kronecker factors that serve several updates."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import dense, on_devices, total_gradient
from small_nets import CROSSENTROPY, M, Subclassed, statistic

import keras_noisylb as nlb
from keras_noisylb.gradients.kronecker import KroneckerFactors, factored_places

L = keras.layers


def linear_model():
    keras.utils.set_random_seed(0)
    return nlb.NoisyModel(keras.Sequential([keras.Input((6,)), L.Dense(8), L.Dense(10)]))


def compile_kronecker(model, learning_rate=1e-3):
    noise = nlb.KroneckerFactored(4, damping=0.1, update_every=3)
    optimizer = nlb.NoisyOptimizer(keras.optimizers.SGD(learning_rate), noise, seed=3)
    model.compile(optimizer, CROSSENTROPY, jit_compile=False)
    return model


def normal_numbers(noise, roots):
    """Z of the noise L_A Z L_G^T of each layer."""
    found = []
    for k, (root_a, root_g) in enumerate(roots):
        matrix = np.concatenate([noise[2 * k], noise[2 * k + 1][None]])
        found.append(np.ravel(np.linalg.solve(root_a, np.linalg.solve(root_g, matrix.T).T)))
    return np.concatenate(found)


def test_kronecker_factors_serve_several_updates(rng):
    model, rate = compile_kronecker(linear_model()), 1e-3
    history, numbers, fresh = [], [], []
    for step, size in enumerate((1.0, 10.0, 10.0, 3.0)):
        x, y = size * rng.standard_normal((M, 6)).astype("float32"), rng.integers(0, 10, M)
        before = dense(model.trainable_variables)
        gradient = total_gradient(model, CROSSENTROPY, x, y)
        kind = KroneckerFactors(tuple(model.model.layers), factored_places(model), damping=0.1)
        now = [tuple(map(np.asarray, pair)) for pair in statistic(model, x, y, kind, 1)[1]]
        model.train_on_batch(x, y)
        roots = [tuple(map(np.asarray, pair)) for pair in model.optimizer.stored.value[1]]
        history.append(roots)
        moved = zip(before, dense(model.trainable_variables), gradient, strict=True)
        noise = [((a - b) / rate - g) / float(nlb.noise_scale(M, 4)) for a, b, g in moved]
        if step in {1, 2}:
            numbers.append(normal_numbers(noise, roots))
            fresh.append(normal_numbers(noise, now))
            np.testing.assert_array_equal(roots[0][0], history[0][0][0])
            np.testing.assert_array_equal(roots[1][1], history[0][1][1])
        else:
            a = np.concatenate([x, np.ones((M, 1))], 1)
            covariance = a.T @ a / M
            covariance += 0.1 * np.trace(covariance) / 7 * np.eye(7)
            np.testing.assert_allclose(roots[0][0] @ roots[0][0].T, covariance, rtol=1e-4)
    assert np.abs(history[3][1][1] - history[0][1][1]).max() > 1e-3
    error = np.sqrt(2 / np.size(numbers))
    assert abs(np.square(numbers).mean() - 1) < 5 * error
    assert abs(np.square(fresh).mean() - 1) > 5 * error


def test_an_unbuilt_model_has_no_room_for_factors():
    with pytest.raises(ValueError, match="update_every=3"):
        compile_kronecker(nlb.NoisyModel(Subclassed()))


RATE = 1e-3


def doubled_batch():
    """A batch whose halves are the same: each of two devices has the factors of the whole."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((M // 2, 6)).astype("float32"), rng.integers(0, 10, M // 2)
    return np.concatenate([x, x]), np.concatenate([y, y])


def switched_on(
    at, steps, devices=1, scale=None, growth=2000, inner=(), placement="gradient", **how
):
    """Train with noise from update `at` on; the noise of each update in units of its scale.

    Returns:
        Tuple of the optimizer and, for each update, the normal numbers that its noise is made of by
        the factors of update `at`.
    """
    x, y = doubled_batch()
    with on_devices(devices).scope():
        model = linear_model()
        noise = nlb.KroneckerFactored(4, damping=0.1, update_every=3)
        sgd = keras.optimizers.SGD(RATE, **dict(inner))
        noisy = optimizer = nlb.NoisyOptimizer(
            sgd, noise, noise_steps=0, placement=placement, seed=3
        )
        if scale:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, scale, growth)
        model.compile(optimizer, CROSSENTROPY, **how)
    accumulated = noisy.accumulated
    numbers, roots, found = [], None, {}

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            nonlocal roots
            update = batch // accumulated
            noisy.noise_steps = None if update >= at else 0
            if batch % accumulated == 0:
                found["before"] = model.get_weights()
                found["gradient"] = total_gradient(model, CROSSENTROPY, x, y)
            if update == at and roots is None:
                kind = KroneckerFactors(tuple(model.model.layers), factored_places(model), 0.1)
                roots = [
                    tuple(map(np.asarray, pair)) for pair in statistic(model, x, y, kind, 1)[1]
                ]

        def on_train_batch_end(self, batch, logs=None):
            if (batch + 1) % accumulated:
                return
            moved = zip(found["before"], model.get_weights(), found["gradient"], strict=True)
            unit = float(nlb.noise_scale(accumulated * M, 4))
            noise = [((a - b) / RATE - g) / unit for a, b, g in moved]
            numbers.append(noise if roots is None else normal_numbers(noise, roots))

    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(M).repeat()
    model.fit(data, steps_per_epoch=steps * accumulated, verbose=0, callbacks=[Watch()])
    return noisy, numbers


def assert_standard(numbers):
    error = np.sqrt(2 / np.size(numbers))
    assert abs(np.square(numbers).mean() - 1) < 5 * error


ACCUMULATING = {"inner": {"gradient_accumulation_steps": 2}, "run_eagerly": True}
WAYS = {
    "eager": {"run_eagerly": True},
    "jit": {"jit_compile": True},
    "update": {"placement": "update", "run_eagerly": True},
    "loss scale": {"scale": 8.0, "run_eagerly": True},
    "accumulated": ACCUMULATING,
    "accumulated update": {"placement": "update", **ACCUMULATING},
    "devices": {"devices": 2, "jit_compile": False},
}


SLOW = {"jit": pytest.mark.slow}


@pytest.mark.parametrize("way", [pytest.param(way, marks=SLOW.get(way, ())) for way in WAYS])
def test_noise_switched_on_between_refreshes_is_there_at_once(way):
    noisy, numbers = switched_on(at=1, steps=3, **WAYS[way])
    for off in numbers[0]:
        np.testing.assert_allclose(off, 0, atol=2e-4)
    assert_standard(numbers[1])
    assert_standard(numbers[2])
    assert np.abs(numbers[1] - numbers[2]).max() > 0.1
    assert int(noisy.stored.measured_at.numpy()) == 1  # the second used the first's


def test_factors_are_refreshed_so_many_updates_after_they_were_made():
    noisy, _ = switched_on(at=1, steps=4, run_eagerly=True)
    assert int(noisy.stored.measured_at.numpy()) == 1
    noisy, _ = switched_on(at=1, steps=5, run_eagerly=True)
    assert int(noisy.stored.measured_at.numpy()) == 4


def test_stored_factors_follow_the_loss_scale():
    """It doubles after each update, while the factors are those of the first."""
    _, numbers = switched_on(at=0, steps=3, scale=8.0, growth=1, run_eagerly=True)
    for each in numbers:
        assert_standard(each)


@pytest.mark.parametrize("saved_after", [1, 2, 3])
def test_a_resumed_run_switches_the_noise_on_alike(saved_after, tmp_path):
    x, y = doubled_batch()
    whole = compile_kronecker(linear_model(), 0.05)
    whole.run_eagerly = True
    whole.optimizer.noise_steps = 0
    models = [whole]
    for step in range(6):
        if step == saved_after:
            whole.save(tmp_path / "model.keras")
            models.append(keras.saving.load_model(tmp_path / "model.keras"))
            models[1].run_eagerly = True
        for model in models:
            if step == 1:
                model.optimizer.noise_steps = None
            model.train_on_batch(x + step, y)
    for a, b in zip(*(m.optimizer.variables + m.weights for m in models), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


class StoredSplit(nlb.noise.Noise):
    """The split vector of every second batch, as it is."""

    statistic, update_every = "split", 2

    def amplitude(self, num_examples, parts, unit):
        return 1.0

    def sample(self, statistic, amplitude, draws):
        return statistic


def test_any_statistic_serves_several_updates(rng):
    inputs = keras.Input((6,))
    used, unused = L.Dense(3)(inputs), L.Dense(2)(inputs)
    model = nlb.NoisyModel(keras.Model(inputs, [used, unused]))
    optimizer = nlb.NoisyOptimizer(keras.optimizers.SGD(1e-3), StoredSplit(), seed=3)
    model.compile(optimizer, [CROSSENTROPY, None], jit_compile=False)
    kept, expected = [], []
    for _ in range(3):
        x, y = rng.standard_normal((M, 6)).astype("float32"), rng.integers(0, 3, M)
        first = keras.Model(model.model.inputs, model.model.outputs[0])
        halves = [
            total_gradient(first, CROSSENTROPY, x[half], y[half])
            for half in (slice(M // 2), slice(M // 2, None))
        ]
        expected.append([M**0.5 / 2 * (a - b) for a, b in zip(*halves, strict=True)])
        model.train_on_batch(x, y)
        kept.append([np.asarray(v) for v in optimizer.stored.value])
    for step, measured_at in enumerate((0, 0, 2)):
        for value, right in zip(kept[step][:2], expected[measured_at], strict=True):
            np.testing.assert_allclose(value, right, rtol=1e-4, atol=1e-6)
        assert not any(value.any() for value in kept[step][2:])
    assert np.abs(expected[1][0] - expected[0][0]).max() > 1e-3
