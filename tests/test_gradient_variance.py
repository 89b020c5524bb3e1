"""Gradient variances against closed forms, in standard errors."""

import doctest
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from oracle import batch_gradient, flat, one_by_one, perturb

import keras_noisylb as nlb
from keras_noisylb.diagnostics import critical, critical_batch_size, gradient_variance, variance


def mse(y, y_pred):
    return tf.reduce_mean(tf.square(y - y_pred), axis=-1)


@pytest.fixture
def problem(float64, rng):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    perturb(model, rng, 1.0)
    return model, rng.normal(size=(30, 3)), rng.normal(size=(30, 2))


def measure(model, x, y, loss=mse, **options):
    return gradient_variance(model, loss, x, y, **{"batch_size": 10, "verbose": 0, **options})


def moments(model, x, y):
    """For each variable: mean, covariance's trace (divisor N − 1) and tr F of one example."""
    rows = [np.reshape(g, (len(g), -1)) for g in one_by_one(model, mse, x, y)]
    means = [g.mean(axis=0) for g in rows]
    traces = np.array([g.var(axis=0, ddof=1).sum() for g in rows])
    return means, traces, np.array([np.mean(np.sum(g**2, axis=1)) for g in rows])


def assert_variance(found, traces, factor=1.2):
    """Check a variance within five standard errors, and that `factor` times it fails."""
    blocks = traces / found.sizes
    total = traces.sum() / found.sizes.sum()
    for value, error, right in (
        (found.block_variance, found.block_standard_error, blocks),
        (found.variance, found.standard_error, total),
    ):
        assert np.all(np.abs(value - right) <= 5 * error)
        assert np.all(np.abs(value - factor * right) > 5 * error)


@pytest.mark.parametrize("batch_size", [1, 10])
def test_minibatches(batch_size, problem):
    model, x, y = problem
    _, traces, _ = moments(*problem)
    found = measure(model, x, y, batch_size=batch_size, draws=2000)
    assert_variance(found, (1 / batch_size - 1 / 30) * traces)
    assert found.sizes.tolist() == [6, 2]
    assert (found.batch_size, found.num_draws) == (batch_size, 2000)
    assert found.paths == tuple(v.path for v in model.trainable_variables)


SCALE = 1 / 2 - 1 / 10  # squared, of a batch of ten that imitates one of two

# From moments of one example's gradient to the trace of the noise's covariance.
NOISES = {
    "diagonal": (nlb.DiagonalFisher(2), lambda s, f, g, d: SCALE * f),
    "diagonal weighted": (
        nlb.DiagonalFisher(2, estimator="weighted"),
        lambda s, f, g, d: SCALE * f,
    ),
    "diagonal split": (nlb.DiagonalFisher(2, estimator="split"), lambda s, f, g, d: SCALE * s),
    "full": (nlb.FullFisher(2, multiplier=0.5), lambda s, f, g, d: 0.25 * SCALE * f),
    "full split": (nlb.FullFisher(2, estimator="split"), lambda s, f, g, d: SCALE * s),
    "trace": (nlb.FisherTrace(2), lambda s, f, g, d: SCALE * f.sum() * d / d.sum()),
    "isotropic": (nlb.Isotropic(0.7), lambda s, f, g, d: 0.49 * d),
    "multiplicative": (nlb.Multiplicative(1.5), lambda s, f, g, d: 2.25 * g),
}


@pytest.mark.parametrize("name", NOISES)
def test_noises(name, problem):
    noise, expected = NOISES[name]
    means, traces, fisher = moments(*problem)
    without = (1 / 10 - 1 / 30) * traces
    squared_gradient = np.array([m @ m for m in means]) + without
    found = measure(*problem, noise=noise, draws=1000)
    added = expected(traces, fisher, squared_gradient, np.array([6.0, 2.0]))
    assert_variance(found, without + added, factor=1.3)


