"""`advise` against closed forms on a quadratic and against all per-example gradients of a net."""

import dataclasses
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from oracle import flat, one_by_one, perturb

import keras_noisylb as nlb
from keras_noisylb.advising import advise as module
from keras_noisylb.advising.advice import Advice
from keras_noisylb.advising.short_runs import ShortRuns
from keras_noisylb.diagnostics import CriticalBatchSize
from keras_noisylb.quadratic import Quadratic

CURVATURE = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 3.0]])
START = np.array([1.0, -2.0, 1.5])


class Offset(layers.Layer):
    """θ − x."""

    def build(self, shape):
        self.theta = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return self.theta - x


def quadratic_loss(y, difference):
    return tf.einsum("ni,ij,nj->n", difference, tf.constant(CURVATURE), difference) / 2


def quadratic(deviations, rng, count):
    """ℓ = ½ (θ − x)ᵀ A (θ − x), x ~ N(0, D²): G = A θ and Σ = A D² A."""
    model = keras.Sequential([keras.Input((3,)), Offset()])
    model.set_weights([START])
    return model, deviations * rng.normal(size=(count, 3)), np.zeros(count)


def warmup(rate, updates):
    return lambda k: rate * min((k + 1) / updates, 1)


def test_quadratic(float64, rng):
    deviations, rate, updates = np.array([2.0, 8.0, 4.0]), 0.001, 200
    model, x, y = quadratic(deviations, rng, 4000)
    sgd = keras.optimizers.SGD(
        nlb.WarmupStepDecay(rate, warmup_steps=30, decay_steps=[100])
    )  # whose peak is meant
    found = nlb.advise(
        model, x, y, batch_size=10, loss=quadratic_loss, optimizer=sgd, num_batches=400, verbose=0
    )
    assert (found.updates, found.learning_rate) == ((20, updates), pytest.approx(rate))
    factor = CURVATURE * deviations / np.sqrt(10)
    means, covariances = Quadratic(CURVATURE, factor).moments(START, updates, warmup(rate, 20))
    trace = np.sum((CURVATURE * deviations) ** 2)
    # The gradient's expected square at an update; the run is one draw, so close to its mean path.
    squares = [
        np.sum((CURVATURE @ means[k]) ** 2) + np.trace(CURVATURE @ covariances[k] @ CURVATURE)
        for k in found.updates
    ]
    early, late = (trace / square for square in squares)
    assert found.early.lower < early < found.early.upper
    assert found.late.lower < late < found.late.upper
    assert not found.early.lower < late < found.early.upper  # control
    assert not found.late.lower < early < found.late.upper
    assert found.largest_batch_size == round(found.late.value)
    assert found.scaled_learning_rate == pytest.approx(rate * found.largest_batch_size / 10)
    assert found.multiplier == 0
    np.testing.assert_array_equal(model.get_weights()[0], START)


def test_losses_of_short_runs(float64, rng):
    """A large batch nearly without noise: the losses are those of the exact path."""
    model, x, y = quadratic(np.full(3, 0.01), rng, 200)
    runs = ShortRuns(model, quadratic_loss, keras.optimizers.SGD(0.2), None, x, y, 10, 0)
    advice = made(late=measured(40.0), learning_rate=0.2, batch_size=10, updates=(2, 100))
    trials = module._trials(runs, runs.sample(20), advice)
    assert [rate for rate, _ in trials] == pytest.approx([0.8, 0.4, 0.2])  # λ_max is 3.1
    factor = CURVATURE * 0.01 / np.sqrt(40)
    for rate, loss in trials[1:]:
        path = Quadratic(CURVATURE, factor).expected_losses(START, 25, warmup(rate, 12))
        assert loss == pytest.approx(path[-1] + 0.01**2 / 2 * np.trace(CURVATURE), rel=0.2)
    assert trials[0][1] > runs.mean_loss(runs.copy(), runs.sample(20)) > 100 * trials[1][1]


def test_the_highest_rate_is_found(float64, rng):
    model, x, y = quadratic(np.ones(3), rng, 400)
    model.compile(keras.optimizers.SGD(0.1), quadratic_loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at a minimum the noise scale has no upper bound
        found = nlb.advise(model, x, y, batch_size=8, updates=50, highest_rate="measure", verbose=0)
    bound = 2 / np.linalg.eigvalsh(CURVATURE)[-1]
    assert bound / 4 < found.highest_rate < bound < found.scaled_learning_rate
    assert all(loss > found.first_loss for rate, loss in found.trials if rate > bound)
    large = found.largest_batch_size
    heat = 0.1 / 8 - found.highest_rate / large
    expected = np.sqrt(heat / (found.highest_rate * (1 / 8 - 1 / large)))
    assert found.multiplier == pytest.approx(expected, 1e-12)
    low, high = found.multiplier_interval
    assert low <= found.multiplier <= high
    assert "Clip the gradient" in str(found) and "worth adding, because" in str(found)


def mse(y, y_pred):
    return tf.reduce_mean(tf.square(y - y_pred), axis=-1)


@pytest.fixture
def problem(float64, rng):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, "tanh"), layers.Dense(2)])
    perturb(model, rng, 0.5)
    x = rng.normal(size=(600, 3))
    return model, x, np.sin(x[:, :2]) + 0.3 * rng.normal(size=(600, 2))


