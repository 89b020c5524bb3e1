"""Small networks and data for tests of training."""

import keras
import numpy as np
import tensorflow as tf

import keras_noisylb as nlb
from keras_noisylb.gradients.accumulate import compute
from keras_noisylb.gradients.batch import Batch

L = keras.layers
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
M, GHOST = 30, 6


def plain_net():
    return keras.Sequential([keras.Input((5,)), L.Dense(4, activation="tanh"), L.Dense(3)])


def vectors(rng, size=M):
    return rng.standard_normal((size, 5)), rng.integers(0, 3, size)


def crossentropy(reduction="sum_over_batch_size"):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)


def statistic(model, x, y, kind, num_microbatches):
    target = nlb.gradients.objective(model, crossentropy())
    batch = Batch(tf.constant(x), tf.constant(y))
    return compute(target, batch, kind, None, num_microbatches).statistic


def assert_same_training(plain, in_parts, rtol=1e-5):
    for a, b in zip(plain[0], in_parts[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)
    assert plain[1].keys() == in_parts[1].keys()
    for key, values in plain[1].items():
        np.testing.assert_allclose(values, in_parts[1][key], rtol=1e-4, err_msg=key)


def branched_net():
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    hidden = L.Dense(5, "relu", kernel_regularizer="l2")(L.Concatenate()([a, b]))
    outputs = {"p": L.Dense(1, name="p")(hidden), "q": L.Dense(2, name="q")(hidden)}
    return keras.Model({"a": a, "b": b}, outputs)


def branched_data(rng, size):
    x = {"a": rng.standard_normal((size, 4)), "b": rng.standard_normal((size, 3))}
    return x, {"p": rng.standard_normal((size, 1)), "q": rng.integers(0, 2, size)}


BRANCHED_LOSS = {"p": "mse", "q": CROSSENTROPY}


def miniature(num_classes=10, input_shape=(8, 8, 3), ghost_batch_size=4):
    """All kinds of layers of the zoo in one small network."""
    x = inputs = keras.Input(input_shape)
    x = L.ReLU()(nlb.GhostBatchNormalization(ghost_batch_size)(L.Conv2D(4, 3, use_bias=False)(x)))
    shortcut = L.ZeroPadding2D(1)(L.MaxPooling2D(2)(x))
    x = L.Add()([shortcut, L.Conv2D(4, 3, strides=2, padding="same")(L.ZeroPadding2D(2)(x))])
    x = L.Flatten()(L.AveragePooling2D(2)(x))
    return keras.Model(inputs, L.Dense(num_classes)(L.Dropout(0.5)(L.ReLU()(L.Dense(5)(x)))))


class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.hidden, self.out = L.Dense(4, "relu"), L.Dense(3)

    def call(self, x):
        return self.out(self.hidden(x))
