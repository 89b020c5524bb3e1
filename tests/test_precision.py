"""Half precision: statistics in float32, and training with every estimator."""

import functools

import keras
import numpy as np
import oracle
import pytest

import keras_noisylb as nlb

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
HALVES = ("mixed_float16", "mixed_bfloat16")
ESTIMATORS = ("per_example", "vectorized_map", "uncorrelated", "weighted", "split", "kfac")
M, M_S = 48, 8


@pytest.fixture(params=HALVES)
def half(request):
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


def network(policy):
    keras.utils.set_random_seed(0)
    return keras.Sequential([
        keras.Input((8, 8, 1)),
        L.Conv2D(4, 3, dtype=policy),
        nlb.GhostBatchNormalization(M_S, dtype=policy),
        L.ReLU(dtype=policy),
        L.Flatten(dtype=policy),
        L.Dense(3, dtype="float32"),
    ])


def data(rng):
    return rng.standard_normal((M, 8, 8, 1)).astype("float32"), rng.integers(0, 3, M)


def noise_of(name):
    if name == "kfac":
        return nlb.KroneckerFactored(M_S)
    options = {
        "vectorized_map": {"engine": "vectorized_map"},
        "uncorrelated": {"conv": "uncorrelated"},
    }
    estimator = name if name in {"weighted", "split"} else "per_example"
    return nlb.DiagonalFisher(M_S, estimator=estimator, **options.get(name, {}))


@pytest.mark.parametrize("engine", ["layerwise", "vectorized_map"])
def test_squares_are_taken_in_float32(engine, half, rng):
    x, y = data(rng)
    weights = np.full(M, 1e-4, "float32")  # the squares of such gradients are nothing in float16
    found = []
    for policy in (half, "float32"):
        model = network(policy)
        found.append(
            nlb.gradients.diagonal_fisher(model, LOSS, x, y, sample_weight=weights, engine=engine)
        )
    assert all(f.dtype == "float32" for f in found[0])
    assert 0 < max(float(keras.ops.max(f)) for f in found[1]) < 6e-8  # least float16 above 0
    for actual, expected in zip(*map(oracle.dense, found), strict=True):
        assert np.linalg.norm(actual - expected) < 0.1 * np.linalg.norm(expected)


def update(policy, noise, seed=0, eager=True):
    """How far one update moves the weights."""
    x, y = data(np.random.default_rng(0))
    model = nlb.NoisyModel(network(policy))
    optimizer = nlb.NoisyOptimizer(keras.optimizers.SGD(0.05), noise, seed=seed)
    model.compile(optimizer, LOSS, jit_compile=False, run_eagerly=eager)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (keras.config.dtype_policy().name == "mixed_float16")
    before = oracle.flat(model.trainable_variables)
    model.fit(x, y, batch_size=M, shuffle=False, verbose=0)
    return before - oracle.flat(model.trainable_variables)


@functools.cache
def in_float32(name, seed=0):
    """The update, and the noise in it."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    moved = update("float32", noise_of(name), seed)
    noise = moved - update("float32", nlb.Isotropic(0.0))
    keras.config.set_dtype_policy(policy)
    return moved, noise


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_trains_in_half_precision_as_in_float32(name, half):
    moved = update(half, noise_of(name), eager=False)
    expected, noise = in_float32(name)
    assert np.linalg.norm(moved - expected) < 0.05 * np.linalg.norm(noise)
    other = update(half, noise_of(name), seed=2)
    assert np.linalg.norm(other - expected) > np.linalg.norm(noise)


def test_off_is_off_in_half_precision(half, rng):
    """Step for step as Keras trains, scaled losses included."""
    x, y = data(rng)
    found = []
    for noisy in (False, True):
        model, optimizer = network(half), keras.optimizers.SGD(0.05, momentum=0.9)
        if noisy:
            model = nlb.NoisyModel(model)
            optimizer = nlb.NoisyOptimizer(optimizer, nlb.DiagonalFisher(M_S), noise_steps=0)
        model.compile(optimizer, LOSS, jit_compile=False)
        losses = model.fit(x, y, batch_size=M // 2, epochs=4, shuffle=False, verbose=0)
        found.append([*losses.history["loss"], *oracle.flat(model.weights)])
    np.testing.assert_allclose(found[1], found[0], rtol=0.01, atol=1e-3)
