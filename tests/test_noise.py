"""Covariance and distribution of every noise against per-example gradients, in float64."""

import keras
import numpy as np
import oracle
import pytest
import sampling
import tensorflow as tf
from keras import layers
from scipy import stats

import keras_noisylb as nlb

pytestmark = pytest.mark.usefixtures("float64")
MSE = keras.losses.mean_squared_error
M, M_S = 13, 3
VARIANCE = (M - M_S) / (M * M_S)

RUNGS = {
    "full": lambda f: f,
    "diagonal": lambda f: np.diag(np.diag(f)),
    "trace": lambda f: np.trace(f) / len(f) * np.eye(len(f)),
}


def others(rung, matrix):
    return [f(matrix) for name, f in RUNGS.items() if name != rung]


def network():
    return keras.Sequential([
        keras.Input((3,)),
        layers.Dense(3, activation="tanh"),
        layers.Dense(2),
    ])


@pytest.fixture
def problem(rng):
    model = network()
    oracle.perturb(model, rng)
    return model, MSE, rng.standard_normal((M, 3)), rng.standard_normal((M, 2))


LADDER = [
    ("full", nlb.FullFisher(M_S)),
    ("diagonal", nlb.DiagonalFisher(M_S, engine="layerwise")),
    ("diagonal", nlb.DiagonalFisher(M_S, engine="vectorized_map")),
    ("diagonal", nlb.DiagonalFisher(M_S, estimator="weighted")),
    ("trace", nlb.FisherTrace(M_S)),
    ("trace", nlb.FisherTrace(M_S, estimator="weighted")),
]


@pytest.mark.parametrize(("rung", "noise"), LADDER)
def test_ladder(rung, noise, problem):
    fisher = VARIANCE * sampling.second_moment(oracle.one_by_one(*problem))
    samples = sampling.draw(noise, *problem)
    sampling.assert_only(samples, RUNGS[rung](fisher), *others(rung, fisher))


@pytest.mark.parametrize(("rung", "noise"), LADDER[:2])
def test_ladder_compiled_by_xla(rung, noise, problem):
    fisher = VARIANCE * sampling.second_moment(oracle.one_by_one(*problem))
    samples = sampling.draw(noise, *problem, jit=True)
    sampling.assert_only(samples, RUNGS[rung](fisher), *others(rung, fisher))


# Random batches.

POOL, SHUFFLED = 20, 6


def drawn(seed):
    """M examples, each any of the pool."""
    return tf.random.stateless_uniform([M], [seed, 1], 0, POOL, "int32")


def shuffled(seed):
    """The first examples of the pool in another order."""
    return tf.argsort(tf.random.stateless_uniform([SHUFFLED], [seed, 1]))


def pool(rng, fitted=False):
    x, y = rng.standard_normal((POOL, 3)), rng.standard_normal((POOL, 2))
    if not fitted:
        model = network()
        oracle.perturb(model, rng)
        return model, MSE, x, y
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    solution = np.linalg.lstsq(np.c_[x, np.ones(POOL)], y)[0]
    model.set_weights([solution[:3], solution[3]])
    return model, MSE, x, y


@pytest.mark.parametrize(
    ("rung", "structure", "jit"),
    [
        ("full", nlb.FullFisher, False),
        ("diagonal", nlb.DiagonalFisher, False),
        ("trace", nlb.FisherTrace, False),
        ("diagonal", nlb.DiagonalFisher, True),
    ],
)
def test_split_has_the_covariance_around_the_mean(rung, structure, jit, rng):
    problem = pool(rng)
    gradients = oracle.one_by_one(*problem)
    centred = VARIANCE * sampling.second_moment([g - g.mean(0) for g in gradients])
    fisher = VARIANCE * sampling.second_moment(gradients)
    noise, count = structure(M_S, estimator="split"), 8000 if rung == "trace" else 3000
    samples = sampling.draw(noise, *problem, count=count, rows=drawn, jit=jit)
    sampling.assert_only(samples, RUNGS[rung](centred), RUNGS[rung](fisher), *others(rung, centred))


