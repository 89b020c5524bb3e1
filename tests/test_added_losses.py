"""The model's own losses when a batch is computed in microbatches."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import assert_close, perturb, total_gradient
from small_nets import CROSSENTROPY, M, assert_same_training, crossentropy, plain_net, vectors

import keras_noisylb as nlb
from keras_noisylb.gradients.scope import Scope

L = keras.layers
SPLIT = nlb.FullFisher(2, estimator="split")


class Adds(L.Layer):
    """Adds two losses and calls a layer with an activity regulariser; may have one itself."""

    def __init__(self, reduction, **options):
        super().__init__(**options)
        self.reduce = {"mean": tf.reduce_mean, "sum": tf.reduce_sum}[reduction]
        self.inner = L.Dense(4, activity_regularizer="l2")

    def call(self, x):
        self.add_loss(self.reduce(tf.reduce_mean(tf.square(x), axis=1)))
        y = self.inner(x)
        self.add_loss(self.reduce(tf.reduce_mean(tf.abs(y), axis=1)))
        return y


def adding_net(reduction, **options):
    return keras.Sequential([
        keras.Input((5,)), L.Dense(4, "tanh", kernel_regularizer="l2"), Adds(reduction, **options),
        L.Dense(3),
    ])  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_microbatches_give_the_gradient_of_the_batch(reduction, float64, rng):
    model, (x, y) = adding_net(reduction, activity_regularizer="l1"), vectors(rng, 31)
    perturb(model, rng)
    expected = total_gradient(model, crossentropy(), x, y)
    # The layerwise engine records the same calls through its taps.
    for noise in (SPLIT, nlb.FisherTrace(2, engine="layerwise")):
        for num_microbatches in (1, 2, 3):
            gradients, _ = nlb.noisy_gradients(
                model,
                crossentropy(),
                x,
                y,
                noise,
                0,
                num_microbatches=num_microbatches,
                add_loss_reduction=reduction,
            )
            assert_close(gradients, expected)


def test_losses_are_told_apart(rng):
    model, (x, _) = adding_net("sum", activity_regularizer="l1"), vectors(rng, 7)
    scope = Scope(collect_losses=True)
    with scope, scope.telling_losses_apart(model):
        model(x)
    values = [v.numpy() for v in model.trainable_variables]
    hidden = np.tanh(x @ values[0] + values[1])
    y = hidden @ values[2] + values[3]
    added = [np.square(hidden).mean(1).sum(), np.abs(y).mean(1).sum()]
    assert_close(scope.added_losses, added, rtol=1e-5)
    regularised = [0.01 * np.square(y).sum() / 7, 0.01 * np.abs(y).sum() / 7]
    assert_close(scope.activity_losses, regularised, rtol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_they_train_as_in_keras(reduction, rng):
    x, y = vectors(rng, M + 7)
    results = []
    for wrapped in (False, True):
        keras.utils.set_random_seed(0)
        model = adding_net(reduction)
        if wrapped:
            model = nlb.NoisyModel(model, 3, add_loss_reduction=reduction)
        model.compile("sgd", CROSSENTROPY, jit_compile=False)
        history = model.fit(x, y, batch_size=M, epochs=2, shuffle=False, verbose=0).history
        results.append((model.get_weights(), history))
    assert_same_training(*results)


@pytest.mark.parametrize(
    ("noise", "num_microbatches"), [(SPLIT, None), (nlb.FullFisher(2, estimator="weighted"), 3)]
)
def test_what_cannot_be_known_is_refused(noise, num_microbatches, rng):
    network, (x, y) = adding_net("mean"), vectors(rng)
    model = nlb.NoisyModel(network, num_microbatches)
    model.compile(nlb.NoisyOptimizer(keras.optimizers.SGD(), noise), CROSSENTROPY, run_eagerly=True)
    with pytest.raises(ValueError, match=r"2 such term.*add_loss_reduction=None. Pass"):
        model.fit(x, y, batch_size=M, verbose=0)
    with pytest.raises(ValueError, match="2 such term"):
        nlb.diagnostics.gradient_variance(
            network, CROSSENTROPY, x, y, batch_size=10, noise=noise, draws=3,
            num_microbatches=num_microbatches or 1, verbose=0,
        )  # fmt: skip


def test_nothing_needs_to_be_known_of_a_whole_batch(rng):
    model, (x, y) = adding_net("sum"), vectors(rng)
    noise = nlb.DiagonalFisher(2, estimator="weighted")
    gradients, _ = nlb.noisy_gradients(model, CROSSENTROPY, x, y, noise, 0)
    assert_close(gradients, total_gradient(model, CROSSENTROPY, x, y), rtol=1e-4)


@pytest.mark.parametrize("value", ["max", 1, True])
def test_bad_reductions(value):
    with pytest.raises(ValueError, match="Received: add_loss_reduction="):
        nlb.NoisyModel(plain_net(), add_loss_reduction=value)


def test_it_is_saved():
    model = nlb.NoisyModel(plain_net(), add_loss_reduction="sum")
    assert nlb.NoisyModel.from_config(model.get_config()).add_loss_reduction == "sum"
