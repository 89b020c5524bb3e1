import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_noisylb.gradients.labels import label_sampler

M = 20_000
LOGITS = np.array([[2.0, 0.0, -1.0, 0.5], [0.0, 0.0, -40.0, 0.0], [-3.0, 1.0, 1.0, 0.0]], "float32")


class Draws:
    def __init__(self, seed=7):
        self.seeds = (tf.random.fold_in([seed, 0], n) for n in itertools.count())

    def normal(self, shape, dtype):
        return tf.random.stateless_normal(shape, next(self.seeds), dtype=dtype)

    def uniform(self, shape, dtype):
        return tf.random.stateless_uniform(shape, next(self.seeds), dtype=dtype)


def eager(loss, y, y_pred):
    return label_sampler(loss)(y, y_pred, Draws())


def graph(loss, y, y_pred, **options):
    call = tf.function(lambda y, y_pred: label_sampler(loss)(y, y_pred, Draws()), **options)
    return call(y, y_pred)


def jit(loss, y, y_pred):
    return graph(loss, y, y_pred, jit_compile=True)


def dynamic(loss, y, y_pred):
    specs = [tf.TensorSpec([None] * np.ndim(a), a.dtype) for a in (y, y_pred)]
    return graph(loss, y, y_pred, input_signature=specs)


def softmax(logits):
    exponential = np.exp(logits.astype("float64"))
    return exponential / exponential.sum(-1, keepdims=True)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits.astype("float64")))


def assert_frequencies(labels, probabilities):
    """The mean over the first axis against the probabilities, within 5 standard errors."""
    errors = np.sqrt(probabilities * (1 - probabilities) / len(labels))
    assert np.all(np.abs(labels.mean(0) - probabilities) <= 5 * errors + 1e-12)


def many(row):
    return np.repeat(row[None], M, axis=0)


SPARSE = keras.losses.SparseCategoricalCrossentropy
ONE_HOT = keras.losses.CategoricalCrossentropy


@pytest.mark.parametrize("run", [eager, graph, jit, dynamic])
@pytest.mark.parametrize("family", [SPARSE, ONE_HOT])
@pytest.mark.parametrize("from_logits", [True, False])
def test_class_frequencies(run, family, from_logits):
    probabilities = softmax(LOGITS)
    y_pred = LOGITS if from_logits else probabilities.astype("float32")
    y = np.zeros([M, 3] if family is SPARSE else [M, 3, 4], "int64")
    labels = run(family(from_logits=from_logits), y, many(y_pred)).numpy()
    one_hot = np.eye(4)[labels] if family is SPARSE else labels
    assert set(np.unique(one_hot)) == {0, 1} and np.all(one_hot.sum(-1) == 1)
    assert_frequencies(one_hot, probabilities)
    with pytest.raises(AssertionError):
        assert_frequencies(one_hot, softmax(1.2 * LOGITS))


@pytest.mark.parametrize("run", [eager, graph, jit, dynamic])
@pytest.mark.parametrize("from_logits", [True, False])
def test_bernoulli_frequencies(run, from_logits):
    probabilities = sigmoid(LOGITS)
    y_pred = LOGITS if from_logits else probabilities.astype("float32")
    loss = keras.losses.BinaryCrossentropy(from_logits=from_logits, label_smoothing=0.2)
    labels = run(loss, np.zeros([M, 3, 4], "float32"), many(y_pred)).numpy()
    assert set(np.unique(labels)) == {0, 1}
    assert_frequencies(labels, probabilities)
    with pytest.raises(AssertionError):
        assert_frequencies(labels, sigmoid(1.2 * LOGITS))
    pairs = np.corrcoef(labels.reshape(M, 12)[:, [0, 1, 3, 8, 9]].T) - np.eye(5)
    assert np.abs(pairs).max() < 5 / np.sqrt(M)


@pytest.mark.parametrize("run", [eager, graph, jit, dynamic])
def test_gaussian_moments(run):
    labels = run("mse", np.zeros([M, 3, 4], "float32"), many(LOGITS)).numpy().astype("float64")

    def assert_moments(variance):
        assert np.all(np.abs(labels.mean(0) - LOGITS) < 5 * np.sqrt(variance / M))
        spread = ((labels - LOGITS) ** 2).mean(0)
        assert np.all(np.abs(spread - variance) < 5 * variance * np.sqrt(2 / M))

    assert_moments(4 / 2)
    with pytest.raises(AssertionError):
        assert_moments(1.2 * 4 / 2)