def test_split_of_one_shuffled_batch(rng):
    problem = pool(rng)
    gradients = [g[:SHUFFLED] for g in oracle.one_by_one(*problem)]
    variance = (SHUFFLED - M_S) / (SHUFFLED * M_S)
    centred = variance * sampling.second_moment([g - g.mean(0) for g in gradients])
    samples = sampling.draw(nlb.FullFisher(M_S, estimator="split"), *problem, rows=shuffled)
    sampling.assert_only(samples, SHUFFLED / (SHUFFLED - 1) * centred, centred)


@pytest.mark.parametrize(
    ("rung", "noise"),
    [
        ("full", nlb.FullFisher(M_S)),
        ("full", nlb.FullFisher(M_S, estimator="split")),
        ("diagonal", nlb.DiagonalFisher(M_S)),
        ("diagonal", nlb.DiagonalFisher(M_S, estimator="weighted")),
        ("diagonal", nlb.DiagonalFisher(M_S, estimator="split")),
    ],
)
def test_estimators_agree_where_the_mean_gradient_is_zero(rung, noise, rng):
    problem = pool(rng, fitted=True)
    gradients = oracle.one_by_one(*problem)
    assert max(np.abs(g.mean(0)).max() for g in gradients) < 1e-12
    fisher = VARIANCE * sampling.second_moment(gradients)
    samples = sampling.draw(noise, *problem, rows=drawn)
    sampling.assert_only(samples, RUNGS[rung](fisher), *others(rung, fisher))


# The vectors v themselves, for one batch.


def ghosts():
    return keras.Sequential([
        keras.Input((3,)),
        layers.Dense(4),
        nlb.GhostBatchNormalization(3),
        layers.Activation("tanh"),
        layers.Dense(2),
    ])


def recurrent():
    return keras.Sequential([
        keras.Input((3,)),
        layers.Reshape((3, 1)),
        layers.LSTM(2, unroll=True),
        layers.Dense(2),
    ])


def two_outputs():
    inputs = keras.Input((3,))
    hidden = layers.Dense(3, activation="tanh")(inputs)
    return keras.Model(inputs, {"p": layers.Dense(1)(hidden), "q": layers.Dense(2)(hidden)})


def two_losses(y, y_pred):
    return MSE(y[:, :1], y_pred["p"]) + 0.5 * MSE(y, y_pred["q"])


@pytest.mark.parametrize(
    ("build", "losses", "examples", "microbatches", "half", "weighted"),
    [
        (network, MSE, 12, 1, 6, False),
        (network, MSE, 13, 1, 6, True),
        (network, MSE, 13, 3, 8, False),
        (ghosts, MSE, 13, 1, 7, True),
        (recurrent, MSE, 12, 1, 6, False),
        (two_outputs, two_losses, 12, 1, 6, True),
    ],
)
def test_vectors_of_one_batch(build, losses, examples, microbatches, half, weighted, rng):
    model = build()
    oracle.perturb(model, rng)
    x, y = rng.standard_normal((examples, 3)), rng.standard_normal((examples, 2))
    weights = rng.uniform(0, 2, examples) if weighted else np.ones(examples)

    def loss(y, y_pred, sample_weight=1.0):
        return sample_weight * losses(y, y_pred)

    def draw(estimator, count):
        options = {"sample_weight": weights} if weighted else {}
        return sampling.draw(
            nlb.FullFisher(M_S, estimator=estimator),
            *(model, loss, x, y),
            count=count,
            num_microbatches=microbatches,
            **options,
        )

    variables = model.trainable_variables
    each = sampling.jacobian(lambda: loss(y, model(x, training=True), weights), variables)
    g = sampling.matrix(each)
    scale = np.sqrt((examples - M_S) / (examples * M_S))

    v = np.sqrt(half * (examples - half) / examples) * (g[:half].mean(0) - g[half:].mean(0))
    noise = draw("split", 20)
    signs = np.sign(noise @ v)
    assert set(signs) == {-1, 1}
    np.testing.assert_allclose(noise, scale * np.outer(signs, v), atol=1e-6 * np.abs(v).max())

    noise = draw("weighted", 400)
    combined = np.linalg.lstsq(g.T, noise.T)[0]
    np.testing.assert_allclose(g.T @ combined, noise.T, atol=1e-6 * np.abs(noise).max())
    normal = combined.ravel() * np.sqrt(examples) / scale
    assert stats.kstest(normal, "norm").pvalue > 1e-5
    square, error = np.mean(normal**2), np.sqrt(2 / normal.size)
    assert abs(square - 1) < 5 * error < abs(square / 1.2 - 1)
    correlations = np.corrcoef(combined) - np.eye(examples)
    assert np.abs(correlations).max() < 5 / np.sqrt(400)