def test_a_large_batch_with_full_noise_has_the_variance_of_a_small_one(problem):
    # Figure 2: (1/M_L − 1/N) + (1/M_S − 1/M_L) = 1/M_S − 1/N, exactly so for `split`.
    _, traces, _ = moments(*problem)
    large = measure(*problem, noise=nlb.FullFisher(2, estimator="split"), draws=2000)
    small = measure(*problem, batch_size=2, draws=2000)
    for found in (large, small):
        assert_variance(found, (1 / 2 - 1 / 30) * traces)


def test_true_labels_and_factors(problem, rng):
    model, x, _ = problem
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    y = rng.integers(0, 2, 30)
    for noise in (nlb.FullFisher(2, fisher="true"), nlb.KroneckerFactored(2)):
        with_noise = measure(model, x, y, loss, noise=noise)
        without = measure(model, x, y, loss)
        errors = np.hypot(with_noise.standard_error, without.standard_error)
        assert with_noise.variance - without.variance > 5 * errors


def test_moments_are_the_sample_variance_with_honest_errors(rng):
    estimates, errors = [], []
    for _ in range(250):
        draws = rng.exponential(size=(40, 5)) * np.arange(1, 6)
        running = variance.Moments()
        for draw in draws:
            running.add([tf.constant(draw[:2]), tf.constant(draw[2:])])
        terms = np.array(running.terms)
        expected = draws.var(axis=0, ddof=1)
        np.testing.assert_allclose(
            terms.mean(axis=0), [expected[:2].sum(), expected[2:].sum()], rtol=1e-12
        )
        estimates.append(terms.sum(axis=1).mean())
        errors.append(variance._standard_error(terms.sum(axis=1)))
    # An exponential variable has the variance 1; 55 is Σ k².
    assert abs(np.mean(estimates) - 55) < 5 * np.std(estimates) / np.sqrt(250)
    assert np.sqrt(np.mean(np.square(errors))) / np.std(estimates) == pytest.approx(1, abs=0.2)


def test_dropout_is_part_of_the_variance_and_gets_its_seeds_back(float64, rng):
    model = keras.Sequential([
        keras.Input((3,)),
        layers.Dropout(0.25),
        layers.Dense(1, use_bias=False),
        layers.BatchNormalization(trainable=False),
    ])
    x = rng.normal(size=(1, 3))
    before = [keras.ops.convert_to_numpy(v) for v in model.variables]
    # The gradient of the output is mask · x / 0.75.
    scale = 1 / np.sqrt(1 + 1e-3)
    for number in (1, 2):
        rows = np.repeat(x, number, axis=0)
        found = gradient_variance(
            model,
            lambda y, y_pred: y_pred[..., 0],
            rows,
            np.zeros(number),
            batch_size=number,
            draws=2000,
            num_microbatches=number,
            verbose=0,
        )
        assert_variance(found, np.array([scale**2 * np.sum(x**2) / 3 / number]))
    for v, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(v, value)


def stateful():
    return keras.Sequential([
        keras.Input((3,)),
        layers.Dense(4),
        nlb.GhostBatchNormalization(2),
        layers.Dropout(0.5),
        layers.Dense(2),
    ])


def test_the_model_stays_as_it_is_even_after_an_error(rng):
    model = stateful()
    x, y = (rng.normal(size=(30, k)).astype("float32") for k in (3, 2))
    before = [keras.ops.convert_to_numpy(v) for v in model.variables]
    first = measure(model, x, y, noise=nlb.DiagonalFisher(2), draws=5)
    found = critical_batch_size(model, "mse", x, y, batch_size=6, confidence=0.5, verbose=0)
    assert np.isfinite(found.trace)
    failing = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
    failing = failing.concatenate(failing.map(lambda x, y: (tf.concat([x, x], 0), y)))
    with pytest.raises(ValueError, match=r"equal size. Received: batches of 10 and 20"):
        gradient_variance(model, "mse", failing, draws=5, verbose=0)
    for v, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(v, value)
    again = measure(model, x, y, noise=nlb.DiagonalFisher(2), draws=5)
    other = measure(model, x, y, noise=nlb.DiagonalFisher(2), draws=5, seed=1)
    assert again.variance == first.variance != other.variance