@pytest.mark.parametrize(
    ("loss", "y_shape", "pred_shape"),
    [
        (SPARSE(from_logits=True, reduction=None), (), (4,)),
        (ONE_HOT(from_logits=True, reduction=None), (4,), (4,)),
        (keras.losses.BinaryCrossentropy(from_logits=True, reduction=None), (1,), (1,)),
        (keras.losses.MeanSquaredError(reduction=None), (3,), (3,)),
        (keras.losses.MeanSquaredError(reduction=None), (2, 3), (2, 3)),
        (keras.losses.MeanSquaredError(reduction=None), (3, 1), (3, 1)),
        (keras.losses.MeanSquaredError(reduction=None), (3, 1), (3,)),
        (keras.losses.MeanSquaredError(reduction=None), (3,), (3, 1)),
        (keras.losses.MeanSquaredError(reduction=None), (), (1,)),
        (keras.losses.MeanSquaredError(reduction=None), (1,), ()),
    ],
)
def test_mean_square_of_the_score_is_the_mean_curvature(loss, y_shape, pred_shape, rng):
    """Fisher's identity: it holds only if the loss is the labels' negative log likelihood."""
    row = rng.standard_normal(pred_shape).astype("float32")
    y_pred = tf.constant(many(row))
    y = label_sampler(loss)(tf.zeros([M, *y_shape]), y_pred, Draws())

    def derivatives(y, y_pred):
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(y_pred)
            with tf.GradientTape() as inner:
                inner.watch(y_pred)
                total = tf.reduce_sum(loss(y, y_pred))
            gradient = inner.gradient(total, y_pred)
            each = tf.unstack(tf.reshape(gradient, [-1])[: row.size])
        second = [tf.reshape(outer.gradient(g, y_pred), [-1])[i] for i, g in enumerate(each)]
        return gradient.numpy().reshape(len(y_pred), -1), np.array(second)

    squares = derivatives(y, y_pred)[0].astype("float64") ** 2
    curvature = derivatives(y[:1], y_pred[:1])[1]
    errors = squares.std(0) / np.sqrt(M)
    assert np.all(np.abs(squares.mean(0) - curvature) < 5 * errors)
    assert np.all(np.abs(1.2 * squares.mean(0) - curvature) > 5 * errors)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "float32", "float16"])
@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3), (5, 3, 1), (0,)])
@pytest.mark.parametrize("run", [eager, jit])
def test_shapes_and_dtypes_of_sparse_labels(shape, dtype, run, rng):
    leading = shape[:-1] if shape[-1] == 1 else shape
    sharp = rng.integers(4, size=leading)
    y_pred = 100 * np.eye(4, dtype="float32")[sharp]
    y = run(SPARSE(from_logits=True), tf.zeros(shape, dtype), y_pred)
    assert y.shape == shape and y.dtype == dtype
    np.testing.assert_array_equal(y.numpy().reshape(leading), sharp)


@pytest.mark.parametrize(
    ("loss", "dtype"),
    [
        (ONE_HOT(from_logits=True), "bool"),
        (ONE_HOT(from_logits=True), "float16"),
        (keras.losses.BinaryCrossentropy(from_logits=True), "bool"),
        (keras.losses.BinaryCrossentropy(from_logits=True), "int32"),
        (keras.losses.MeanSquaredError(), "float16"),
        (keras.losses.MeanSquaredError(), "float64"),
    ],
)
@pytest.mark.parametrize("output", ["float16", "bfloat16", "float32", "float64"])
def test_shapes_and_dtypes_of_dense_labels(loss, dtype, output):
    y_pred = tf.cast(LOGITS, output)
    y = label_sampler(loss)(tf.zeros([3, 4], dtype), y_pred, Draws())
    assert y.shape == (3, 4) and y.dtype == dtype


def test_outputs_in_half_precision_lose_no_probability():
    logits = np.concatenate([np.full(2000, 0.0), [np.log(2000.0)]]).astype("float16")
    labels = eager(SPARSE(from_logits=True), np.zeros(M, "int32"), many(logits)).numpy()
    assert_frequencies((labels == 2000)[:, None], softmax(logits)[-1:])


def test_static_shape_is_kept():
    @tf.function(input_signature=[tf.TensorSpec([None, 3, 1]), tf.TensorSpec([None, 3, 4])])
    def call(y, y_pred):
        sampled = label_sampler(SPARSE(from_logits=True))(y, y_pred, Draws())
        assert sampled.shape.as_list() == [None, 3, 1]
        return sampled

    assert call(tf.zeros([2, 3, 1]), tf.zeros([2, 3, 4])).shape == (2, 3, 1)


def test_ignored_labels_are_kept():
    y = np.where(np.arange(M) % 2, -1, 2)
    sampled = eager(SPARSE(from_logits=True, ignore_class=-1), y, many(LOGITS[2])).numpy()
    assert np.all(sampled[1::2] == -1)
    assert_frequencies(np.eye(4)[sampled[::2]], softmax(LOGITS[2]))