def test_all_per_example_gradients(problem):
    """The rate is so small that the weights stay."""
    model, x, y = problem
    model.compile(keras.optimizers.SGD(1e-12), mse)
    found = nlb.advise(model, x, y, batch_size=6, updates=2, num_batches=100, verbose=0)
    rows = np.concatenate([g.reshape(600, -1) for g in one_by_one(model, mse, x, y)], axis=1)
    trace = np.sum(np.var(rows, axis=0, ddof=1))
    square = np.sum(rows.mean(axis=0) ** 2) - trace / 600
    for measurement in (found.early, found.late):
        assert abs(measurement.trace - trace) < 5 * measurement.trace_error
        assert abs(measurement.trace - 1.6 * trace) > 5 * measurement.trace_error
        assert abs(measurement.squared_norm - square) < 5 * measurement.squared_norm_error
        assert measurement.lower < trace / square < measurement.upper
        assert not measurement.lower < 3 * trace / square < measurement.upper


def test_the_run_is_that_of_the_optimizer(problem, monkeypatch):
    """A noise in the optimizer, and what wraps the model, are left out."""
    model, x, y = problem
    noisy = nlb.NoisyModel(model)
    sgd = keras.optimizers.SGD(0.05, momentum=0.9)
    noisy.compile(nlb.NoisyOptimizer(sgd, nlb.DiagonalFisher(2)), mse)
    seen, original = [], module.critical_batch_size

    def spy(network, *arguments, **options):
        seen.append(flat(network.trainable_variables))
        return original(network, *arguments, **options)

    monkeypatch.setattr(module, "critical_batch_size", spy)
    before = flat(model.trainable_variables)
    found = nlb.advise(noisy, x, y, batch_size=6, updates=30, seed=4, verbose=0)
    np.testing.assert_array_equal(flat(model.trainable_variables), before)
    assert int(noisy.optimizer.iterations) == 0 and noisy.optimizer.inner_optimizer is sgd
    draws = np.random.default_rng((4, 6))
    velocities, expected = [0.0] * 4, []
    for k in range(30):
        rows = draws.choice(600, 6, replace=False)
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(mse(y[rows], model(x[rows])))
        gradients = tape.gradient(value, model.trainable_variables)
        rate = 0.05 * min((k + 1) / 3, 1)
        velocities = [
            0.9 * v - rate * g.numpy() for v, g in zip(velocities, gradients, strict=True)
        ]
        for variable, velocity in zip(model.trainable_variables, velocities, strict=True):
            variable.assign_add(velocity)
        if k + 1 in found.updates:
            expected.append(flat(model.trainable_variables))
    np.testing.assert_allclose(seen, expected, rtol=1e-4)  # Keras' schedules are float32


class Own(keras.Model):
    def __init__(self, units):  # has no get_config that Keras could fill
        super().__init__()
        self.dense = layers.Dense(units)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        raise NotImplementedError("no configuration")


