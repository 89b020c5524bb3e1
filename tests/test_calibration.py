"""The temperature, the sharpness, and its invariances."""

import doctest

import keras
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import tensorflow as tf
from batch_norms import moved, norm
from keras import layers

from keras_noisylb.diagnostics import (
    Hessian,
    calibration,
    fit_temperature,
    fold_batch_norm,
    sharpness,
)

# --- the temperature


def test_temperature_of_two_classes():
    # The probability of the larger logit is the frequency with which it is right: 2 / T = log 3.
    assert fit_temperature([[2.0, 0.0]] * 4, [0, 0, 1, 0]) == pytest.approx(2 / np.log(3), 1e-12)


@pytest.mark.parametrize("form", ["integers", "column", "one-hot", "soft", "sequence"])
def test_temperature_minimises_the_crossentropy(form, rng):
    logits = 3 * rng.normal(size=(200, 5))
    y = np.argmax(logits + 2 * rng.gumbel(size=logits.shape), axis=1)
    target = np.eye(5)[y]
    if form == "soft":
        target = 0.8 * target + 0.04
    given = {"integers": y, "column": y[:, None], "sequence": y.reshape(20, 10)}.get(form, target)
    shaped = logits.reshape(20, 10, 5) if form == "sequence" else logits

    def crossentropy(t):
        return -np.mean(np.sum(target * scipy.special.log_softmax(logits / t, axis=1), axis=1))

    best = scipy.optimize.minimize_scalar(crossentropy, bounds=(0.1, 20), method="bounded").x
    temperature = fit_temperature(shaped, given)
    assert temperature == pytest.approx(best, 1e-4)
    for factor in (1e-3, 7.0, 1e4):
        shifted = factor * shaped + rng.normal(size=(*shaped.shape[:-1], 1))
        assert fit_temperature(shifted, given) == pytest.approx(factor * temperature, 1e-9)


def test_temperature_of_labels_drawn_at_a_temperature(rng):
    logits, count = 3 * rng.normal(size=(20000, 5)), 20000
    y = np.argmax(logits + 2 * rng.gumbel(size=logits.shape), axis=1)  # softmax(logits / 2)
    p = scipy.special.softmax(logits / 2, axis=1)
    variance = np.sum(p * logits**2, axis=1) - np.sum(p * logits, axis=1) ** 2
    error = 1 / np.sqrt(count * np.mean(variance))  # of 1 / T, by the Fisher information
    assert abs(1 / fit_temperature(logits, y) - 1 / 2) < 5 * error < abs(1 / 2.4 - 1 / 2)


