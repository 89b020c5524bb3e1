"""Batches in chunks."""

import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import assert_close, contributions, dense, one_by_one, perturb, total_gradient
from small_nets import (
    BRANCHED_LOSS,
    CROSSENTROPY,
    GHOST,
    M,
    assert_same_training,
    branched_data,
    branched_net,
    crossentropy,
    plain_net,
    statistic,
    vectors,
)

import keras_noisylb as nlb
from keras_noisylb.gradients.batch import cut
from keras_noisylb.gradients.engines import squares
from keras_noisylb.gradients.kronecker import KroneckerFactors, factored_places
from keras_noisylb.gradients.layerwise import LayerwiseSquares
from keras_noisylb.gradients.vectors import Split

L = keras.layers

NO_NOISE = nlb.Isotropic(0.0)


@pytest.mark.parametrize("dynamic", [False, True])
def test_chunks_hold_whole_ghosts(dynamic):
    for num_chunks in (1, 2, 3, 5, 8):
        for ghost in (1, 4, 6):
            for size in (0, 1, 2, 5, 8, 9, 23, 24, 30, 31, 47, 48):
                chunks = cut(tf.constant(size) if dynamic else size, num_chunks, ghost)
                number, first, rest = (int(n) for n in (chunks.number, chunks.first, chunks.size))
                assert first + (number - 1) * rest == size
                assert 1 <= number <= num_chunks
                assert min(first, rest) > 0 or size == 0
                if size >= 2 * ghost:
                    assert number >= 2 or num_chunks == 1
                    assert rest % ghost == 0
                    assert first >= ghost
                if size % (ghost * num_chunks) == 0 and size:
                    assert (number, first) == (num_chunks, rest)


