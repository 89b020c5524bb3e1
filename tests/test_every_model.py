"""Noises that work for every model that Keras can train."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import dense, flat, perturb, total_gradient
from small_nets import (
    BRANCHED_LOSS,
    CROSSENTROPY,
    M,
    Subclassed,
    assert_same_training,
    branched_data,
    branched_net,
    plain_net,
    vectors,
)

import keras_noisylb as nlb

L = keras.layers


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
            model = nlb.NoisyModel(model, add_loss_reduction="mean")
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
    _, noise = nlb.noisy_gradients(
        model, loss, x, y, nlb.FullFisher(4, estimator="split"), 1, add_loss_reduction="mean"
    )
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


def test_a_subclassed_model_is_saved(tmp_path, rng):
    x, y = vectors(rng)
    model = nlb.NoisyModel(Subclassed())
    noise = nlb.DiagonalFisher(4, estimator="split")
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
