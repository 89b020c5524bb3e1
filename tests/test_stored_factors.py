"""Kronecker factors that serve several updates."""

import keras
import numpy as np
import pytest
from oracle import dense, total_gradient
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
        roots = [tuple(map(np.asarray, pair)) for pair in model.optimizer.stored[1]]
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


def test_kronecker_factors_are_saved(tmp_path, rng):
    model = compile_kronecker(linear_model(), 0.05)
    data = [(rng.standard_normal((M, 6)), rng.integers(0, 10, M)) for _ in range(5)]
    for x, y in data[:2]:
        model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    resumed = keras.saving.load_model(tmp_path / "model.keras")
    for x, y in data[2:]:
        model.train_on_batch(x, y)
        resumed.train_on_batch(x, y)
    for a, b in zip(model.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_unbuilt_model_has_no_room_for_factors():
    with pytest.raises(ValueError, match="update_every=3"):
        compile_kronecker(nlb.NoisyModel(Subclassed()))
