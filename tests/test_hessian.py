"""Hessian-vector products, eigenvalues and traces against dense Hessians and closed forms."""

import doctest

import keras
import numpy as np
import pytest
import tensorflow as tf
from batch_norms import moved
from keras import layers
from oracle import assert_close, perturb

import keras_noisylb as nlb
from keras_noisylb.diagnostics import (
    Hessian,
    batches,
    hessian,
    hessian_trace,
    hessian_vector_product,
    largest_eigenvalues,
    spectrum,
)

CROSSENTROPY = keras.losses.sparse_categorical_crossentropy


def crossentropy(**options):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)


def mean_crossentropy(y, y_pred):
    return tf.reduce_mean(CROSSENTROPY(y, y_pred, from_logits=True))


def dense_hessian(model, loss, x, y, training=False):
    """The whole matrix, by differentiating every entry of the gradient of the whole data set."""
    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            value = loss(y, model(x, training=training))
        gradients = inner.gradient(value, variables)
        entries = tf.concat([tf.reshape(tf.convert_to_tensor(g), [-1]) for g in gradients], 0)
        entries = [entries[i] for i in range(len(entries))]
    zero = tf.UnconnectedGradients.ZERO
    rows = [outer.gradient(e, variables, unconnected_gradients=zero) for e in entries]
    return np.stack([np.concatenate([np.ravel(tf.convert_to_tensor(g)) for g in r]) for r in rows])


def by_products(operator):
    return np.stack([operator.matvec(unit) for unit in np.eye(operator.size)])


def mlp():
    return keras.Sequential([
        keras.Input((3,)),
        layers.Dense(4, activation="tanh"),
        layers.BatchNormalization(),
        layers.Dropout(0.5),
        layers.Dense(3),
    ])


def convnet():
    return keras.Sequential([
        keras.Input((6, 6, 1)),
        layers.Conv2D(2, 3, use_bias=False),
        nlb.GhostBatchNormalization(2),
        layers.ReLU(),
        layers.MaxPooling2D(2),
        layers.DepthwiseConv2D(2, activation="gelu"),
        layers.Flatten(),
        layers.Dense(3),
    ])


def recurrent():
    return keras.Sequential([
        keras.Input((4,), dtype="int32"),
        layers.Embedding(5, 2),
        layers.LSTM(2),
        layers.Dense(3),
    ])


def data(model, rng, count=7):
    shape = (count, *model.input_shape[1:])
    whole = model.inputs[0].dtype == "int32"
    return rng.integers(0, 5, shape) if whole else rng.normal(size=shape), rng.integers(0, 3, count)


@pytest.fixture
def problem(float64, rng):
    model = moved(mlp(), rng)
    return model, *data(model, rng)


@pytest.mark.parametrize("build", [mlp, convnet, recurrent])
def test_products_are_those_of_the_dense_hessian(build, float64, rng):
    model = moved(build(), rng)
    x, y = data(model, rng)
    expected = dense_hessian(model, mean_crossentropy, x, y)
    for batch_size in (3, 100):
        operator = Hessian(model, crossentropy(), x, y, batch_size=batch_size)
        assert_close([by_products(operator)], [expected])


@pytest.mark.parametrize(
    "loss",
    [
        crossentropy,
        lambda: crossentropy(reduction="sum"),
        lambda: crossentropy(reduction="none"),
        lambda: crossentropy(reduction="mean"),
        lambda: mean_crossentropy,
        lambda: lambda y, y_pred: CROSSENTROPY(y, y_pred, from_logits=True),
    ],
    ids=["mean over batch", "sum", "none", "mean", "scalar function", "vector function"],
)
def test_any_reduction_gives_the_mean_over_examples(loss, problem, rng):
    model, x, y = problem
    vectors = [rng.normal(size=v.shape) for v in model.trainable_variables]
    dense = dense_hessian(model, mean_crossentropy, x, y)
    operator = Hessian(model, loss(), x, y, batch_size=2)
    products = operator.product(vectors)
    assert [p.dtype for p in products] == ["float64"] * len(vectors)
    assert_close([operator.flatten(products)], [dense @ operator.flatten(vectors)])
    assert_close(hessian_vector_product(model, loss(), x, y, vectors, batch_size=4), products)


def test_linear_regression(float64, rng):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1, use_bias=False)])
    x = rng.normal(size=(9, 4))
    operator = Hessian(model, "mse", x, rng.normal(size=(9, 1)), batch_size=4)
    assert_close([by_products(operator)], [2 / 9 * x.T @ x])


