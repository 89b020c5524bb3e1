"""What the noises' arguments do, serialisation, seeds and errors."""

import inspect

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from keras import layers

import keras_noisylb as nlb

pytestmark = pytest.mark.usefixtures("float64")
MSE = keras.losses.mean_squared_error
M, M_S = 13, 3


@pytest.fixture
def problem(rng):
    model = keras.Sequential([
        keras.Input((3,)),
        layers.Dense(3, activation="tanh"),
        layers.Dense(2),
    ])
    oracle.perturb(model, rng)
    return model, MSE, rng.standard_normal((M, 3)), rng.standard_normal((M, 2))


MAKE = [
    nlb.DiagonalFisher,
    nlb.FullFisher,
    nlb.FisherTrace,
    nlb.KroneckerFactored,
    lambda m, **options: nlb.FullFisher(m, estimator="split", **options),
]


@pytest.mark.parametrize("make", MAKE)
def test_multiplier(make, problem):
    _, plain = nlb.noisy_gradients(*problem, make(M_S), seed=0)
    _, multiplied = nlb.noisy_gradients(*problem, make(M_S, multiplier=0.5), seed=0)
    oracle.assert_close(multiplied, [0.5 * n for n in plain])


@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize("small", [M, M + 1])
def test_a_batch_that_is_not_large_has_no_noise(make, small, problem):
    gradients, noise = nlb.noisy_gradients(*problem, make(small), seed=0)
    oracle.assert_close(gradients, oracle.batch_gradient(*problem))
    assert all(np.all(n == 0) for n in noise)


@pytest.mark.parametrize("options", [{"conv": "uncorrelated"}, {"max_examples": 4}])
@pytest.mark.parametrize("structure", [nlb.DiagonalFisher, nlb.FisherTrace])
def test_options_of_the_diagonal(structure, options, rng):
    model = keras.Sequential([
        keras.Input((5, 5, 1)),
        layers.Conv2D(2, 3, activation="tanh"),
        layers.Flatten(),
        layers.Dense(2),
    ])
    problem = (model, MSE, rng.standard_normal((M, 5, 5, 1)), rng.standard_normal((M, 2)))
    plain = nlb.gradients.diagonal_fisher(*problem)
    fisher = nlb.gradients.diagonal_fisher(*problem, **options)
    assert not np.allclose(plain[0], fisher[0], rtol=0.05)
    if structure is nlb.FisherTrace:
        plain, fisher = ([sum(np.sum(f) for f in fs)] * 4 for fs in (plain, fisher))
    expected, actual = (
        nlb.noisy_gradients(*problem, structure(M_S, **o), seed=0)[1] for o in ({}, options)
    )
    ratios = [np.sqrt(f / p) for f, p in zip(fisher, plain, strict=True)]
    oracle.assert_close(actual, [n * r for n, r in zip(expected, ratios, strict=True)], rtol=1e-6)


@keras.saving.register_keras_serializable(package="tests")
def is_half(y, y_pred, draws):
    return 0.5 * tf.ones_like(y)


ALL = [
    nlb.DiagonalFisher(2, engine="layerwise", max_examples=5, conv="uncorrelated", multiplier=0.3),
    nlb.DiagonalFisher(
        2, estimator="per_example", fisher="true", engine="vectorized_map", sampler=is_half
    ),
    nlb.DiagonalFisher(2, estimator="weighted", fisher="true", multiplier=2),
    nlb.DiagonalFisher(2, estimator="split"),
    nlb.FullFisher(2, estimator="weighted", fisher="true", multiplier=0.3, sampler=is_half),
    nlb.FullFisher(2, estimator="split"),
    nlb.FisherTrace(2, engine="layerwise", max_examples=5, conv="uncorrelated", multiplier=0.3),
    nlb.FisherTrace(2, estimator="weighted", fisher="true", sampler=is_half),
    nlb.KroneckerFactored(2, damping=0.2, update_every=3, max_examples=5, multiplier=0.3),
    nlb.KroneckerFactored(2, fisher="true", sampler=is_half),
    nlb.Isotropic(0.1),
    nlb.Multiplicative(0.1, form="example"),
    nlb.Multiplicative(0.1),
]


@pytest.mark.parametrize("noise", ALL)
def test_a_noise_has_its_arguments_and_no_others(noise):
    arguments = set(inspect.signature(type(noise)).parameters)
    assert set(vars(noise)) - {"statistic", "shared"} == arguments == set(noise.get_config())


