"""Temperatures against the exact stationary loss of the quadratic, momentum included."""

import warnings

import keras
import numpy as np
import pytest

import keras_noisylb as nlb
from keras_noisylb import matched_multiplier, noise_temperature
from keras_noisylb.quadratic import Quadratic
from keras_noisylb.schedules import linear_scaling, peak, sqrt_scaling

SMALL, LARGE, RATE = 32, 512, 0.01
CURVATURES = np.array([0.05, 0.1, 0.2])  # slow: RATE * curvature is far below 1, also at LARGE
COVARIANCE = np.diag([1.0, 3.0, 0.5])  # of one example's gradient


def losses(rate, momentum, covariance):
    """The stationary loss along each eigenvector of the Hessian."""
    quadratic = Quadratic(np.diag(CURVATURES), np.linalg.cholesky(covariance))
    return 0.5 * CURVATURES * np.diag(quadratic.stationary_covariance(rate, momentum))


def update_covariance(batch_size, small_batch_size=None, multiplier=1.0):
    """Of the gradient of one update."""
    plain = COVARIANCE / batch_size
    if small_batch_size is None:
        return plain
    return plain + multiplier**2 * (COVARIANCE / small_batch_size - COVARIANCE / batch_size)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_stationary_variance_with_momentum(momentum):
    """The closed form of one dimension, and a loop over the moments of the pair."""
    rate, curvature, variance = 0.7, 1.3, 2.0
    found = Quadratic([[curvature]], [[variance**0.5]]).stationary_covariance(rate, momentum)
    bound = 2 * (1 + momentum) - rate * curvature
    expected = rate * variance * (1 + momentum) / (curvature * (1 - momentum) * bound)
    np.testing.assert_allclose(found, [[expected]], rtol=1e-12)
    step = np.array([[1 - rate * curvature, momentum], [-rate * curvature, momentum]])
    moments = np.zeros((2, 2))
    for _ in range(3000):
        moments = step @ moments @ step.T + rate**2 * variance
    np.testing.assert_allclose(moments[0, 0], expected, rtol=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_loss_along_slow_directions_is_the_temperature(momentum):
    """It is T/4 times the variance of one example's gradient, up to terms in rate * curvature."""
    matched = matched_multiplier(LARGE, SMALL, 4 * RATE, RATE)
    for rate, *batch in (
        (RATE, SMALL),
        (RATE, LARGE),
        (4 * RATE, LARGE, SMALL, matched),
        (4 * RATE, LARGE, SMALL, 1.0),
        (linear_scaling(RATE, LARGE, SMALL), LARGE),
    ):
        size, *noise = batch
        noise = dict(zip(("small_batch_size", "multiplier"), noise, strict=False))
        temperature = noise_temperature(rate, size, **noise, momentum=momentum)
        expected = temperature / 4 * np.diag(COVARIANCE)
        found = losses(rate, momentum, update_covariance(*batch))
        np.testing.assert_allclose(found, expected, rtol=rate * CURVATURES[-1])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_matched_noise_restores_the_loss_of_the_small_batch(momentum):
    small = losses(RATE, momentum, update_covariance(SMALL))
    for rate in (RATE, 2 * RATE, sqrt_scaling(RATE, LARGE, SMALL)):
        matched = matched_multiplier(LARGE, SMALL, rate, RATE)
        # The covariance of one example is diagonal here, so full and diagonal noise are the same.
        large = losses(rate, momentum, update_covariance(LARGE, SMALL, matched))
        np.testing.assert_allclose(large, small, rtol=rate * CURVATURES[-1])
        assert np.all(losses(rate, momentum, update_covariance(LARGE)) < 0.6 * small)
        if rate > RATE:  # the negative control: the paper's λ is too hot at a scaled rate
            hot = losses(rate, momentum, update_covariance(LARGE, SMALL))
            assert np.all(hot > 1.9 * small)


def test_diagonal_noise_spreads_the_same_temperature():
    """Off the axes it has the total variance of full noise, and another loss in each direction."""
    angle = 0.6
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    hessian = turn @ np.diag([0.05, 0.4]) @ turn.T
    full = turn @ np.diag([1.0, 9.0]) @ turn.T
    along = []
    for covariance in (full, np.diag(np.diag(full))):
        quadratic = Quadratic(hessian, np.linalg.cholesky(covariance / SMALL))
        stationary = turn.T @ quadratic.stationary_covariance(RATE) @ turn
        along.append(np.diag(stationary) * [0.05, 0.4] / 2)
    temperature = noise_temperature(RATE, SMALL)
    np.testing.assert_allclose(np.sum(along, axis=1), temperature / 4 * 10, rtol=0.01)
    assert along[1][0] > 2 * along[0][0] and along[1][1] < 0.9 * along[0][1]


def adam_variance(rate, multiplier, rng, runs=1000, updates=5000):
    """The variance of a weight that Adam keeps near a minimum, and its standard error.

    Written out by hand: a batch of `LARGE` examples, each with gradient noise of variance 1, plus
    noise for a batch of `SMALL`.
    """
    variance = 1 / LARGE + multiplier**2 * (1 / SMALL - 1 / LARGE)
    x, m, v, found = np.zeros(runs), np.zeros(runs), np.full(runs, variance), []
    for update in range(updates):
        gradient = 0.5 * x + variance**0.5 * rng.normal(size=runs)
        m += 0.1 * (gradient - m)
        v += 0.001 * (gradient**2 - v)
        x -= rate * m / np.sqrt(v)
        if update >= updates / 2:
            found.append(np.mean(x**2))
    blocks = np.mean(np.array_split(found, 4), axis=1)
    return np.mean(blocks), np.std(blocks, ddof=1) / 2


def test_adam_is_matched_by_the_square_root(rng):
    rate = 0.001
    small, small_error = adam_variance(rate, 1.0, rng)
    for scaling, equal in (("square root", True), ("linear", False)):
        matched = matched_multiplier(LARGE, SMALL, 1.5 * rate, rate, scaling=scaling)
        large, large_error = adam_variance(1.5 * rate, matched, rng)
        within = abs(large - small) < 4 * np.hypot(small_error, large_error) + 0.02 * small
        assert within == equal
    largest = sqrt_scaling(rate, LARGE, SMALL)
    assert matched_multiplier(LARGE, SMALL, largest, rate, scaling="square root") == 0


def test_limits():
    assert matched_multiplier(4096, 128, 0.1, 0.1) == pytest.approx(1)
    assert matched_multiplier(4096, 128, 3.2, 0.1) == matched_multiplier(4096, 128, 9.0, 0.1) == 0
    assert matched_multiplier(4096, 128, 0.05, 0.1) > 1
    square_root = sqrt_scaling(0.1, 4096, 128)
    assert matched_multiplier(4096, 128, square_root, 0.1) == pytest.approx(32**-0.25, rel=0.1)
    assert noise_temperature(0.1, 128, momentum=0.9) == pytest.approx(0.1 / 128 / 0.1)
    assert noise_temperature(0.1, 4096, small_batch_size=128) == pytest.approx(
        noise_temperature(0.1, 128)
    )
    assert noise_temperature(0.1, 4096, small_batch_size=128, multiplier=0.0) == noise_temperature(
        0.1, 4096
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: noise_temperature(0.0, 128), "`learning_rate` must be a positive number"),
        (lambda: noise_temperature(0.1, -1), "`batch_size` must be a positive number"),
        (lambda: noise_temperature(float("nan"), 128), "`learning_rate` must be a positive"),
        (lambda: noise_temperature(0.1, 128, small_batch_size=128), "small 128, large 128"),
        (
            lambda: noise_temperature(0.1, 128, small_batch_size=0),
            "`small_batch_size` must be a positive",
        ),
        (
            lambda: noise_temperature(0.1, 128, small_batch_size=32, multiplier=-1.0),
            "`multiplier` must not be negative",
        ),
        (lambda: noise_temperature(0.1, 128, momentum=1.0), "`momentum` must be at least 0 and"),
        (lambda: matched_multiplier(128, 4096, 0.1, 0.1), "small 4096, large 128"),
        (lambda: matched_multiplier(4096, 128, 0.1, -0.1), "`small_learning_rate` must be a"),
        (
            lambda: matched_multiplier(4096, 128, 0.1, 0.1, scaling="root"),
            "'square root'. Received",
        ),
        (lambda: Quadratic([[1.0]], [[1.0]]).stationary_covariance(0.1, 1.0), "`momentum` must be"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def compiled(optimizer):
    model = nlb.NoisyModel(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    model.compile(optimizer, loss="mse")
    return model


def test_report_warns_of_a_noise_that_is_too_hot():
    rate, momentum = linear_scaling(RATE, LARGE, SMALL), 0.9
    for multiplier, optimizer in ((1.0, lambda o, noise: o), (0.1, nlb.NoisyOptimizer)):
        noise = nlb.FullFisher(SMALL, multiplier=multiplier)
        model = compiled(optimizer(keras.optimizers.SGD(rate, momentum=momentum), noise))
        expected = noise_temperature(
            rate, LARGE, small_batch_size=SMALL, multiplier=multiplier
        ) / noise_temperature(RATE, SMALL)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            notes = nlb.report(model, noise, LARGE, small_learning_rate=RATE).notes
        (note,) = [note for note in notes if "times as hot" in note]
        assert f"{expected:.2g} times as hot as with batches of {SMALL} at {RATE:g}" in note
        assert "The matched multiplier is 0.00;" in note
        assert [str(warning.message) for warning in found] == [note] * (expected > 4)
    assert not any("hot" in note for note in nlb.report(model, noise, LARGE).notes)


@pytest.mark.parametrize("clipping", ["clipnorm", "global_clipnorm", "clipvalue", None])
def test_report_says_that_clipping_makes_colder(clipping):
    options = {} if clipping is None else {clipping: 1.0}
    noise = nlb.FullFisher(SMALL, multiplier=0.1)
    model = compiled(nlb.NoisyOptimizer(keras.optimizers.SGD(RATE, **options), noise))
    notes = nlb.report(model, noise, LARGE, small_learning_rate=RATE).notes
    assert any("clips the gradient" in note for note in notes) == (clipping is not None)


@pytest.mark.parametrize(
    ("optimizer", "noise", "message"),
    [
        ("adam", nlb.FullFisher(SMALL), "compile the model with keras.optimizers.SGD"),
        ("sgd", nlb.Isotropic(0.1), "Isotropic imitates none"),
    ],
)
def test_report_knows_no_temperature_of(optimizer, noise, message):
    with pytest.raises(ValueError, match=message):
        nlb.report(compiled(optimizer), noise, LARGE, small_learning_rate=RATE)


def test_the_peak_of_a_schedule():
    schedules = keras.optimizers.schedules
    for schedule, expected in (
        (0.3, 0.3),
        (nlb.WarmupStepDecay(0.4, warmup_steps=600, decay_steps=(1000,)), 0.4),
        (schedules.ExponentialDecay(0.2, 100, 0.5), 0.2),
    ):
        assert peak(keras.optimizers.SGD(schedule)) == pytest.approx(expected)


def logged(optimizer, steps=4, size=16, **fit):
    """What the monitor logs of batches of `size` examples."""
    x = np.random.default_rng(0).standard_normal((steps * size, 3)).astype("float32")
    model = compiled(optimizer)
    monitor = nlb.GradientNoiseMonitor()
    return model.fit(x, x[:, :2], batch_size=size, verbose=0, callbacks=[monitor], **fit).history


@pytest.mark.parametrize("accumulated", [None, 2])
def test_the_monitor_logs_the_temperature(accumulated):
    """By `split`, the noise is as large as the variance that is measured from the same halves."""
    noise, large = nlb.FullFisher(4, estimator="split", multiplier=0.7), 16 * (accumulated or 1)
    for rate, momentum, steps in ((0.01, 0.0, None), (0.02, 0.8, None), (0.02, 0.8, 0)):
        sgd = keras.optimizers.SGD(rate, momentum, gradient_accumulation_steps=accumulated)
        imitated = {"small_batch_size": 4, "multiplier": 0.7} if steps is None else {}
        expected = noise_temperature(rate, large, **imitated, momentum=momentum)
        logs = logged(nlb.NoisyOptimizer(sgd, noise, noise_steps=steps, seed=0))
        np.testing.assert_allclose(logs["temperature"], expected, rtol=1e-5)
    assert "temperature" not in logged("adam")


def test_the_monitor_knows_that_momentum_does_not_add_up_noise_in_the_update():
    rate, momentum, noise = 0.01, 0.8, nlb.FullFisher(4, estimator="split")
    sgd = keras.optimizers.SGD(rate, momentum=momentum)
    logs = logged(nlb.NoisyOptimizer(sgd, noise, placement="update", seed=0))
    plain = noise_temperature(rate, 16, momentum=momentum)
    added = noise_temperature(rate, 16, small_batch_size=4, momentum=momentum) - plain
    np.testing.assert_allclose(logs["temperature"], plain + added * (1 - momentum) ** 2, rtol=1e-5)
    # And so it is: the moments of (parameter, velocity) where the parameter alone is shaken.
    curvature, variance, moments = 0.02, 3.0, np.zeros((2, 2))
    step = np.array([[1 - rate * curvature, momentum], [-rate * curvature, momentum]])
    for _ in range(20_000):
        moments = step @ moments @ step.T + np.diag([rate**2 * variance, 0])
    temperature = rate / (1 - momentum) * (1 - momentum) ** 2
    expected = temperature / 4 * variance
    np.testing.assert_allclose(curvature / 2 * moments[0, 0], expected, rtol=0.01)
