"""Batches in chunks, and noises that take every model that Keras can train."""

import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import assert_close, contributions, dense, flat, one_by_one, perturb, total_gradient

import keras_noisylb as nlb
from keras_noisylb.gradients.accumulate import compute
from keras_noisylb.gradients.batch import Batch, cut
from keras_noisylb.gradients.engines import squares
from keras_noisylb.gradients.kronecker import KroneckerFactors, factored_places
from keras_noisylb.gradients.layerwise import LayerwiseSquares
from keras_noisylb.gradients.vectors import Split

L = keras.layers
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
NO_NOISE = nlb.Isotropic(0.0)
M, GHOST = 30, 6


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


def plain_net():
    return keras.Sequential([keras.Input((5,)), L.Dense(4, activation="tanh"), L.Dense(3)])


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


def vectors(rng, size=M):
    return rng.standard_normal((size, 5)), rng.integers(0, 3, size)


def sequences(rng, size=M):
    return rng.integers(0, 7, (size, 4)), rng.integers(0, 3, (size, 4))


def crossentropy(reduction="sum_over_batch_size"):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)


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


def statistic(model, x, y, kind, num_chunks):
    target = nlb.gradients.objective(model, crossentropy())
    batch = Batch(tf.constant(x), tf.constant(y))
    return compute(target, batch, kind, None, num_chunks).statistic


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