LOGITS = np.array([[2.0, 0.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("logits", "y", "message"),
    [
        (LOGITS, [0, 1], "classified correctly.*test data"),
        (LOGITS, [1, 0], "no better than equal"),
        (0 * LOGITS, [1, 0], "no better than equal"),
        (scipy.special.softmax(LOGITS, 1), [1, 1], "are probabilities"),
        (LOGITS, [0, 1, 1], r"\(2, 2\) and \(3,\)"),
        (LOGITS[:, :1], [0, 0], r"\(2, 1\) and \(2,\)"),
        (LOGITS[0], 0, r"\(2,\) and \(\)"),
        (LOGITS, [0, 2], "between 0 and 1. Received: labels between 0 and 2"),
        (LOGITS, [-1, 1], "labels between -1 and 1"),
        (LOGITS[:0], np.zeros(0, int), "0 examples"),
        (LOGITS * np.nan, [0, 1], "4 values NaN or infinite"),
    ],
)
def test_temperatures_that_do_not_exist(logits, y, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, y)


# --- the sharpness


def crossentropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def classifier(epsilon=1e-3):
    return keras.Sequential([
        keras.Input((5, 5, 1)),
        layers.Conv2D(2, 3, name="conv", use_bias=False),
        norm(True, name="norm", epsilon=epsilon),
        layers.ReLU(),
        layers.Flatten(),
        layers.Dense(3, activation="relu", name="hidden"),
        layers.Dense(3, name="logits"),
    ])


def copied(model):
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def scaled(model, **factors):
    """A copy with variables multiplied: `scaled(model, conv_kernel=2)`."""
    copy = copied(model)
    for name, factor in factors.items():
        layer, variable = name.split("_", 1)
        v = getattr(copy.get_layer(layer), variable)
        v.assign(factor * v)
    return copy


@pytest.fixture
def problem(float64, rng):
    model = moved(classifier(epsilon=0.0), rng)
    x = rng.normal(size=(12, 5, 5, 1))
    logits = np.asarray(model(x))
    return model, x, np.argmax(logits + 2 * np.std(logits) * rng.normal(size=logits.shape), axis=1)


def measure(model, x, y, **options):
    options = {"tolerance": 1e-10, "verbose": 0, "batch_size": 5, **options}
    return sharpness(model, crossentropy(), x, y, **options)


def dense(model, x, y):
    operator = Hessian(model, crossentropy(), x, y)
    return np.stack([operator.matvec(unit) for unit in np.eye(operator.size)])


@pytest.mark.parametrize("fold_temperature", [False, True])
def test_sharpness_is_folding_temperature_and_eigenvalue(fold_temperature, problem, rng):
    model, x, y = problem
    before = [keras.ops.convert_to_numpy(v) for v in model.variables]
    x_test = rng.normal(size=(20, 5, 5, 1))
    y_test = np.argmax(np.asarray(model(x_test)) + rng.normal(size=(20, 3)), axis=1)
    folded = fold_batch_norm(model)
    temperature = fit_temperature(np.asarray(folded(x_test)), y_test)
    if fold_temperature:
        factor = 1 / temperature
        expected = dense(scaled(folded, logits_kernel=factor, logits_bias=factor), x, y)
    else:
        divided = keras.Model(folded.inputs[0], folded.outputs[0] / temperature)
        expected = dense(divided, x, y)
    for data in (
        (x_test, y_test),
        tf.data.Dataset.from_tensor_slices((x_test, y_test)).batch(7),
    ):
        result = measure(model, x, y, temperature_data=data, fold_temperature=fold_temperature, k=2)
        assert result.temperature == pytest.approx(temperature, 1e-10)
        values = np.linalg.eigvalsh(expected)[::-1][:2]
        np.testing.assert_allclose(result.eigenpairs.eigenvalues, values, rtol=1e-8)
        assert result.largest_eigenvalue == result.eigenpairs.eigenvalues[0]
    np.testing.assert_allclose(result.model(x), np.asarray(model(x)) / temperature, rtol=1e-9)
    for v, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(v, value)


def test_data_default_to_the_hessian_data(problem):
    model, x, y = problem
    temperature = measure(model, x, y).temperature
    assert measure(model, x, y, temperature_data=(x, y)).temperature == temperature
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    assert measure(model, data, None).temperature == pytest.approx(temperature, 1e-12)


def test_the_scale_of_weights_before_a_normalisation_is_removed(problem):
    model, x, y = problem
    larger = scaled(model, conv_kernel=3.0, norm_moving_mean=3.0, norm_moving_variance=9.0)
    np.testing.assert_allclose(larger(x), model(x), rtol=1e-9)
    value = measure(model, x, y).largest_eigenvalue
    assert measure(larger, x, y).largest_eigenvalue == pytest.approx(value, 1e-8)
    # Without folding the convolution's block is divided by 9.
    unfolded, divided = dense(model, x, y)[:18, :18], dense(larger, x, y)[:18, :18]
    np.testing.assert_allclose(9 * divided, unfolded, atol=1e-9 * np.abs(unfolded).max())


def test_the_scale_of_the_logits_layer_needs_the_temperature_in_its_weights(problem):
    model, x, y = problem
    larger = scaled(model, logits_kernel=3.0, logits_bias=3.0)
    one, other = (measure(m, x, y, fold_temperature=True) for m in (model, larger))
    assert other.temperature == pytest.approx(3 * one.temperature, 1e-9)
    assert other.largest_eigenvalue == pytest.approx(one.largest_eigenvalue, 1e-8)
    one, other = (measure(m, x, y) for m in (model, larger))
    np.testing.assert_allclose(one.model(x), other.model(x), rtol=1e-9)
    assert abs(other.largest_eigenvalue / one.largest_eigenvalue - 1) > 0.05
    blocks = [dense(result.model, x, y)[-12:, -12:] for result in (one, other)]
    np.testing.assert_allclose(9 * blocks[1], blocks[0], atol=1e-9 * np.abs(blocks[0]).max())


@pytest.mark.parametrize("fold_temperature", [False, True])
@pytest.mark.parametrize(
    "factors",
    [
        {"hidden_kernel": 0.01, "hidden_bias": 0.01, "logits_kernel": 100},
        {"norm_gamma": 0.01, "norm_beta": 0.01, "hidden_kernel": 100},
    ],
    ids=["between layers", "after a normalisation"],
)
def test_scales_handed_through_a_relu_are_not_removed(factors, fold_temperature, problem):
    model, x, y = problem
    other = scaled(model, **factors)
    np.testing.assert_allclose(other(x), model(x), rtol=1e-9)
    one, two = (measure(m, x, y, fold_temperature=fold_temperature) for m in (model, other))
    assert two.temperature == pytest.approx(one.temperature, 1e-9)
    # Of the same function: the block of the smaller layer has been multiplied by 100².
    assert two.largest_eigenvalue > 100 * one.largest_eigenvalue


def test_a_temperature_with_nowhere_to_go(problem):
    model, x, y = problem
    added = keras.Model(model.inputs[0], model.outputs[0] + 1.0)
    measure(added, x, y)
    with pytest.raises(ValueError, match=r"cannot be folded.*fold_temperature=False"):
        measure(added, x, y, fold_temperature=True)


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.SparseCategoricalCrossentropy(),
        keras.losses.BinaryCrossentropy(from_logits=True),
        "sparse_categorical_crossentropy",
        keras.losses.sparse_categorical_crossentropy,
    ],
)
def test_losses_without_softmax(loss, problem):
    model, x, y = problem
    with pytest.raises(ValueError, match="divides the logits of a softmax"):
        sharpness(model, loss, x, y)


