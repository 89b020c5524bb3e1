"""Models with custom code that couples the examples of a batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import assert_close, contributions, on_devices, perturb
from small_nets import CROSSENTROPY, M, crossentropy, plain_net, vectors

import keras_noisylb as nlb

L = keras.layers


class OwnBatchNorm(L.Layer):
    """Batch normalisation as a user writes it."""

    def build(self, shape):
        self.gamma = self.add_weight((shape[-1],), "ones")

    def call(self, x):
        mean, variance = tf.nn.moments(x, [0])
        return self.gamma * (x - mean) / tf.sqrt(variance + 1e-3)


class Gated(L.Layer):
    """Adds the batch mean times a trainable factor that is initially 0."""

    def build(self, shape):
        self.gate = self.add_weight((), "zeros")

    def call(self, x):
        return x + self.gate * tf.reduce_mean(x, axis=0)


class Coupling(keras.Model):
    """Couples the examples between its layers."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = L.Dense(4), L.Dense(3)

    def call(self, x):
        return self.out(tf.cumsum(self.hidden(x)))


def net(*layers):
    return keras.Sequential([keras.Input((5,)), L.Dense(4), *layers, L.Dense(3)])


def function(of, name):
    return L.Lambda(of, name=name)


COUPLED = {
    "Lambda 'centred'": lambda: net(function(lambda x: x - tf.reduce_mean(x, 0), "centred")),
    "Lambda 'first'": lambda: net(function(lambda x: x - x[:1], "first")),
    "Lambda 'next'": lambda: net(function(lambda x: x + tf.roll(x, -1, 0), "next")),
    "Lambda 'noise'": lambda: net(function(lambda x: x + tf.random.normal(tf.shape(x)), "noise")),
    "OwnBatchNorm 'inner'": lambda: net(
        nlb.GhostBatchNormalization(2), L.Dropout(0.5),
        keras.Sequential([L.Dense(4), OwnBatchNorm(name="inner")]), L.ReLU(),
    ),
    "Gated 'gated'": lambda: net(Gated(name="gated")),
    "Coupling '": Coupling,
}  # fmt: skip


@pytest.mark.parametrize("name", COUPLED)
def test_vectorized_map_refuses_them(name, rng):
    model, (x, y) = COUPLED[name](), vectors(rng)
    for _ in range(2):  # the second call raises the error too
        with pytest.raises(ValueError, match=f"the {name}.*couples the examples of a batch"):
            nlb.gradients.diagonal_fisher(model, CROSSENTROPY, x, y, engine="vectorized_map")
    with pytest.raises(ValueError, match=f"the {name}.*couples"):
        nlb.report(model, nlb.DiagonalFisher(4, engine="vectorized_map"), M, x=x)


@pytest.mark.parametrize("how", [
    {"jit_compile": True}, {"jit_compile": False}, {"run_eagerly": True}, "two devices",
])  # fmt: skip
def test_they_are_refused_however_a_step_runs(how, rng):
    x, y = vectors(rng)
    with on_devices(2 if how == "two devices" else 1).scope():
        model = nlb.NoisyModel(net(OwnBatchNorm()))
        noise = nlb.DiagonalFisher(4, engine="vectorized_map")
        options = {"jit_compile": False} if how == "two devices" else how
        optimizer = nlb.NoisyOptimizer(keras.optimizers.SGD(), noise)
        model.compile(optimizer, CROSSENTROPY, **options)
    data = tf.data.Dataset.from_tensor_slices((x.astype("float32"), y)).batch(M)
    with pytest.raises(ValueError, match=r"the OwnBatchNorm 'own_batch_norm.*couples"):
        model.fit(data, verbose=0)


class Ranked(L.Layer):
    """Processes every example separately, in ways that a careless check takes for coupling."""

    def call(self, x):
        ranked = tf.sort(x, axis=1) - tf.reduce_mean(x, axis=1, keepdims=True)
        return tf.reshape(tf.reshape(ranked, (-1, 2)), (-1, 4))  # no row for each example between


@pytest.mark.parametrize("dtype", ["float32", "float64", "mixed_float16", "mixed_bfloat16"])
def test_others_are_not_refused(dtype, rng):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        blocks = [L.Dense(64, "relu") for _ in range(12)]
        model = net(Ranked(), nlb.GhostBatchNormalization(4), *blocks, L.Dropout(0.5))
    finally:
        keras.config.set_dtype_policy(before)
    x, y = vectors(rng, 8)
    nlb.gradients.diagonal_fisher(model, CROSSENTROPY, x, y, engine="vectorized_map")


def test_other_inputs_are_not_refused(rng):
    words, flags = keras.Input((None,), dtype="int64"), keras.Input((), dtype="bool")
    embedded = L.GlobalAveragePooling1D()(L.Embedding(2, 4, mask_zero=True)(words))
    joined = L.Concatenate()([embedded, L.Reshape((1,))(L.Lambda(_as_float)(flags))])
    model = keras.Model([words, flags], L.Dense(3)(joined))
    x, y = [rng.integers(0, 2, (6, 7)), rng.integers(0, 2, 6) > 0], rng.integers(0, 3, 6)
    nlb.gradients.diagonal_fisher(model, CROSSENTROPY, x, y, engine="vectorized_map")


def _as_float(x):
    return tf.cast(x, "float32")


def test_what_cannot_be_run_on_random_numbers_is_said(rng):
    def only_small(x):
        with tf.control_dependencies([tf.debugging.assert_less(x, 0.0)]):
            return tf.identity(x)

    model = keras.Sequential([keras.Input((5,)), L.Lambda(only_small), L.Dense(3)])
    x, y = vectors(rng)
    with pytest.warns(UserWarning, match="could not be checked that the model treats every exam"):
        nlb.gradients.diagonal_fisher(model, CROSSENTROPY, -np.abs(x), y, engine="vectorized_map")


def test_it_is_checked_once(rng, monkeypatch):
    model, (x, y) = plain_net(), vectors(rng)
    nlb.gradients.diagonal_fisher(model, CROSSENTROPY, x, y, engine="vectorized_map")
    monkeypatch.delattr("keras_noisylb.gradients.coupling._compare")
    nlb.gradients.diagonal_fisher(model, CROSSENTROPY, x, y, engine="vectorized_map")


def test_layerwise_goes_through_the_coupling(float64, rng):
    """By definition (A.3) it computes contributions, which add up to the batch gradient."""
    model, (x, y) = (
        net(function(lambda x: tf.tanh(x - tf.reduce_mean(x, 0)), "centred")),
        vectors(rng),
    )
    perturb(model, rng)

    def forward(values, x):
        kernel, bias, kernel_2, bias_2 = values
        hidden = tf.einsum("mi,mij->mj", x, kernel) + bias
        hidden = tf.tanh(hidden - tf.reduce_mean(hidden, 0))
        return tf.einsum("mi,mij->mj", hidden, kernel_2) + bias_2

    every = contributions(forward, model.trainable_variables, crossentropy(), tf.constant(x), y)
    found = nlb.gradients.per_example_gradients(model, crossentropy(), x, y, engine="layerwise")
    assert_close(found, every)