def test_softmax_regression(float64, rng):
    model = moved(keras.Sequential([keras.Input((4,)), layers.Dense(3, use_bias=False)]), rng)
    x, y = rng.normal(size=(9, 4)), rng.integers(0, 3, 9)
    p = np.exp(x @ np.asarray(model.weights[0].value))
    p /= p.sum(axis=1, keepdims=True)
    outer = np.stack([np.diag(row) - np.outer(row, row) for row in p])
    expected = np.einsum("ni,nj,nkl->ikjl", x, x, outer).reshape(12, 12) / 9
    operator = Hessian(model, crossentropy(), x, y, batch_size=2)
    assert_close([by_products(operator)], [expected])
    pairs = largest_eigenvalues(model, crossentropy(), x, y, k=12, verbose=0)
    np.testing.assert_allclose(pairs.eigenvalues, np.linalg.eigvalsh(expected)[::-1], atol=1e-12)


def test_datasets_with_weights_and_empty_batches(problem, rng):
    model, x, y = problem
    weight = rng.uniform(size=7)

    def weighted(y, y_pred):
        return tf.reduce_mean(weight * CROSSENTROPY(y, y_pred, from_logits=True))

    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(3)
    empty = data.take(1).map(lambda x, y: (x[:0], y[:0]))
    operator = Hessian(model, crossentropy(), empty.concatenate(data))
    assert_close([by_products(operator)], [dense_hessian(model, mean_crossentropy, x, y)])
    data = tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(3)
    for reduction in ("sum_over_batch_size", "sum"):
        operator = Hessian(model, crossentropy(reduction=reduction), data)
        assert_close([by_products(operator)], [dense_hessian(model, weighted, x, y)])


@pytest.mark.parametrize("structure", [dict, list])
def test_nested_inputs_and_frozen_layers(structure, float64, rng):
    inputs = {"a": keras.Input((2,), name="a"), "b": keras.Input((3,), name="b")}
    x = {"a": rng.normal(size=(5, 2)), "b": rng.normal(size=(5, 3))}
    outputs = layers.Dense(2, activation="tanh")(layers.Concatenate()([*inputs.values()]))
    if structure is list:
        inputs, x = [*inputs.values()], [*x.values()]
    model = moved(keras.Model(inputs, layers.Dense(3)(outputs)), rng)
    model.layers[-2].trainable = False
    y = rng.integers(0, 3, 5)
    operator = Hessian(model, crossentropy(), x, y, batch_size=2)
    assert operator.size == 9
    assert_close([by_products(operator)], [dense_hessian(model, mean_crossentropy, x, y)])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("build", [mlp, convnet])
def test_the_model_stays_as_it_is(build, training, rng):
    model = moved(build(), rng)
    x, y = data(model, rng)
    before = [keras.ops.convert_to_numpy(v) for v in model.variables]
    operator = Hessian(model, crossentropy(), x, y, training=training)
    first, second = by_products(operator), by_products(operator)
    np.testing.assert_array_equal(first, second)  # one dropout mask
    np.testing.assert_allclose(first, first.T, atol=1e-5 * np.abs(first).max())
    for v, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(v, value)
    assert all(layer.trainable for layer in model.layers)


def test_training_mode_has_the_statistics_of_the_batch(float64, rng):
    model = moved(convnet(), rng)
    x, y = data(model, rng, count=5)
    expected = dense_hessian(model, mean_crossentropy, x, y, training=True)
    assert_close([by_products(Hessian(model, crossentropy(), x, y, training=True))], [expected])


def test_regularization_is_an_option(float64, rng):
    model = keras.Sequential([
        keras.Input((3,)),
        layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.5)),
        layers.ActivityRegularization(l2=0.25),
    ])
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(4, 2))
    model(x)
    without = by_products(Hessian(model, "mse", x, y, batch_size=3))
    difference = (
        by_products(Hessian(model, "mse", x, y, batch_size=3, regularization=True)) - without
    )
    ones = np.c_[x, np.ones(4)]  # kernel and bias; Keras divides the activities' norm by the batch
    expected = np.kron(2 * 0.25 * ones.T @ ones / 4, np.eye(2)) + np.diag([1.0] * 6 + [0.0] * 2)
    assert_close([difference], [expected])