@pytest.mark.parametrize(("size", "num_chunks"), [(12, 2), (13, 2), (31, 5), (7, 3), (1, 2)])
def test_contrast_is_the_scaled_difference_of_the_halves(size, num_chunks, rng):
    g = rng.standard_normal(size)
    chunks = cut(size, num_chunks, 1)
    bounds = [0, *range(chunks.first, size + 1, chunks.size)]
    parts = [g[a:b].sum() / size for a, b in itertools.pairwise(bounds)]
    actual = sum(float(chunks.contrast(k)) * part for k, part in enumerate(parts))
    middle = bounds[(chunks.number + 1) // 2]
    a, b = g[:middle], g[middle:]
    expected = np.sqrt(len(a) * len(b) / size) * (a.mean() - b.mean()) if size > 1 else 0.0
    assert actual == pytest.approx(expected, rel=1e-5)


def ghost_net():
    return keras.Sequential([
        keras.Input((5,)),
        L.Dense(4, use_bias=False),
        nlb.GhostBatchNormalization(GHOST),
        L.Activation("tanh"),
        L.Dense(3),
    ])


def regularised_net():
    return keras.Sequential([
        keras.Input((5,)),
        L.Dense(4, "tanh", kernel_regularizer="l2", activity_regularizer="l2"),
        L.ActivityRegularization(l1=0.1),
        L.Dense(3, bias_regularizer="l1"),
    ])


def masked_net():
    return keras.Sequential([
        keras.Input((4,)),
        L.Embedding(7, 3, mask_zero=True),
        L.GRU(3, return_sequences=True),
        L.Dense(3),
    ])


def sequences(rng, size=M):
    return rng.integers(0, 7, (size, 4)), rng.integers(0, 3, (size, 4))


@pytest.mark.parametrize(
    ("make", "data", "weighted", "reduction"),
    [
        (ghost_net, vectors, False, "sum_over_batch_size"),
        (ghost_net, vectors, True, "sum"),
        (plain_net, vectors, True, "sum_over_batch_size"),
        (regularised_net, vectors, True, "mean_with_sample_weight"),
        (masked_net, sequences, False, "sum_over_batch_size"),
        (masked_net, sequences, True, "mean_with_sample_weight"),
    ],
)
def test_chunks_give_the_gradient_of_the_batch(make, data, weighted, reduction, float64, rng):
    model, (x, y), loss = make(), data(rng), crossentropy(reduction)
    perturb(model, rng)
    weight = rng.uniform(0, 2, y.shape) if weighted else None
    start = model.get_weights()
    expected = total_gradient(model, loss, x, y, weight)
    state = model.get_weights()
    for num_chunks in (1, 2, 5):
        model.set_weights(start)
        gradients, _ = nlb.noisy_gradients(
            model, loss, x, y, NO_NOISE, 0, weight, num_microbatches=num_chunks
        )
        assert_close(dense(gradients), expected)
        assert_close(model.get_weights(), state)


@pytest.mark.parametrize("engine", ["layerwise", "vectorized_map"])
def test_chunks_give_the_same_mean_squares(engine, float64, rng):
    model, (x, y) = ghost_net(), vectors(rng)
    perturb(model, rng)
    kind = squares(model, x, engine)
    expected = [np.asarray(s) for s in statistic(model, x, y, kind, 1)]
    if engine == "layerwise":
        epsilon = model.layers[1].epsilon

        def forward(values, x):
            kernel, gamma, beta, kernel_2, bias_2 = values
            z = tf.einsum("mi,mij->mj", x, kernel)
            ghosts = tf.reshape(z, (-1, GHOST, 4))
            mean, variance = tf.nn.moments(ghosts, 1, keepdims=True)
            ghosts = (ghosts - mean) / tf.sqrt(variance + epsilon)
            hidden = tf.tanh(gamma * tf.reshape(ghosts, z.shape) + beta)
            return tf.einsum("mi,mij->mj", hidden, kernel_2) + bias_2

        every = contributions(forward, model.trainable_variables, crossentropy(), tf.constant(x), y)
        assert_close(expected, [np.square(g).mean(0) for g in every])
    for num_chunks in (2, 5):
        assert_close(statistic(model, x, y, kind, num_chunks), expected)


def test_chunks_give_the_statistics_of_one_example_at_a_time(float64, rng):
    model, (x, y) = plain_net(), vectors(rng, 31)
    perturb(model, rng)
    every = one_by_one(model, crossentropy(), x, y)
    layers = tuple(model.layers)
    for num_chunks in (2, 5):
        chunks = cut(31, num_chunks, 1)
        bounds = [0, *range(chunks.first, 32, chunks.size)]
        rows = [np.arange(a, b) for a, b in itertools.pairwise(bounds)]
        used = np.concatenate([r[: math.ceil(10 * len(r) / 31)] for r in rows])
        found = statistic(model, x, y, LayerwiseSquares(layers, max_examples=10), num_chunks)
        assert_close(found, [np.square(g[used]).mean(0) for g in every])
        a, b = np.split(np.arange(31), [bounds[(chunks.number + 1) // 2]])
        found = statistic(model, x, y, Split(), num_chunks)
        scale = np.sqrt(len(a) * len(b) / 31)
        expected = [scale * (g[a].mean(0) - g[b].mean(0)) for g in every]
        assert_close(found, expected, rtol=1e-6)  # the contrast is a float32 number
        kind = KroneckerFactors(layers, factored_places(model), damping=0.1)
        _, roots = statistic(model, x, y, kind, num_chunks)
        a = np.concatenate([x, np.ones((31, 1))], 1)
        covariance = a.T @ a / 31
        covariance += 0.1 * np.trace(covariance) / 6 * np.eye(6)
        np.testing.assert_allclose(roots[0][0] @ tf.transpose(roots[0][0]), covariance)


def fit_pair(make, loss, x, y, num_microbatches, noisy=False, compiled=None, **options):
    """Weights and histories of the plain model and of one in chunks, with its noise off."""
    options = {"batch_size": M, "epochs": 2, "verbose": 0, "shuffle": False, **options}
    results = []
    for wrapped in (False, True):
        keras.utils.set_random_seed(0)
        model, optimizer = make(), keras.optimizers.SGD(0.05, momentum=0.9)
        if wrapped:
            model = nlb.NoisyModel(model, num_microbatches=num_microbatches)
        if wrapped and noisy:
            noise = nlb.DiagonalFisher(4, estimator="split")
            optimizer = nlb.NoisyOptimizer(optimizer, noise, noise_steps=0)
        model.compile(optimizer, loss, **{"jit_compile": False, **(compiled or {})})
        history = model.fit(x, y, **options).history
        results.append((model.get_weights(), history))
    return results


@pytest.mark.parametrize("num_microbatches", [2, 5])
def test_several_outputs_train_as_in_keras(num_microbatches, rng):
    size = 2 * M + 7
    x, y = branched_data(rng, size)
    weights = {key: rng.uniform(0, 2, size) for key in y}
    compiled = {
        "loss_weights": {"p": 0.5, "q": 2.0},
        "metrics": {"p": "mae", "q": "accuracy"},
        "weighted_metrics": {"p": ["mae"], "q": ["accuracy"]},
        "run_eagerly": num_microbatches == 5,
    }
    plain, chunked = fit_pair(
        branched_net, BRANCHED_LOSS, x, y, num_microbatches, compiled=compiled,
        sample_weight=weights, validation_split=0.1, noisy=num_microbatches == 2,
    )  # fmt: skip
    assert_same_training(plain, chunked)
    assert {"loss", "p_loss", "q_loss", "p_mae", "q_accuracy", "val_p_loss"} <= plain[1].keys()


@pytest.mark.parametrize("remainder", [1, 12])
def test_ghost_batches_and_class_weights_train_as_in_keras(remainder, rng):
    def network():
        return keras.Sequential([
            keras.Input((4, 4, 1)),
            L.Conv2D(2, 3, use_bias=False, kernel_regularizer="l2"),
            nlb.GhostBatchNormalization(GHOST),
            L.ReLU(activity_regularizer="l2"),
            L.Flatten(),
            L.Dense(3),
        ])

    size = M + remainder
    x, y = rng.standard_normal((size, 4, 4, 1)), rng.integers(0, 3, size)
    compiled = {"metrics": ["accuracy"], "run_eagerly": remainder == 1}
    results = fit_pair(
        network, CROSSENTROPY, x, y, 5, compiled=compiled, class_weight={0: 1.0, 1: 3.0, 2: 0.5}
    )
    assert_same_training(*results)


def convolutional_net():
    return keras.Sequential([
        keras.Input((5,)), L.Reshape((5, 1)), L.Conv1D(2, 3, activation="tanh"), L.Flatten(),
        L.Dense(3),
    ])  # fmt: skip


@pytest.mark.parametrize("make", [plain_net, convolutional_net])
def test_chunks_compiled_by_xla(make, rng):
    x, y = vectors(rng, 31)
    compiled = {"jit_compile": True}
    results = fit_pair(make, CROSSENTROPY, x, y, 4, compiled=compiled, batch_size=31)
    assert_same_training(*results)


def test_masks_train_as_in_keras(rng):
    x, y = sequences(rng, M + 1)
    plain, chunked = fit_pair(
        masked_net, crossentropy("mean_with_sample_weight"), x, y, 3,
        compiled={"metrics": ["accuracy"], "run_eagerly": True},
    )  # fmt: skip
    assert_same_training(plain, chunked)


@pytest.mark.parametrize(("ghost", "message"), [(6, "num_microbatches=5"), (50, "microbatches=1")])
def test_more_microbatches_than_ghosts_raise(ghost, message, rng):
    model = nlb.NoisyModel(
        keras.Sequential([
            keras.Input((5,)), nlb.GhostBatchNormalization(ghost), L.Dense(3)
        ]),
        num_microbatches=6,
    )  # fmt: skip
    model.compile("sgd", CROSSENTROPY)
    x, y = vectors(rng)
    with pytest.raises(ValueError, match=message):
        model.fit(x, y, batch_size=M, verbose=0)


@pytest.mark.parametrize("number", [0, 2.0, True, "2"])
def test_bad_numbers_of_microbatches(number):
    with pytest.raises(ValueError, match="num_microbatches="):
        nlb.NoisyModel(plain_net(), num_microbatches=number)
