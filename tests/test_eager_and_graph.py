"""Eager and graph execution agree: random numbers, and the number of examples computed."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import assert_close, flat, perturb
from small_nets import CROSSENTROPY, crossentropy, plain_net, vectors

import keras_noisylb as nlb

L = keras.layers


@pytest.mark.parametrize("noise", [
    nlb.DiagonalFisher(4, estimator="weighted"), nlb.FisherTrace(4, fisher="true"),
])  # fmt: skip
def test_the_same_numbers_are_drawn(noise, float64, rng):
    model, (x, y) = plain_net(), vectors(rng)
    perturb(model, rng)

    def compute(seed):
        return nlb.noisy_gradients(model, crossentropy(), x, y, noise, seed, num_microbatches=3)

    in_graph = tf.function(compute)
    eager, other = compute(5), flat(compute(6)[1])
    for actual, expected in zip(in_graph(tf.constant(5)), eager, strict=True):
        assert_close(actual, expected, rtol=1e-6)
    assert np.abs(flat(eager[1]) - other).max() > 0.1 * np.abs(other).max()


def test_the_same_numbers_are_drawn_with_stored_factors(rng):
    x, y = vectors(rng, 64)
    weights = []
    for run_eagerly in (False, True):
        keras.utils.set_random_seed(0)
        model = nlb.NoisyModel(plain_net(), num_microbatches=3)
        noise = nlb.KroneckerFactored(4, update_every=2)
        optimizer = nlb.NoisyOptimizer(keras.optimizers.SGD(0.1), noise, seed=1)
        model.compile(optimizer, CROSSENTROPY, run_eagerly=run_eagerly, jit_compile=False)
        model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    assert_close(*weights, rtol=1e-4)


def test_weights_and_sample_are_independent():
    """With one seed, the numbers of the estimate are not those of the noise's own sample."""
    found = []

    class Keep(nlb.FullFisher):
        def sample(self, statistic, amplitude, draws):
            found.append(draws.normal((30,), "float32").numpy())
            return super().sample(statistic, amplitude, draws)

    class Sum(keras.losses.Loss):
        def call(self, y, y_pred):
            return 30 * y_pred[:, 0]

    model = keras.Sequential([keras.Input((30,)), L.Dense(1, use_bias=False)])
    x = np.eye(30, dtype="float32")  # every example has a weight of its own: v shows the w_i
    _, noise = nlb.noisy_gradients(model, Sum(), x, np.zeros(30), Keep(4, estimator="weighted"), 3)
    assert abs(np.corrcoef(found[0], np.ravel(noise[0]))[0, 1]) < 0.6  # 3 standard errors


class Seen(L.Layer):
    """Notes the number of examples of each call."""

    def __init__(self):
        super().__init__()
        self.supports_masking, self.rows = True, []

    def call(self, inputs):
        if tf.executing_eagerly():
            self.rows.append(inputs.shape[0])
        return inputs


@pytest.mark.parametrize("masked", [False, True])
def test_no_forward_pass_is_larger_than_a_microbatch(masked, rng):
    seen = Seen()
    embedding = [L.Embedding(7, 3, mask_zero=True)] if masked else []
    model = keras.Sequential([keras.Input((4,)), *embedding, seen, L.Dense(3)])
    x = rng.integers(0, 7, (30, 4))
    y = rng.integers(0, 3, (30, 4) if masked else 30)
    seen.rows.clear()
    noise = nlb.DiagonalFisher(4, estimator="weighted")
    nlb.noisy_gradients(model, CROSSENTROPY, x, y, noise, 0, num_microbatches=3)
    # The loss divides by the unmasked size of all microbatches, so later masks are needed first.
    assert seen.rows == [10] * (5 if masked else 3)