@pytest.mark.parametrize("noise", ALL)
def test_the_seed_decides_the_noise(noise, problem):
    @tf.function
    def graph(seed):
        return nlb.noisy_gradients(*problem, noise, seed)

    first = nlb.noisy_gradients(*problem, noise, seed=3)
    for again in (nlb.noisy_gradients(*problem, noise, seed=tf.constant(3)), graph(3)):
        oracle.assert_close([*again[0], *again[1]], [*first[0], *first[1]], rtol=1e-6)
    other = nlb.noisy_gradients(*problem, noise, seed=4)
    oracle.assert_close(other[0], oracle.batch_gradient(*problem))
    if noise.statistic != "split":
        assert all(np.all(a != b) for a, b in zip(first[1], other[1], strict=True))


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: nlb.FullFisher(0), ["`small_batch_size` must be a positive", "batch_size=0"]),
        (lambda: nlb.FullFisher(2.5), ["small_batch_size=2.5"]),
        (lambda: nlb.FullFisher(True), ["small_batch_size=True"]),
        (lambda: nlb.FisherTrace("8"), ["small_batch_size='8'"]),
        (lambda: nlb.FisherTrace(8, multiplier=-1), ["at least 0", "multiplier=-1"]),
        (lambda: nlb.FullFisher(8, multiplier=float("nan")), ["multiplier=nan"]),
        (lambda: nlb.FullFisher(8, multiplier=float("inf")), ["multiplier=inf"]),
        (lambda: nlb.FullFisher(8, multiplier="1"), ["multiplier='1'"]),
        (lambda: nlb.FullFisher(8, fisher="own"), ["'empirical', 'true'", "fisher='own'"]),
        (lambda: nlb.FullFisher(8, sampler=is_half), ['needs fisher="true"', "'empirical'"]),
        (lambda: nlb.FullFisher(8, fisher="true", sampler=3), ["(y, y_pred, draws)", "sampler=3"]),
        (
            lambda: nlb.FullFisher(8, estimator="per_example"),
            ["'weighted', 'split'", "'per_example'"],
        ),
        (
            lambda: nlb.FullFisher(8, estimator="split", fisher="true"),
            ['"split" is the difference', 'estimator="weighted"'],
        ),
        (
            lambda: nlb.DiagonalFisher(8, estimator="halves"),
            ["'per_example', 'weighted'", "'halves'"],
        ),
        (lambda: nlb.DiagonalFisher(8, engine="fast"), ["'auto', 'layerwise'", "engine='fast'"]),
        (lambda: nlb.DiagonalFisher(8, conv="a5"), ["'exact', 'uncorrelated'", "conv='a5'"]),
        (
            lambda: nlb.DiagonalFisher(8, engine="vectorized_map", conv="uncorrelated"),
            ["for single layers", 'Use engine="layerwise"'],
        ),
        (lambda: nlb.DiagonalFisher(8, max_examples=0), ["whole batch", "max_examples=0"]),
        (
            lambda: nlb.DiagonalFisher(8, estimator="weighted", max_examples=4),
            ["`max_examples` is an option", "max_examples=4, estimator='weighted'"],
        ),
        (
            lambda: nlb.FisherTrace(8, estimator="split", engine="layerwise"),
            ["`engine` is", "'split'"],
        ),
        (
            lambda: nlb.FisherTrace(8, estimator="split", conv="uncorrelated"),
            ["`conv` is an option"],
        ),
        (lambda: nlb.KroneckerFactored(8, damping=0), ["singular", "damping=0"]),
        (lambda: nlb.KroneckerFactored(8, damping=-0.1), ["at least 0", "damping=-0.1"]),
        (lambda: nlb.KroneckerFactored(8, update_every=0), ["of updates", "update_every=0"]),
        (lambda: nlb.KroneckerFactored(8, max_examples=-1), ["max_examples=-1"]),
        (lambda: nlb.Isotropic(-1), ["standard deviation", "sigma=-1"]),
        (lambda: nlb.Multiplicative("a"), ["sigma='a'"]),
        (lambda: nlb.Multiplicative(1, form="batch"), ["'coordinate', 'example'", "form='batch'"]),
    ],
)
def test_bad_arguments(make, parts):
    with pytest.raises(ValueError) as raised:
        make()
    for part in parts:
        assert part in str(raised.value)