def test_models_with_several_outputs(problem):
    model, x, y = problem
    two = keras.Model(model.inputs, [model.outputs[0], model.layers[1].output])
    with pytest.raises(ValueError, match="must have one output"):
        measure(two, x, y)


def test_an_empty_data_set_for_the_temperature(problem):
    model, x, y = problem
    empty = tf.data.Dataset.from_tensor_slices((x, y)).batch(4).take(0)
    with pytest.raises(ValueError, match="`temperature_data` is empty"):
        measure(model, x, y, temperature_data=empty)


def test_sharpness_passes_the_warnings_on(problem):
    model, x, y = problem
    model.layers[0].activation = keras.activations.relu
    for fold_temperature in (False, True):
        with pytest.warns(UserWarning, match="'conv' has an activation") as caught:
            measure(model, x, y, fold_temperature=fold_temperature)
        assert len(caught) == 1


def test_docstring_examples():
    result = doctest.testmod(calibration)
    assert result.failed == 0 and result.attempted > 0


def test_documented_example(problem, capsys):
    model, x, y = problem
    names = {"keras": keras, "sharpness": sharpness, "model": model}
    names |= {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    code = sharpness.__doc__.split("```python")[1].split("```")[0]
    exec("\n".join(line.strip() for line in code.splitlines()), names)
    assert str(names["result"].temperature) in capsys.readouterr().out