def test_weights_are_read_at_each_product(problem, rng):
    model, x, y = problem
    operator = Hessian(model, crossentropy(), x, y)
    before = by_products(operator)
    perturb(model, rng)
    assert not np.allclose(by_products(operator), before)
    assert_close([by_products(operator)], [dense_hessian(model, mean_crossentropy, x, y)])


@pytest.mark.parametrize("k", [1, 3])
def test_largest_eigenvalues(k, problem):
    model, x, y = problem
    dense = dense_hessian(model, mean_crossentropy, x, y)
    values, vectors = np.linalg.eigh(dense)
    pairs = largest_eigenvalues(
        model, crossentropy(), x, y, k=k, tolerance=1e-10, verbose=0, batch_size=4
    )
    np.testing.assert_allclose(pairs.eigenvalues, values[::-1][:k], rtol=1e-9)
    flat = np.stack([np.concatenate([np.ravel(p) for p in v]) for v in pairs.eigenvectors])
    np.testing.assert_allclose(np.abs(flat @ vectors[:, ::-1][:, :k]), np.eye(k), atol=1e-7)
    for vector in pairs.eigenvectors:
        assert [p.shape for p in vector] == [v.shape for v in model.trainable_variables]
    residuals = np.linalg.norm(dense @ flat.T - flat.T * pairs.eigenvalues, axis=0)
    np.testing.assert_allclose(pairs.residuals, residuals, atol=1e-12)
    assert pairs.residuals.max() < 1e-8 * values[-1]
    assert 20 < pairs.num_products < 100


def test_largest_is_not_largest_in_magnitude(float64, rng):
    model = keras.Sequential([keras.Input((30,)), layers.Dense(1, use_bias=False)])
    x = np.diag(np.arange(1.0, 31))

    def concave(y, y_pred):
        return -tf.square(y_pred - y)

    pairs = largest_eigenvalues(model, concave, x, np.zeros((30, 1)), tolerance=1e-9, verbose=0)
    np.testing.assert_allclose(pairs.eigenvalues, [-2 / 30])


def test_a_linear_loss_has_no_curvature(float64, rng):
    model = keras.Sequential([keras.Input((30,)), layers.Dense(1)])
    x = rng.normal(size=(4, 30))
    pairs = largest_eigenvalues(model, lambda y, p: p, x, np.zeros((4, 1)), k=2, verbose=0)
    assert pairs.eigenvalues.tolist() == pairs.residuals.tolist() == [0.0, 0.0]
    assert hessian_trace(model, lambda y, p: p, x, np.zeros((4, 1)), verbose=0).mean == 0


def test_float32_reaches_its_tolerance(rng):
    model = moved(nlb.models.LeNet(3, input_shape=(16, 16, 1), ghost_batch_size=4), rng)
    x, y = rng.normal(size=(9, 16, 16, 1)).astype("float32"), rng.integers(0, 3, 9)
    first, second = (
        largest_eigenvalues(
            model, crossentropy(), x, y, tolerance=1e-5, seed=seed, verbose=0, batch_size=4
        )
        for seed in (0, 1)
    )
    assert first.residuals[0] < 1e-4 * first.eigenvalues[0]
    np.testing.assert_allclose(first.eigenvalues, second.eigenvalues, rtol=1e-5)


def test_trace(float64, rng):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1, use_bias=False)])
    x, count = rng.normal(size=(50, 4)), 400
    dense = 2 / 50 * x.T @ x
    estimate = hessian_trace(
        model, "mse", x, np.zeros((50, 1)), tolerance=0, max_samples=count, verbose=0
    )
    assert estimate.num_samples == count
    assert abs(estimate.mean - np.trace(dense)) < 5 * estimate.standard_error
    assert abs(estimate.mean - 1.2 * np.trace(dense)) > 5 * estimate.standard_error
    # The variance of zᵀHz for random signs.
    exact = np.sqrt(2 * np.sum((dense - np.diag(np.diag(dense))) ** 2) / count)
    assert 0.8 < estimate.standard_error / exact < 1.2


def test_trace_stops_at_the_tolerance(problem):
    model, x, y = problem
    arguments = (model, crossentropy(), x, y)
    loose = hessian_trace(*arguments, tolerance=0.2, max_samples=1000, verbose=0)
    assert 10 <= loose.num_samples < 1000
    assert loose.standard_error <= 0.2 * loose.mean
    assert loose == hessian_trace(*arguments, tolerance=0.2, max_samples=1000, verbose=0)
    assert loose != hessian_trace(*arguments, tolerance=0.2, max_samples=1000, seed=1, verbose=0)
    with pytest.warns(UserWarning, match="after 3 samples, above tolerance=0.0001"):
        hessian_trace(*arguments, tolerance=1e-4, max_samples=3, verbose=0)


