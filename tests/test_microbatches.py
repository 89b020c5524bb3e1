"""Batches computed in microbatches."""

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
from keras_noisylb.gradients.accumulate import compute
from keras_noisylb.gradients.batch import Batch
from keras_noisylb.gradients.engines import squares
from keras_noisylb.gradients.kronecker import KroneckerFactors, factored_places
from keras_noisylb.gradients.layerwise import LayerwiseSquares
from keras_noisylb.gradients.microbatches import cut, ghost_sizes
from keras_noisylb.gradients.vectors import Split

L = keras.layers

NO_NOISE = nlb.Isotropic(0.0)


def boundaries(size, ghost):
    """The first row of every ghost, by the definition of the layer, and the end."""
    count = max(size // ghost, 1)
    ghosts = [i * count // size for i in range(size)]
    return [ghosts.index(k) for k in range(count)] + [size]


@pytest.mark.parametrize("dynamic", [False, True])
def test_microbatches_hold_whole_ghosts(dynamic):
    for num_microbatches in (1, 2, 3, 5, 8):
        for ghosts in ((), (1,), (4,), (6,), (4, 8), (4, 6)):
            for size in (0, 1, 2, 5, 8, 17, 23, 24, 31, 48, 50_000):
                microbatches = cut(tf.constant(size) if dynamic else size, num_microbatches, ghosts)
                number = int(microbatches.number)
                starts = [int(microbatches.start(k)) for k in range(number + 1)]
                rows = np.diff(starts)
                assert starts[0] == 0 and starts[-1] == size
                assert 1 <= number <= num_microbatches
                assert min(rows) > 0 or size == 0
                assert bool(microbatches.single) == (bool(ghosts) and number == 1)
                extra = {0} if microbatches.even else {0, 1}
                assert set(rows[1:] - int(microbatches.size)) <= extra
                for ghost in ghosts if 0 < size < 100 else ():
                    assert set(starts) <= set(boundaries(size, ghost))
                    if len(ghosts) == 1 and size % (ghost * num_microbatches) == 0:
                        assert set(rows) == {size // num_microbatches}


@pytest.mark.parametrize(("size", "num_microbatches"), [(12, 2), (13, 2), (31, 5), (7, 3), (1, 2)])
def test_contrast_is_the_scaled_difference_of_the_halves(size, num_microbatches, rng):
    g = rng.standard_normal(size)
    microbatches = cut(size, num_microbatches)
    bounds = [microbatches.start(k) for k in range(microbatches.number + 1)]
    parts = [g[a:b].sum() / size for a, b in itertools.pairwise(bounds)]
    actual = sum(float(microbatches.contrast(k)) * part for k, part in enumerate(parts))
    middle = bounds[(microbatches.number + 1) // 2]
    a, b = g[:middle], g[middle:]
    expected = np.sqrt(len(a) * len(b) / size) * (a.mean() - b.mean()) if size > 1 else 0.0
    assert actual == pytest.approx(expected, rel=1e-5)


def ghost_net(*sizes):
    hidden = [
        [L.Dense(4, use_bias=False), nlb.GhostBatchNormalization(size), L.Activation("tanh")]
        for size in sizes or (GHOST,)
    ]
    return keras.Sequential([keras.Input((5,)), *itertools.chain(*hidden), L.Dense(3)])


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
def test_microbatches_give_the_gradient_of_the_batch(make, data, weighted, reduction, float64, rng):
    model, (x, y), loss = make(), data(rng), crossentropy(reduction)
    perturb(model, rng)
    weight = rng.uniform(0, 2, y.shape) if weighted else None
    start = model.get_weights()
    expected = total_gradient(model, loss, x, y, weight)
    state = model.get_weights()
    for num_microbatches in (1, 2, 5):
        model.set_weights(start)
        gradients, _ = nlb.noisy_gradients(
            model, loss, x, y, NO_NOISE, 0, sample_weight=weight, num_microbatches=num_microbatches
        )
        assert_close(dense(gradients), expected)
        assert_close(model.get_weights(), state)


def half_gradients(model, x, y, middle):
    """The mean gradients of the two halves of a batch, which goes through the model whole."""
    gradients, start = [], model.get_weights()
    for rows in (slice(0, middle), slice(middle, None)):
        with tf.GradientTape() as tape:
            value = crossentropy()(y[rows], model(x, training=True)[rows])
        gradients.append(dense(tape.gradient(value, model.trainable_variables)))
        model.set_weights(start)
    return gradients


def computed(model, num_microbatches):
    """Function of a batch that gives gradient, difference of the halves and state."""
    target = nlb.gradients.objective(model, crossentropy())

    def compute_in_parts(x, y):
        batch = Batch(tf.convert_to_tensor(x), tf.convert_to_tensor(y))
        found = compute(target, batch, Split(), None, num_microbatches)
        return found.gradients, found.statistic, [value for _, value in found.state]

    return compute_in_parts


def assert_ghosts_are_kept(model, compute_in_parts, size, num_microbatches, rng):
    """Gradient, moving statistics and halves against those of the whole batch."""
    x, y = vectors(rng, size)
    gradients, statistic, state = compute_in_parts(x, y)
    microbatches = cut(size, num_microbatches, ghost_sizes(model))
    several = microbatches.number > 1
    middle = microbatches.start((microbatches.number + 1) // 2) if several else (size + 1) // 2
    halves = zip(*half_gradients(model, x, y, middle), strict=True)
    scale = np.sqrt(middle * (size - middle) / size)
    assert_close(statistic, [scale * (a - b) for a, b in halves], rtol=1e-6)  # float32 contrasts
    start = model.get_weights()
    assert_close(gradients, total_gradient(model, crossentropy(), x, y))
    assert_close(state, [v.numpy() for v in model.non_trainable_variables])
    model.set_weights(start)


@pytest.mark.parametrize(("ghosts", "size", "num_microbatches"), [
    ((6,), 17, 2), ((4,), 23, 3), ((4,), 23, 4), ((6,), 9, 2), ((6,), 4, 3), ((4, 8), 34, 3),
    ((4, 6), 24, 5), ((4, 6), 35, 2),
])  # fmt: skip
def test_microbatches_keep_the_ghosts_of_the_batch(ghosts, size, num_microbatches, float64, rng):
    model = ghost_net(*ghosts)
    perturb(model, rng)
    assert_ghosts_are_kept(model, computed(model, num_microbatches), size, num_microbatches, rng)


@pytest.mark.parametrize(
    ("jit_compile", "sizes"),
    [(False, (23, 24, 17, 9, 5)), pytest.param(True, (23,), marks=pytest.mark.slow)],
)
def test_ghosts_are_kept_in_a_graph_for_any_batch(jit_compile, sizes, float64, rng):
    model = keras.Sequential([
        keras.Input((5,)), L.Reshape((5, 1)), L.Dense(2), nlb.GhostBatchNormalization(4),
        L.Activation("tanh"), L.Flatten(), L.Dense(3),
    ])  # fmt: skip
    perturb(model, rng)
    specs = [tf.TensorSpec((None, 5), "float64"), tf.TensorSpec((None,), "int64")]
    compiled = tf.function(computed(model, 3), specs, jit_compile=jit_compile)
    for size in sizes:
        assert_ghosts_are_kept(model, compiled, size, 3, rng)


@pytest.mark.parametrize("engine", ["layerwise", "vectorized_map"])
@pytest.mark.parametrize("size", [17, 23])
def test_uneven_ghosts_give_the_same_mean_squares(engine, size, float64, rng):
    model, (x, y) = ghost_net(4), vectors(rng, size)
    perturb(model, rng)
    kind = squares(model, x, engine)
    assert_close(statistic(model, x, y, kind, 3), statistic(model, x, y, kind, 1))


def merging_net():
    """A model whose ghosts would be of parts of the examples."""
    return keras.Sequential([
        keras.Input((6,)), L.Lambda(lambda x: tf.reshape(x, (-1, 2)), output_shape=(2,)),
        nlb.GhostBatchNormalization(4),
        L.Lambda(lambda x: tf.reshape(x, (-1, 6)), output_shape=(6,)), L.Dense(3),
    ])  # fmt: skip


@pytest.mark.parametrize("rows", [24, None])
def test_ghosts_of_something_else_than_examples_are_refused(rows, rng):
    model = merging_net()
    specs = [tf.TensorSpec((rows, 6)), tf.TensorSpec((rows,), "int32")]

    @tf.function(input_signature=specs, autograph=False)
    def call(x, y):
        return nlb.noisy_gradients(model, CROSSENTROPY, x, y, NO_NOISE, 0, num_microbatches=2)

    with pytest.raises(ValueError, match="rows for") as raised:
        call(tf.zeros((24, 6)), tf.zeros(24, "int32"))
    assert "GhostBatchNormalization" in str(raised.value)


@pytest.mark.parametrize("engine", ["layerwise", "vectorized_map"])
def test_microbatches_give_the_same_mean_squares(engine, float64, rng):
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
    for num_microbatches in (2, 5):
        assert_close(statistic(model, x, y, kind, num_microbatches), expected)


def test_microbatches_give_the_statistics_of_one_example_at_a_time(float64, rng):
    model, (x, y) = plain_net(), vectors(rng, 31)
    perturb(model, rng)
    every = one_by_one(model, crossentropy(), x, y)
    layers = tuple(model.layers)
    for num_microbatches in (2, 5):
        microbatches = cut(31, num_microbatches)
        bounds = [microbatches.start(k) for k in range(microbatches.number + 1)]
        rows = [np.arange(a, b) for a, b in itertools.pairwise(bounds)]
        used = np.concatenate([r[: math.ceil(10 * len(r) / 31)] for r in rows])
        found = statistic(model, x, y, LayerwiseSquares(layers, max_examples=10), num_microbatches)
        assert_close(found, [np.square(g[used]).mean(0) for g in every])
        a, b = np.split(np.arange(31), [bounds[(microbatches.number + 1) // 2]])
        found = statistic(model, x, y, Split(), num_microbatches)
        scale = np.sqrt(len(a) * len(b) / 31)
        expected = [scale * (g[a].mean(0) - g[b].mean(0)) for g in every]
        assert_close(found, expected, rtol=1e-6)  # the contrast is a float32 number
        kind = KroneckerFactors(layers, factored_places(model), damping=0.1)
        _, roots = statistic(model, x, y, kind, num_microbatches)
        a = np.concatenate([x, np.ones((31, 1))], 1)
        covariance = a.T @ a / 31
        covariance += 0.1 * np.trace(covariance) / 6 * np.eye(6)
        np.testing.assert_allclose(roots[0][0] @ tf.transpose(roots[0][0]), covariance)


def fit_pair(make, loss, x, y, num_microbatches, noisy=False, compiled=None, **options):
    """Weights and histories of the plain model and of one in microbatches, with its noise off."""
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
    plain, in_parts = fit_pair(
        branched_net, BRANCHED_LOSS, x, y, num_microbatches, compiled=compiled,
        sample_weight=weights, validation_split=0.1, noisy=num_microbatches == 2,
    )  # fmt: skip
    assert_same_training(plain, in_parts)
    assert {"loss", "p_loss", "q_loss", "p_mae", "q_accuracy", "val_p_loss"} <= plain[1].keys()


@pytest.mark.parametrize("remainder", [1, 17])
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
def test_microbatches_compiled_by_xla(make, rng):
    x, y = vectors(rng, 31)
    compiled = {"jit_compile": True}
    results = fit_pair(make, CROSSENTROPY, x, y, 4, compiled=compiled, batch_size=31)
    assert_same_training(*results)


@pytest.mark.parametrize("run_eagerly", [True, False])
def test_masks_train_as_in_keras(run_eagerly, rng):
    def network():
        return keras.Sequential([
            keras.Input((4,)), L.Embedding(7, 3, mask_zero=True), L.Dense(3)
        ])  # fmt: skip

    x, y = sequences(rng, M + 1)
    plain, in_parts = fit_pair(
        network, crossentropy("mean_with_sample_weight"), x, y, 3,
        compiled={"metrics": ["accuracy"], "run_eagerly": run_eagerly},
    )  # fmt: skip
    assert_same_training(plain, in_parts)


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