# Marginal and joint distributions.

MANY = 20_000


def p_values(samples, variance):
    return [
        stats.kstest(column / np.sqrt(v), "norm", method="asymp").pvalue
        for column, v in zip(samples.T, variance, strict=True)
    ]


def test_weighted_is_gaussian_in_each_coordinate_but_not_jointly(problem):
    fisher = VARIANCE * sampling.second_moment(oracle.one_by_one(*problem))
    variance = np.diag(fisher)
    pairs = 2 * fisher**2
    independent = np.diag(np.diag(pairs))
    for estimator, right, wrong in (
        ("weighted", pairs, independent),
        ("per_example", independent, pairs),
    ):
        noise = nlb.DiagonalFisher(M_S, estimator=estimator)
        samples = sampling.draw(noise, *problem, count=MANY)
        assert min(p_values(samples, variance)) > 1e-5
        assert max(p_values(samples, 1.2 * variance)) < 1e-5
        squares = samples**2 - variance
        assert sampling.worst_z(squares, right) < 5 < sampling.worst_z(squares, wrong)


def test_fourth_moments_of_split_approach_the_gaussian(rng):
    """Of even batches: E v⁴ = 3 σ⁴ + (E (g - E g)⁴ - 3 σ⁴) / M, coordinate by coordinate."""
    problem = pool(rng)
    centred = sampling.matrix([g - g.mean(0) for g in oracle.one_by_one(*problem)])
    gaussian = 3 * np.mean(centred**2, axis=0) ** 2
    excess = np.mean(centred**4, axis=0) - gaussian

    def z(samples, expected):
        fourth = samples**4
        return np.abs(fourth.mean(0) - expected) / (fourth.std(0) / np.sqrt(len(samples)))

    for size in (4, 100):
        variance = (size - 2) / (size * 2)
        samples = sampling.draw(
            nlb.DiagonalFisher(2, estimator="split"),
            *problem,
            count=8000,
            rows=lambda seed, m=size: tf.random.stateless_uniform([m], [seed, 1], 0, POOL, "int32"),
        ) / np.sqrt(variance)
        assert z(samples, gaussian + excess / size).max() < 5
        assert z(samples, 1.2 * (gaussian + excess / size)).max() > 5
        assert (z(samples, gaussian).max() > 5) == (size == 4)


# The model's own labels.


@pytest.fixture
def classifier(rng):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3)])
    oracle.perturb(model, rng)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return model, loss, rng.standard_normal((M, 3)), rng.integers(0, 3, M)


def softmax_fisher(model, x, labels=lambda p: p):
    """E over x and over labels of distribution q = labels(p) of g gᵀ, g = (x, 1) ⊗ (p - label)."""
    total = 0.0
    for row, p in zip(np.c_[x, np.ones(len(x))], np.asarray(tf.nn.softmax(model(x))), strict=True):
        q = labels(p)
        errors = np.diag(q) - np.outer(p, q) - np.outer(q, p) + np.outer(p, p)
        total = total + np.kron(np.outer(row, row), errors)
    return total / len(x)


