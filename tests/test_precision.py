"""Half precision: statistics in float32, and training with every estimator."""

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
    return nlb.DiagonalFisher(M_S, estimator, **options.get(name, {}))


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


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_trains_in_half_precision(name, half, rng):
    x, y = data(rng)
    model = nlb.NoisyModel(network(half))
    optimizer = nlb.NoisyOptimizer(keras.optimizers.SGD(0.05), noise_of(name), seed=0)
    model.compile(optimizer, LOSS, jit_compile=False)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (half == "mixed_float16")
    losses = model.fit(x, y, batch_size=M, epochs=12, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert all(v.dtype == "float32" and np.isfinite(v).all() for v in model.trainable_variables)