def test_progress_is_shown_unless_asked_not_to(capsys, problem):
    model, x, y = problem
    for verbose in (0, 1):
        largest_eigenvalues(model, crossentropy(), x, y, verbose=verbose)
        hessian_trace(model, crossentropy(), x, y, tolerance=0, max_samples=4, verbose=verbose)
        shown = capsys.readouterr().out
        assert ("Hessian-vector products" in shown) == ("4/4" in shown) == bool(verbose)


def test_models_without_training_argument_and_unbuilt_models(float64, rng):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    x, y = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    model = Subclassed()
    operator = Hessian(model, "mse", x, y, batch_size=2)
    expected = dense_hessian(model, lambda y, p: tf.reduce_mean((y - p) ** 2), x, y)
    assert_close([by_products(operator)], [expected])


def dataset(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays)


ONES = np.ones((4, 3), "float32")
LABELS = np.ones(4, "int32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": ONES[:0], "y": LABELS[:0]}, r"at least one.*\(0, 3\)"),
        ({"x": ONES, "y": LABELS[:3]}, r"same number of examples.*\(4, 3\).*\(3,\)"),
        ({"x": ONES, "y": 1}, r"first axis.*\(\)"),
        ({"x": ONES}, "`y` is missing"),
        ({"x": ONES, "y": LABELS, "batch_size": 0}, "batch_size=0"),
        ({"x": dataset(ONES, LABELS).batch(2), "y": LABELS}, "leave `y` out"),
        ({"x": dataset(ONES, LABELS)}, r"dataset.batch\(256\)"),
        ({"x": dataset(ONES).batch(2)}, r"must yield \(x, y\)"),
        ({"x": dataset(ONES, LABELS).batch(2).repeat()}, r"Drop its `.repeat\(\)`"),
        ({"x": dataset(ONES, LABELS).batch(2).take(0)}, "dataset is empty"),
        ({"x": ONES * np.nan, "y": LABELS}, "not finite.*'sequential.*/kernel'"),
        ({"x": ONES, "y": LABELS, "loss": None}, "`loss` must be a keras loss.*None"),
        ({"x": ONES, "y": LABELS, "model": len}, "must be a keras.Model.*len"),
        ({"x": ONES, "y": LABELS, "k": 0}, "between 1 and the 39 parameters.*k=0"),
        ({"x": ONES, "y": LABELS, "k": 40}, "between 1 and the 39 parameters.*k=40"),
    ],
)
def test_errors(options, message):
    arguments = {"model": mlp(), "loss": crossentropy(), "verbose": 0, **options}
    with pytest.raises(ValueError, match=message):
        largest_eigenvalues(**arguments)


def test_more_errors(rng):
    model = mlp()
    x, y = data(model, rng)
    with pytest.raises(RuntimeError, match="max_products=10"):
        largest_eigenvalues(
            model, crossentropy(), x, y, tolerance=1e-14, max_products=10, verbose=0
        )
    with pytest.raises(ValueError, match="max_samples=1"):
        hessian_trace(model, crossentropy(), x, y, max_samples=1, verbose=0)
    with pytest.raises(ValueError, match=r"Expected: \[\(3, 4\).*Received: \[\(2,\)\]"):
        hessian_vector_product(model, crossentropy(), x, y, [np.ones(2)])
    model.trainable = False
    with pytest.raises(ValueError, match="has no trainable variables"):
        Hessian(model, crossentropy(), x, y)


@pytest.mark.parametrize("module", [batches, hessian])
def test_docstring_examples(module):
    assert doctest.testmod(module).failed == 0


def test_documented_example(capsys, rng):
    model = mlp()
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 3))
    names = {"keras": keras, "model": model, "x": x, "y": y, "x_train": x, "y_train": y}
    for function in (hessian_vector_product, largest_eigenvalues, hessian_trace):
        names[function.__name__] = function
        code = function.__doc__.split("```python")[1].split("```")[0]
        exec("\n".join(line.strip() for line in code.splitlines()), names)
    assert spectrum.KRYLOV_SIZE == 20 and len(names["products"]) == 6