@keras.saving.register_keras_serializable(package="tests")
def uniform_class(y, y_pred, draws):
    return tf.cast(3 * draws.uniform(tf.shape(y), "float32"), y.dtype)


@pytest.mark.parametrize(
    ("rung", "noise"),
    [
        ("full", nlb.FullFisher(M_S, fisher="true")),
        ("diagonal", nlb.DiagonalFisher(M_S, fisher="true", engine="layerwise")),
        ("diagonal", nlb.DiagonalFisher(M_S, fisher="true", engine="vectorized_map")),
        ("diagonal", nlb.DiagonalFisher(M_S, estimator="weighted", fisher="true")),
        ("trace", nlb.FisherTrace(M_S, fisher="true")),
        ("trace", nlb.FisherTrace(M_S, estimator="weighted", fisher="true")),
        ("full", nlb.FullFisher(M_S, fisher="true", sampler=uniform_class)),
    ],
)
def test_true_fisher_of_softmax_regression(rung, noise, classifier):
    model, _, x, _ = classifier
    labels = (lambda p: np.full(3, 1 / 3)) if noise.sampler else (lambda p: p)
    fisher = VARIANCE * softmax_fisher(model, x, labels)
    empirical = VARIANCE * sampling.second_moment(oracle.one_by_one(*classifier))
    samples = sampling.draw(noise, *classifier)
    wrong = (RUNGS[rung](empirical), *others(rung, fisher))
    sampling.assert_only(samples, RUNGS[rung](fisher), *wrong)
    gradients, _ = nlb.noisy_gradients(*classifier, noise, seed=0)
    oracle.assert_close(gradients, oracle.batch_gradient(*classifier))


def test_a_loss_of_no_known_distribution_needs_a_sampler(classifier):
    model, crossentropy, x, y = classifier

    def loss(y, y_pred):
        return crossentropy(y, y_pred) ** 2

    with pytest.raises(ValueError, match="`sampler`"):
        nlb.noisy_gradients(model, loss, x, y, nlb.FullFisher(M_S, fisher="true"), 0)
    noise = nlb.DiagonalFisher(M_S, fisher="true", sampler=lambda y, y_pred, draws: (y + 1) % 3)
    (statistic,) = sampling.statistics(noise, model, crossentropy, x, y)
    expected = oracle.one_by_one(model, crossentropy, x, (y + 1) % 3)
    oracle.assert_close(statistic, [np.mean(g**2, axis=0) for g in expected])


# Noises of a fixed size.


def test_fixed_noises(problem):
    g = sampling.matrix(oracle.one_by_one(*problem))
    covariances = {
        nlb.Multiplicative(0.5): 0.25 * np.diag(g.mean(0) ** 2),
        nlb.Multiplicative(0.5, form="example"): 0.25 * g.T @ g / M**2,
        nlb.Isotropic(0.3): 0.09 * np.eye(g.shape[1]),
    }
    for noise, covariance in covariances.items():
        wrong = [c for c in covariances.values() if c is not covariance]
        sampling.assert_only(sampling.draw(noise, *problem), covariance, *wrong)


def test_variables_without_gradient_do_not_count(rng):
    inputs = keras.Input((3,))
    used, unused = layers.Dense(2)(inputs), layers.Dense(5)(inputs)
    model = keras.Model(inputs, [used, unused])
    loss = lambda y, y_pred: MSE(y, y_pred[0])  # noqa: E731
    problem = (model, loss, rng.standard_normal((M, 3)), rng.standard_normal((M, 2)))
    alone = keras.Model(inputs, used)
    fisher = VARIANCE * sampling.second_moment(oracle.one_by_one(alone, MSE, *problem[2:]))
    for noise in (
        nlb.FisherTrace(M_S, engine="layerwise"),
        nlb.FisherTrace(M_S, engine="vectorized_map"),
        nlb.FisherTrace(M_S, estimator="weighted"),
    ):
        sampling.assert_only(sampling.draw(noise, *problem), RUNGS["trace"](fisher))