def test_datasets_and_microbatches(problem):
    model, x, y = problem
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)  # 8, 8, 8 and 6 examples
    found = gradient_variance(model, mse, data, draws=9, verbose=0)
    rows = np.stack([
        flat(batch_gradient(model, mse, x[k : k + 8], y[k : k + 8])) for k in (0, 8, 16)
    ])
    expected = np.concatenate([rows] * 3).var(axis=0, ddof=1)
    assert found.variance == pytest.approx(expected.mean(), 1e-10)
    assert found.batch_size == 8
    plain, in_parts = measure(*problem, draws=5), measure(*problem, draws=5, num_microbatches=3)
    assert in_parts.variance == pytest.approx(plain.variance, 1e-10)


X = np.ones((20, 3), "float32")
Y = np.ones((20, 2), "float32")
DATA = tf.data.Dataset.from_tensor_slices((X, Y))
BOTH = [
    ({"model": len}, "must be a keras.Model.*len"),
    ({"loss": None}, "`loss` must be a keras loss.*Received: None.*`model.loss`"),
    ({"x": X[:0], "y": Y[:0]}, r"at least one.*\(0, 3\)"),
    ({"batch_size": None}, "`batch_size` is missing"),
    ({"batch_size": 21}, "at most the 20 examples.*batch_size=21.*Lower"),
    ({"x": DATA.batch(4), "y": None}, "leave `batch_size` out.*batch_size=4"),
    ({"x": DATA.batch(4).take(0), "y": None, "batch_size": None}, "dataset is empty"),
    ({"x": X * np.nan}, "is not finite.*/kernel.*Check the data"),
]
VARIANCE = [
    ({"draws": 2}, "at least 3 draws.*draws=2"),
    ({"draws": 1.5}, "`draws` must be a positive integer.*1.5"),
    ({"noise": 64}, r"must be a noise, such as.*Received: 64"),
    ({"noise": nlb.DiagonalFisher(8)}, "small_batch_size=8, batch size 4. Raise"),
    ({"noise": nlb.FullFisher(4)}, "small_batch_size=4, batch size 4. Raise"),
]
CRITICAL = [
    ({"confidence": 95}, "between 0 and 1.*95"),
    ({"batch_size": 5}, "at least 5 full batches. Received: 4 of 5"),
    ({"loss": lambda y, p: tf.reduce_sum(y - p, axis=0)}, "scalar tensor"),
]


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [(gradient_variance, *case) for case in BOTH + VARIANCE]
    + [(critical_batch_size, *case) for case in BOTH + CRITICAL],
)
def test_errors(function, options, message):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    arguments = {"model": model, "loss": "mse", "x": X, "y": Y, "batch_size": 4, **options}
    with pytest.raises(ValueError, match=message):
        function(**arguments, verbose=0)


@pytest.mark.parametrize("function", [gradient_variance, critical_batch_size])
def test_weights_that_are_not_finite(function):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="dense")])
    model.set_weights([np.full((3, 2), np.nan), np.zeros(2)])
    with pytest.raises(ValueError, match=r"6 NaN or infinite numbers in '.*dense/kernel'"):
        function(model, "mse", X, Y, batch_size=4, verbose=0)


def test_progress_is_shown_unless_asked_not_to(capsys, problem):
    for verbose in (0, 1):
        measure(*problem, draws=4, verbose=verbose)
        critical_batch_size(
            problem[0], mse, *problem[1:], batch_size=5, confidence=0.1, verbose=verbose
        )
        shown = capsys.readouterr().out
        assert ("4/4" in shown) == ("12/12" in shown) == bool(verbose)


def test_documented_examples(problem, capsys):
    model, x, y = problem
    names = {"model": model, "loss": mse, "x_train": np.tile(x, (140, 1))}
    names |= {"y_train": np.tile(y, (140, 1)), "FullFisher": nlb.FullFisher}
    for function in (gradient_variance, critical_batch_size):
        names[function.__name__] = function
        code = function.__doc__.split("```python")[1].split("```")[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec("\n".join(line.strip() for line in code.splitlines()), names)
    assert "examples, between" in capsys.readouterr().out
    assert doctest.testmod(critical).failed == 0