@pytest.mark.parametrize(
    ("name", "function", "instance"),
    [
        ("mse", keras.losses.mean_squared_error, keras.losses.MeanSquaredError()),
        ("MeanSquaredError", keras.losses.get("MSE"), keras.losses.MeanSquaredError(name="other")),
        (
            "sparse_categorical_crossentropy",
            keras.losses.sparse_categorical_crossentropy,
            SPARSE(reduction="sum"),
        ),
        (
            "categorical_crossentropy",
            keras.losses.categorical_crossentropy,
            ONE_HOT(label_smoothing=0.1),
        ),
        (
            "binary_crossentropy",
            keras.losses.binary_crossentropy,
            keras.losses.BinaryCrossentropy(label_smoothing=0.1, axis=1),
        ),
    ],
)
def test_ways_to_name_a_loss(name, function, instance):
    y_pred = softmax(LOGITS).astype("float32")
    y = np.zeros([3] if "sparse" in name else [3, 4], "float32")
    expected = eager(instance, y, y_pred)
    for loss in (name, function, type(instance)):
        np.testing.assert_array_equal(eager(loss, y, y_pred), expected)


def test_several_outputs():
    probabilities = many(softmax(LOGITS[0]).astype("float32"))
    y = {"a": np.zeros(M, "int64"), "b": np.zeros([M, 4], "float32"), "c": np.ones(M, "float32")}
    y_pred = {"a": probabilities, "b": probabilities, "c": probabilities}
    losses = {"b": "mse", "a": "sparse_categorical_crossentropy", "c": None}
    sampled = eager(losses, y, y_pred)
    assert list(sampled) == ["a", "b", "c"]
    assert_frequencies(np.eye(4)[sampled["a"]], softmax(LOGITS[0]))
    assert np.all(np.abs(np.var(sampled["b"], axis=0) - 2) < 5 * 2 * np.sqrt(2 / M))
    np.testing.assert_array_equal(sampled["c"], y["c"])

    in_order = eager([losses[k] for k in "abc"], tuple(y.values()), list(y_pred.values()))
    assert type(in_order) is tuple
    for key, values in zip("abc", in_order, strict=True):
        np.testing.assert_array_equal(values, sampled[key])

    graphed = graph(losses, y, y_pred)
    for key in "abc":
        np.testing.assert_allclose(graphed[key], sampled[key], rtol=1e-5, atol=1e-5)


def test_one_loss_for_all_outputs_draws_anew_for_each():
    y_pred = many(softmax(LOGITS[0]).astype("float32"))
    y = [np.zeros(M, "int64"), {"deep": np.zeros([M, 1], "int64")}]
    first, nested = eager("sparse_categorical_crossentropy", y, (y_pred, {"deep": y_pred}))
    assert nested["deep"].shape == (M, 1)
    for labels in (first, tf.squeeze(nested["deep"])):
        assert_frequencies(np.eye(4)[labels], softmax(LOGITS[0]))
    agree = (first == tf.squeeze(nested["deep"])).numpy()[:, None]
    assert_frequencies(agree, (softmax(LOGITS[0]) ** 2).sum(keepdims=True))


def test_a_list_of_one_loss_takes_a_tensor():
    y, y_pred = np.zeros([3, 4], "float32"), LOGITS
    np.testing.assert_array_equal(eager(["mse"], y, y_pred), eager("mse", y, y_pred))


class Subclass(keras.losses.MeanSquaredError):
    pass


@pytest.mark.parametrize(
    ("loss", "received"),
    [
        ("huber", "Received: <function huber"),
        ("crossentropy", "Received: 'crossentropy'"),
        (keras.losses.Poisson(), "Received: <.*[Pp]oisson"),
        (keras.losses.CategoricalFocalCrossentropy(), "Received: <.*focal"),
        (Subclass(), "Received: <"),
        (lambda y, y_pred: 0.0, "Received: <function <lambda>"),
        (None, "Received: None"),
        ({"a": "mse", "b": "mae"}, "Received: <function mean_absolute_error"),
    ],
)
def test_refuses_other_losses(loss, received):
    with pytest.raises(ValueError, match=received) as raised:
        label_sampler(loss)
    for expected in ("SparseCategoricalCrossentropy", "MeanSquaredError", "`sampler`", "y_pred"):
        assert expected in str(raised.value)


@pytest.mark.parametrize("family", [SPARSE, ONE_HOT])
def test_refuses_another_axis(family):
    with pytest.raises(ValueError, match=rf"Received: {family.__name__}\(axis=1\).*`sampler`"):
        label_sampler(family(axis=1))


def test_refuses_integers_for_real_labels():
    with pytest.raises(ValueError, match=r"dtype int64. Convert it"):
        eager("mse", np.zeros([3, 4], "int64"), LOGITS)


def test_refuses_outputs_that_do_not_match():
    y = np.zeros([3, 4], "float32")
    with pytest.raises(ValueError, match=r"loss for \['a'\], y for \['b'\], y_pred for \['b'\]"):
        eager({"a": "mse"}, {"b": y}, {"b": LOGITS})
    with pytest.raises(ValueError, match=r"loss for \[0, 1\], y for \[0, 1\], y_pred for \[0\]"):
        eager(["mse", "mse"], [y, y], [LOGITS])
