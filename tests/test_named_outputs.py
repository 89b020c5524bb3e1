"""Losses and metrics by the names of the outputs, as in plain Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_noisylb as nlb
from keras_noisylb.gradients.labels import label_sampler
from keras_noisylb.training.randomness import Draws

L = keras.layers
M = 16
LOSSES = {"p": "mse", "q": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}


def network(outputs):
    keras.utils.set_random_seed(0)
    x = keras.Input((4,))
    p, q = L.Dense(1, name="p")(x), L.Dense(3, name="q")(x)
    made = {"list": [p, q], "dict": {"q": q, "p": p}, "other names": {"b": p, "a": q}}
    return keras.Model(x, made[outputs])


def named(values, outputs):
    names = {"p": "b", "q": "a"} if outputs == "other names" else {"p": "p", "q": "q"}
    return {names[key]: value for key, value in values.items()}


def data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2 * M, 4)).astype("float32")
    return x, {"p": rng.standard_normal((2 * M, 1)), "q": rng.integers(0, 3, 2 * M)}


def fit(model, optimizer, outputs, targets, **loss_and_metrics):
    x, y = data()
    weight = {"p": np.linspace(0, 2, 2 * M), "q": np.linspace(1, 0, 2 * M)}
    y, weight = (named(v, outputs) if targets == "dict" else [v["p"], v["q"]] for v in (y, weight))
    if (outputs, targets) == ("list", "dict"):
        weight = None  # Keras cannot align them with the outputs
    model.compile(optimizer, run_eagerly=True, **loss_and_metrics)
    keras.utils.set_random_seed(1)
    history = model.fit(x, y, M, epochs=2, verbose=0, sample_weight=weight).history
    return history, model.evaluate(x, y, M, verbose=0, return_dict=True), model.get_weights()


CASES = [("list", "list"), ("list", "dict"), ("dict", "dict"), ("other names", "dict")]


@pytest.mark.parametrize("num_microbatches", [None, 2])
@pytest.mark.parametrize(("outputs", "targets"), CASES)
def test_losses_and_metrics_by_name(outputs, targets, num_microbatches):
    options = {
        "loss": named(LOSSES, outputs),
        "loss_weights": named({"p": 0.5, "q": 2.0}, outputs),
        "metrics": named({"p": ["mae"], "q": ["accuracy"]}, outputs),
        "weighted_metrics": named({"q": ["accuracy"]}, outputs),
    }
    plain = fit(network(outputs), keras.optimizers.SGD(0.1), outputs, targets, **options)
    optimizer = nlb.NoisyOptimizer(keras.optimizers.SGD(0.1), nlb.DiagonalFisher(4), noise_steps=0)
    model = nlb.NoisyModel(network(outputs), num_microbatches)
    noisy = fit(model, optimizer, outputs, targets, **options)
    for first, second in zip(plain[:2], noisy[:2], strict=True):
        assert list(first) == list(second) and len(first) > 4
        for key, value in first.items():
            np.testing.assert_allclose(value, second[key], rtol=1e-5, err_msg=key)
    for a, b in zip(plain[2], noisy[2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("by_name", [("loss",), ("y",), ("loss", "y")])
def test_labels_of_the_true_fisher_by_name(by_name):
    rng = np.random.default_rng(0)
    y_pred = [tf.constant(rng.standard_normal((M, size)), "float32") for size in (1, 3)]
    y = {"p": tf.zeros((M, 1)), "q": tf.zeros(M, "int32")}
    expected = label_sampler([*LOSSES.values()])([*y.values()], y_pred, Draws([1, 2]))
    loss = LOSSES if "loss" in by_name else [*LOSSES.values()]
    y = y if "y" in by_name else [*y.values()]
    sampled = label_sampler(loss, ["p", "q"])(y, y_pred, Draws([1, 2]))
    keras.tree.assert_same_structure(sampled, y)
    for a, b in zip(keras.tree.flatten(sampled), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.any(expected[0]) and np.any(expected[1])


@pytest.mark.parametrize(("outputs", "targets"), CASES)
def test_training_with_the_true_fisher_by_name(outputs, targets):
    noise = nlb.DiagonalFisher(4, estimator="weighted", fisher="true")
    found = []
    for noise_steps in (0, None):
        optimizer = nlb.NoisyOptimizer(
            keras.optimizers.SGD(0.1), noise, noise_steps=noise_steps, seed=5
        )
        model = nlb.NoisyModel(network(outputs))
        found.append(fit(model, optimizer, outputs, targets, loss=named(LOSSES, outputs))[2])
    assert np.abs(found[0][0] - found[1][0]).max() > 1e-4