def test_datasets_functions_and_own_models(rng):
    x = rng.normal(size=(64, 3)).astype("float32")
    y = (x @ np.ones((3, 2)) + rng.normal(size=(64, 2))).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, y, np.ones(64))).batch(6)
    options = {"loss": "mse", "optimizer": keras.optimizers.Adam(0.01), "updates": 4, "verbose": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = nlb.advise(lambda: Own(2), data, highest_rate="measure", **options)
    assert (found.batch_size, found.num_examples, found.scaling) == (6, 64, "square root")
    assert found.late.num_batches == 10
    ratio = found.largest_batch_size / 6
    assert found.scaled_learning_rate == pytest.approx(0.01 * ratio**0.5)
    assert found.multiplier == 0  # the rate can follow the batch
    with pytest.raises(ValueError, match=r"cannot be copied.*no configuration.*function that"):
        nlb.advise(Own(2), data, **options)


def measured(value, lower=None, upper=None):
    ends = {"lower": lower or value / 2, "upper": upper or value * 2}
    numbers = dict.fromkeys([f.name for f in dataclasses.fields(CriticalBatchSize)], 1.0)
    return CriticalBatchSize(**{**numbers, "value": value, **ends, "num_batches": 64})


def made(**changes):
    values = dict(
        batch_size=128, learning_rate=0.1, num_examples=50_000, updates=(20, 200),
        early=measured(500.0), late=measured(4096.0), scaling="linear",
    )  # fmt: skip
    return Advice(**{**values, **changes})


def test_what_follows_from_a_noise_scale():
    advice = made()
    assert (advice.largest_batch_size, advice.interval) == (4096, (2048, 8192))
    assert advice.scaled_learning_rate == advice.advised_learning_rate == pytest.approx(3.2)
    assert advice.multiplier == 0 and advice.multiplier_interval == (0, 0)
    assert "λ = 0.18 at 1.6, 0.31 at 0.8, 1 at 0.1" in str(advice)
    # S ∝ 1 + B_noise / B and E ∝ 1 + B / B_noise
    assert "1/16.5 of the updates and 1.94 times the examples" in str(advice)


def test_a_rate_that_cannot_follow():
    advice = made(highest_rate=1.6)
    assert advice.advised_learning_rate == 1.6
    assert advice.multiplier == pytest.approx(nlb.matched_multiplier(4096, 128, 1.6, 0.1))
    low, high = advice.multiplier_interval
    assert low == 0  # 2048 has 1.6 by linear scaling
    assert high == pytest.approx(nlb.matched_multiplier(8192, 128, 1.6, 0.1))
    assert "λ = 0.18 (0 to 0.22)" in str(advice)
    assert made(highest_rate=5.0).multiplier == 0


def test_adam_matches_by_the_square_root():
    advice = made(highest_rate=0.2, scaling="square root")
    assert advice.scaled_learning_rate == pytest.approx(0.1 * 32**0.5)
    expected = nlb.matched_multiplier(4096, 128, 0.2, 0.1, scaling="square root")
    assert advice.multiplier == pytest.approx(expected)
    assert f"λ = {expected:.2g} (" in str(advice)


def test_a_large_batch_already():
    advice = made(late=measured(100.0), highest_rate=0.01)
    assert not advice.pays and advice.multiplier == 0
    assert "Stay with 128" in str(advice)


def test_no_more_than_all_examples():
    advice = made(late=measured(np.inf, lower=9000.0, upper=np.inf), num_examples=10_000)
    assert advice.interval == (9000, 10_000) and advice.largest_batch_size == 9000
    assert "1/70.3 of the updates and 1 times" in str(advice)  # noise alone: as many examples
    assert made(num_examples=1000).largest_batch_size == 1000


X, Y = np.ones((40, 3), "float32"), np.ones((40, 2), "float32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": 3}, "must be a keras.Model, or a function.*3"),
        ({"model": list}, "a function without arguments that returns one.*list.*gives"),
        ({"loss": None}, "`loss` must be.*Received: None.*only if the model is compiled"),
        ({"optimizer": "sgd"}, "`optimizer` must be a Keras optimizer.*'sgd'"),
        ({"learning_rate": 0}, "`learning_rate` must be a positive.*learning_rate=0"),
        ({"highest_rate": -1.0}, "`highest_rate` must be a positive.*-1"),
        ({"highest_rate": "best"}, 'a positive number, "measure" or None.*best'),
        ({"updates": 1}, "`updates` must be at least 2.*updates=1"),
        ({"updates": 2.5}, "`updates` must be a positive integer.*2.5"),
        ({"num_batches": 4}, "`num_batches` at least 5.*num_batches=4"),
        ({"batch_size": None}, "`batch_size` is missing"),
        ({"batch_size": 10}, "at least 5 full batches.*4 of 10"),
        ({"optimizer": keras.optimizers.SGD(1e30), "y": 1e30 * Y}, "finite.*smaller learning rate"),
    ],
)
def test_errors(options, message):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    values = {"model": model, "x": X, "y": Y, "batch_size": 4, "loss": "mse"}
    values |= {"optimizer": keras.optimizers.SGD(0.1), "updates": 2, "verbose": 0}
    with pytest.raises(ValueError, match=message):
        nlb.advise(**{**values, **options})


def test_documented_example(problem, capsys):
    model, x, y = problem
    names = {"model": model, "loss": mse, "x_train": x, "y_train": y, "keras": keras}
    names |= {"keras_noisylb": nlb, "FullFisher": nlb.FullFisher}
    code = nlb.advise.__doc__.split("```python")[1].split("```")[0]
    exec("\n".join(line.strip() for line in code.splitlines()), names)
    assert names["noise"].multiplier == names["advice"].multiplier
    shown = capsys.readouterr().out
    assert "Gradient noise scale" in shown and "after 200 updates" in shown