def assert_same_training(plain, chunked, rtol=1e-5):
    for a, b in zip(plain[0], chunked[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)
    assert plain[1].keys() == chunked[1].keys()
    for key, values in plain[1].items():
        np.testing.assert_allclose(values, chunked[1][key], rtol=1e-4, err_msg=key)


def branched_net():
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    hidden = L.Dense(5, "relu", kernel_regularizer="l2")(L.Concatenate()([a, b]))
    outputs = {"p": L.Dense(1, name="p")(hidden), "q": L.Dense(2, name="q")(hidden)}
    return keras.Model({"a": a, "b": b}, outputs)


def branched_data(rng, size):
    x = {"a": rng.standard_normal((size, 4)), "b": rng.standard_normal((size, 3))}
    return x, {"p": rng.standard_normal((size, 1)), "q": rng.integers(0, 2, size)}


BRANCHED_LOSS = {"p": "mse", "q": CROSSENTROPY}


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


class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.hidden, self.out = L.Dense(4, "relu"), L.Dense(3)

    def call(self, x):
        return self.out(self.hidden(x))


class Tied(keras.layers.Layer):
    """Reads its input and writes its output with one matrix."""

    def build(self, shape):
        self.kernel = self.add_weight((shape[-1], 4), name="kernel")

    def call(self, x):
        return tf.matmul(tf.tanh(tf.matmul(x, self.kernel)), self.kernel, transpose_b=True)


class Penalised(keras.layers.Layer):
    def call(self, x):
        self.add_loss(0.1 * tf.reduce_mean(tf.square(x)))
        return x


class Compiled(keras.layers.Layer):
    def build(self, shape):
        self.kernel = self.add_weight((shape[-1], 4), name="kernel")

    @tf.function
    def multiply(self, x):
        return tf.nn.relu(tf.matmul(x, self.kernel))

    def call(self, x):
        return self.multiply(x)


def stack(shape, *layers):
    return keras.Sequential([keras.Input(shape), *layers, L.Dense(3)])


def shared_layers():
    x, layer = keras.Input((5,)), L.Dense(5, "tanh")
    return keras.Model(x, L.Dense(3)(layer(layer(x))))


def attention():
    x = keras.Input((4, 3))
    return keras.Model(x, L.Dense(3)(L.Flatten()(L.MultiHeadAttention(2, 2)(x, x))))


def ids(rng, size):
    return rng.integers(0, 7, (size, 4))


def normal(*shape):
    return lambda rng, size: rng.standard_normal((size, *shape)).astype("float32")


MODELS = {
    "batch norm": (
        lambda: stack((5,), L.Dense(4, use_bias=False), L.BatchNormalization()),
        normal(5),
    ),
    "dropout": (lambda: stack((5,), L.Dense(8), L.Dropout(0.4)), normal(5)),
    "lstm": (lambda: stack((3, 2), L.LSTM(2)), normal(3, 2)),
    "masked gru": (lambda: stack((4,), L.Embedding(7, 2, mask_zero=True), L.GRU(2)), ids),
    "attention": (attention, normal(4, 3)),
    "embedding": (lambda: stack((4,), L.Embedding(7, 2), L.Flatten()), ids),
    "shared": (shared_layers, normal(5)),
    "tied": (lambda: stack((5,), Tied()), normal(5)),
    "subclassed": (Subclassed, normal(5)),
    "separable": (
        lambda: stack((4, 4, 2), L.SeparableConv2D(2, 3), L.Flatten()),
        normal(4, 4, 2),
    ),
    "add_loss": (lambda: stack((5,), L.Dense(4), Penalised()), normal(5)),
    "tf.function": (lambda: stack((5,), Compiled()), normal(5)),
    "several": (branched_net, branched_data),
}
INTERACTING = {"batch norm", "dropout"}  # no gradient of an example alone


def model_and_data(name, size, rng):
    make, data = MODELS[name]
    keras.utils.set_random_seed(0)
    if name == "several":
        return make(), BRANCHED_LOSS, *data(rng, size)
    return make(), CROSSENTROPY, data(rng, size), rng.integers(0, 3, size)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains_and_off_is_off(name):
    size = 2 * M + 1
    estimator = "weighted" if name in {"lstm", "dropout", "several"} else "split"
    eagerly = name in {"masked gru", "embedding", "separable", "tied", "attention", "several"}
    results = []
    for wrapped in (False, True):
        model, loss, x, y = model_and_data(name, size, np.random.default_rng(0))
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
        if wrapped:
            noise = nlb.DiagonalFisher(4, estimator=estimator)
            model = nlb.NoisyModel(model)
            optimizer = nlb.NoisyOptimizer(optimizer, noise, noise_steps=0, seed=1)
        model.compile(optimizer, loss, jit_compile=False, run_eagerly=eagerly)
        history = model.fit(x, y, batch_size=M, verbose=0, shuffle=False).history
        results.append((model.get_weights(), history))
        if wrapped:
            model.optimizer.noise_steps = None
        model.fit(x, y, batch_size=M, verbose=0, shuffle=False)
        results.append(dense(model.trainable_variables))
    plain, plain_after, noisy, noisy_after = results
    assert_same_training(plain, noisy)
    assert all(np.isfinite(w).all() for w in noisy_after)
    differences = [np.abs(a - b).max() for a, b in zip(plain_after, noisy_after, strict=True)]
    # Attention's bias of the keys has no gradient, hence no noise.
    still = sum(d < 1e-4 for d in differences)
    assert still == (name == "attention")


def gradients_one_by_one(model, loss, x, y):
    rows = [total_gradient(model, loss, x[[i]], y[[i]], extra=False) for i in range(len(y))]
    return np.stack([flat(row) for row in rows])


@pytest.mark.parametrize("name", [name for name in MODELS if name not in INTERACTING | {"several"}])
def test_full_fisher_noise_of_every_model_is_made_of_its_gradients(name, rng):
    """Weighted: a combination of the g_i. Split: the scaled difference of the halves' means."""
    size = 12
    model, loss, x, y = model_and_data(name, size, rng)
    model(x)
    perturb(model, rng)
    every = gradients_one_by_one(model, loss, x, y)
    scale = float(nlb.noise_scale(size, 4))
    _, noise = nlb.noisy_gradients(model, loss, x, y, nlb.FullFisher(4, "split"), 1)
    difference = np.sqrt(size) / 2 * (every[:6].mean(0) - every[6:].mean(0))
    np.testing.assert_allclose(np.abs(flat(noise)), scale * np.abs(difference), 2e-3, 1e-6)
    _, noise = nlb.noisy_gradients(model, loss, x, y, nlb.FullFisher(4), 1)

    def outside(vector):
        weights, *_ = np.linalg.lstsq(every.T, vector, rcond=1e-6)
        return np.linalg.norm(vector - every.T @ weights) / np.linalg.norm(vector)

    assert outside(flat(noise)) < 1e-4
    assert outside(np.abs(flat(noise))) > 0.1


def test_the_weights_of_full_fisher_noise_are_standard_normal(rng):
    x, y = vectors(rng, 12)
    model = plain_net()
    every = gradients_one_by_one(model, CROSSENTROPY, x, y)
    found = []
    for seed in range(40):
        _, noise = nlb.noisy_gradients(model, CROSSENTROPY, x, y, nlb.FullFisher(4), seed)
        scaled = flat(noise) * np.sqrt(12) / float(nlb.noise_scale(12, 4))
        found.append(np.linalg.lstsq(every.T, scaled, rcond=1e-6)[0])
    found = np.stack(found)
    error = np.sqrt(2 / found.size)
    assert abs(found.mean()) < 5 / np.sqrt(found.size)
    assert abs(np.square(found).mean() - 1) < 5 * error
    assert abs(np.square(1.5 * found).mean() - 1) > 5 * error
    for weights, independent in ((found, True), (np.abs(found), False)):
        excess = np.square(weights.sum(1)).mean() / 12 - 1
        assert (abs(excess) < 5 * np.sqrt(2 / len(found))) == independent
    assert abs(np.corrcoef(found[:20].ravel(), found[20:].ravel())[0, 1]) < 5 / np.sqrt(240)


def linear_model():
    keras.utils.set_random_seed(0)
    return nlb.NoisyModel(keras.Sequential([keras.Input((6,)), L.Dense(8), L.Dense(10)]))


def compile_kronecker(model, learning_rate=1e-3):
    noise = nlb.KroneckerFactored(4, damping=0.1, update_every=3)
    optimizer = nlb.NoisyOptimizer(keras.optimizers.SGD(learning_rate), noise, seed=3)
    model.compile(optimizer, CROSSENTROPY, jit_compile=False)
    return model


def normal_numbers(noise, roots):
    """Z of the noise L_A Z L_G^T of each layer."""
    found = []
    for k, (root_a, root_g) in enumerate(roots):
        matrix = np.concatenate([noise[2 * k], noise[2 * k + 1][None]])
        found.append(np.ravel(np.linalg.solve(root_a, np.linalg.solve(root_g, matrix.T).T)))
    return np.concatenate(found)


def test_kronecker_factors_serve_several_updates(rng):
    model, rate = compile_kronecker(linear_model()), 1e-3
    history, numbers, fresh = [], [], []
    for step, size in enumerate((1.0, 10.0, 10.0, 3.0)):
        x, y = size * rng.standard_normal((M, 6)).astype("float32"), rng.integers(0, 10, M)
        before = dense(model.trainable_variables)
        gradient = total_gradient(model, CROSSENTROPY, x, y)
        kind = KroneckerFactors(tuple(model.model.layers), factored_places(model), damping=0.1)
        now = [tuple(map(np.asarray, pair)) for pair in statistic(model, x, y, kind, 1)[1]]
        model.train_on_batch(x, y)
        roots = [tuple(map(np.asarray, pair)) for pair in model.optimizer.stored[1]]
        history.append(roots)
        moved = zip(before, dense(model.trainable_variables), gradient, strict=True)
        noise = [((a - b) / rate - g) / float(nlb.noise_scale(M, 4)) for a, b, g in moved]
        if step in {1, 2}:
            numbers.append(normal_numbers(noise, roots))
            fresh.append(normal_numbers(noise, now))
            np.testing.assert_array_equal(roots[0][0], history[0][0][0])
            np.testing.assert_array_equal(roots[1][1], history[0][1][1])
        else:
            a = np.concatenate([x, np.ones((M, 1))], 1)
            covariance = a.T @ a / M
            covariance += 0.1 * np.trace(covariance) / 7 * np.eye(7)
            np.testing.assert_allclose(roots[0][0] @ roots[0][0].T, covariance, rtol=1e-4)
    assert np.abs(history[3][1][1] - history[0][1][1]).max() > 1e-3
    error = np.sqrt(2 / np.size(numbers))
    assert abs(np.square(numbers).mean() - 1) < 5 * error
    assert abs(np.square(fresh).mean() - 1) > 5 * error


def test_kronecker_factors_are_saved(tmp_path, rng):
    model = compile_kronecker(linear_model(), 0.05)
    data = [(rng.standard_normal((M, 6)), rng.integers(0, 10, M)) for _ in range(5)]
    for x, y in data[:2]:
        model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    resumed = keras.saving.load_model(tmp_path / "model.keras")
    for x, y in data[2:]:
        model.train_on_batch(x, y)
        resumed.train_on_batch(x, y)
    for a, b in zip(model.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_unbuilt_model_has_no_room_for_factors():
    with pytest.raises(ValueError, match="update_every=3"):
        compile_kronecker(nlb.NoisyModel(Subclassed()))


def test_a_subclassed_model_is_saved(tmp_path, rng):
    x, y = vectors(rng)
    model = nlb.NoisyModel(Subclassed())
    noise = nlb.DiagonalFisher(4, "split")
    model.compile(nlb.NoisyOptimizer(keras.optimizers.SGD(0.1), noise, seed=1), CROSSENTROPY)
    model.run_eagerly = True
    model.fit(x, y, batch_size=M, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", {"Subclassed": Subclassed})
    loaded.run_eagerly = True
    for trained in (model, loaded):
        trained.fit(x, y, batch_size=M, verbose=0, shuffle=False)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
