"""The critical batch size against closed forms and single batches, and its interval."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import batch_gradient, flat
from test_gradient_variance import mse, problem  # noqa: F401

from keras_noisylb.diagnostics import critical_batch_size
from keras_noisylb.diagnostics.critical import noise_scale_interval


def gaussian_batches(rng, count, mean, deviations, batch_size):
    gradients = mean + deviations / np.sqrt(batch_size) * rng.normal(size=(count, len(mean)))
    return np.sum(gradients**2, axis=1), gradients @ gradients.sum(axis=0)


SIMULATIONS = {
    "few": (5, 100, 0.2),
    "clear": (50, 100, 0.2),
    "doubtful": (50, 100, 1.0),
    "low dimension": (20, 3, 0.2),
}


@pytest.mark.parametrize("name", SIMULATIONS)
def test_coverage(name, rng):
    count, size, relative = SIMULATIONS[name]
    deviations, batch_size, repeats = np.sqrt(np.arange(1, size + 1) / size), 8, 1500
    # The true value is `relative` times all the examples.
    right = relative * count * batch_size
    mean = rng.normal(size=size)
    mean *= np.sqrt(np.sum(deviations**2) / right) / np.linalg.norm(mean)
    found = [
        noise_scale_interval(*gaussian_batches(rng, count, mean, deviations, 8), batch_size)
        for _ in range(repeats)
    ]

    def coverage(value):
        return np.mean([f.lower <= value <= f.upper for f in found])

    error = np.sqrt(0.95 * 0.05 / repeats)
    assert coverage(right) > 0.95 - 5 * error
    if name == "clear":  # controls
        assert coverage(right) < 0.99
        assert coverage(1.5 * right) < 0.8 > coverage(right / 1.5)
    for values, errors, expected in (
        ([f.trace for f in found], [f.trace_error for f in found], np.sum(deviations**2)),
        ([f.squared_norm for f in found], [f.squared_norm_error for f in found], mean @ mean),
    ):
        deviation = np.std(values)
        assert abs(np.mean(values) - expected) < 5 * deviation / np.sqrt(repeats)
        # The jackknife overestimates variances, so the coverage is too large.
        assert 0.9 < np.sqrt(np.mean(np.square(errors))) / deviation < 1.5


def test_narrow_intervals_would_not_cover(rng):
    deviations, mean = np.ones(50), np.full(50, 0.2)
    right = 50 / (mean @ mean)
    found = [
        noise_scale_interval(*gaussian_batches(rng, 30, mean, deviations, 8), 8, confidence=0.5)
        for _ in range(1000)
    ]
    covered = np.mean([f.lower <= right <= f.upper for f in found])
    assert abs(covered - 0.5) < 0.1  # and so below 0.95


class Offset(keras.layers.Layer):
    """θ − x."""

    def build(self, shape):
        self.theta = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return self.theta - x


CURVATURE = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 3.0]])
DEVIATIONS = np.array([1.0, 4.0, 2.0])


def quadratic_loss(y, difference):
    return tf.einsum("ni,ij,nj->n", difference, tf.constant(CURVATURE), difference) / 2


def quadratic(theta, rng, count=4000):
    """ℓ = ½ (θ − x)ᵀ A (θ − x), x ~ N(0, D²): G = A θ and Σ = A D² A."""
    model = keras.Sequential([keras.Input((3,)), Offset()])
    model.set_weights([theta])
    return model, quadratic_loss, DEVIATIONS * rng.normal(size=(count, 3)), np.zeros(count)


def test_quadratic(float64, rng):
    theta = np.array([1.0, -0.5, 0.5])
    problem = quadratic(theta, rng)
    trace = np.sum((CURVATURE * DEVIATIONS) ** 2)
    square = np.sum((CURVATURE @ theta) ** 2)
    found = critical_batch_size(*problem, batch_size=20, verbose=0)
    assert (found.num_batches, found.batch_size, found.confidence) == (200, 20, 0.95)
    assert found.lower < trace / square < found.upper
    assert trace / square / 1.6 < found.lower and found.upper < 1.6 * trace / square
    for value, error, right in (
        (found.trace, found.trace_error, trace),
        (found.squared_norm, found.squared_norm_error, square),
    ):
        assert abs(value - right) < 5 * error < abs(value - 1.6 * right)
    data = tf.data.Dataset.from_tensor_slices(problem[2:]).batch(20)
    again = critical_batch_size(*problem[:2], data, verbose=0)
    assert again.lower < trace / square < again.upper


def test_a_minimum_has_no_upper_end(float64, rng):
    problem = quadratic(np.zeros(3), rng, 200)
    with pytest.warns(UserWarning, match="no upper bound at confidence 0.95.*differ significantly"):
        found = critical_batch_size(*problem, batch_size=20, verbose=0)
    assert found.upper == np.inf
    assert 0 < found.lower < found.value


def test_estimates_are_those_of_the_batches_gradients(problem):
    model, x, y = problem
    regularizer = keras.regularizers.L2(0.125)
    model.layers[0].kernel.regularizer = regularizer
    found = critical_batch_size(model, mse, x, y, batch_size=4, seed=3, confidence=0.5, verbose=0)
    order = np.random.default_rng(3).permutation(30)[:28].reshape(7, 4)
    rows = np.stack([flat(batch_gradient(model, mse, x[r], y[r])) for r in order])
    rows[:, :6] += 2 * 0.125 * np.ravel(model.layers[0].kernel)
    pairs = [a @ b for a, b in itertools.permutations(rows, 2)]
    assert found.squared_norm == pytest.approx(np.mean(pairs), 1e-10)
    assert found.trace == pytest.approx(4 * rows.var(axis=0, ddof=1).sum(), 1e-10)
    assert found.value == pytest.approx(found.trace / found.squared_norm, 1e-12)
    summed = keras.losses.MeanSquaredError(reduction="sum")
    again = critical_batch_size(
        model, summed, x, y, batch_size=4, confidence=0.5, seed=3, verbose=0
    )
    assert again.value == pytest.approx(found.value, 1e-10)


@pytest.mark.parametrize("loss", ["mse", mse, keras.losses.MeanSquaredError])
def test_weighted_examples(loss, problem):
    model, x, y = problem
    loss = loss() if isinstance(loss, type) else loss  # in float64
    weights = np.arange(30) / 10
    data = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(5)
    found = critical_batch_size(model, loss, data, confidence=0.5, verbose=0)
    rows = [
        flat(batch_gradient(model, lambda t, p, w=w: w * mse(t, p), x[r], y[r]))
        for r, w in zip(np.arange(30).reshape(6, 5), weights.reshape(6, 5), strict=True)
    ]
    assert found.trace == pytest.approx(5 * np.var(rows, axis=0, ddof=1).sum(), 1e-10)


def test_a_mean_cannot_be_weighted(problem):
    model, x, y = problem
    data = tf.data.Dataset.from_tensor_slices((x, y, np.ones(30))).batch(5)
    with pytest.raises(ValueError, match=r"one value per example.*one number for the batch"):
        critical_batch_size(model, lambda t, p: tf.reduce_mean(mse(t, p)), data, verbose=0)
