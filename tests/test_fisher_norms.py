"""Norms of the Fisher against the dense matrix, for every way to compute a Gram matrix."""

import dataclasses
import doctest

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from oracle import one_by_one, perturb

import keras_noisylb as nlb
from keras_noisylb.diagnostics import FisherNorms, batches, fisher, fisher_norms, gram, products
from keras_noisylb.gradients import RULES, LayerRule, blocks, rules


def mse(y, y_pred):
    return tf.reduce_mean(tf.square(y - y_pred), axis=tuple(range(1, len(y_pred.shape))))


def dense_norms(gradients):
    """From the matrix F itself, given a list of arrays with the examples first."""
    blocks = [np.reshape(g, (len(g), -1)).astype("float64") for g in gradients]
    fishers = [g.T @ g / len(g) for g in [*blocks, np.concatenate(blocks, axis=1)]]
    full = [np.linalg.norm(f) for f in fishers]
    diagonal = [np.linalg.norm(np.diag(f)) for f in fishers]
    trace = [np.trace(f) for f in fishers]
    return {
        "full": full[-1],
        "diagonal": diagonal[-1],
        "trace": trace[-1],
        "block_full": full[:-1],
        "block_diagonal": diagonal[:-1],
        "block_trace": trace[:-1],
    }


def assert_norms(found, gradients, rtol=1e-10):
    for name, expected in dense_norms(gradients).items():
        np.testing.assert_allclose(getattr(found, name), expected, rtol=rtol, err_msg=name)
    assert found.num_examples == len(gradients[0])


def measure(model, x, y, loss=mse, **options):
    return fisher_norms(model, loss, x, y, **{"verbose": 0, **options})


class Twice(layers.Layer):
    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(3, activation="tanh")

    def call(self, x):
        return self.inner(self.inner(x) + x)


class Unruly(layers.Layer):
    """A layer that no rule covers."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return tf.tanh(x * self.w)


def conv(**options):
    return layers.Conv2D(3, 2, activation="tanh", **options)


# Input shape, layers, and the ways that must be gone.
MODELS = {
    "dense": ((4,), lambda: [layers.Dense(3, activation="tanh"), layers.Dense(2)], "positions"),
    "sequence, long": ((9, 3), lambda: [layers.Dense(2)], "columns"),
    "sequence, short": ((2, 8), lambda: [layers.Dense(8)], "positions"),
    "conv, large": ((6, 6, 2), lambda: [conv(padding="same", strides=(1, 2))], "columns"),
    "conv, small": ((3, 3, 8), lambda: [conv(dilation_rate=2)], "positions"),
    "conv1d": ((5, 2), lambda: [layers.Conv1D(4, 3, padding="causal")], "columns"),
    "grouped": ((4, 4, 4), lambda: [layers.Conv2D(4, 2, groups=2)], "examples"),
    "depthwise": ((4, 4, 2), lambda: [layers.DepthwiseConv2D(2)], "examples"),
    "separable": ((4, 4, 2), lambda: [layers.SeparableConv2D(3, 2)], "examples"),
    "einsum": ((4, 3), lambda: [layers.EinsumDense("abc,cd->abd", (4, 2))], "examples"),
    "norm": ((4,), lambda: [layers.Dense(3), layers.LayerNormalization()], "positions"),
    "shared": ((4, 3), lambda: [Twice(), layers.Dense(2)], "columns"),
    "shared, short": ((3,), lambda: [Twice(), layers.Dense(2)], "positions"),
}


def sequential(shape, stack):
    return keras.Sequential([keras.Input(shape), *stack, layers.Flatten()])


def problem(shape, stack, rng, count=7):
    model = sequential(shape, stack)
    perturb(model, rng)
    return (
        model,
        rng.normal(size=(count, *shape)),
        rng.normal(size=(count, *model.output_shape[1:])),
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_layer(name, float64, rng, monkeypatch):
    shape, stack, way = MODELS[name]
    model, x, y = problem(shape, stack(), rng)
    gone = set()
    for each in ("positions", "columns", "examples"):
        function = getattr(gram, f"_by_{each}")
        monkeypatch.setattr(
            gram, f"_by_{each}", lambda *a, f=function, e=each: gone.add(e) or f(*a)
        )
    expected = one_by_one(model, mse, x, y)
    for batch_size in (3, 7):
        assert_norms(measure(model, x, y, batch_size=batch_size), expected)
    assert way in gone


def test_embedding(float64, rng):
    ids = keras.Input((4,), dtype="int32")
    table = layers.Embedding(5, 3)
    outputs = layers.Dense(2)(layers.Flatten()(table(ids) * table(ids[:, ::-1])))
    model = keras.Model(ids, outputs)
    perturb(model, rng)
    x, y = rng.integers(0, 5, (7, 4)), rng.normal(size=(7, 2))
    assert_norms(measure(model, x, y, batch_size=4), one_by_one(model, mse, x, y))


@pytest.mark.parametrize("name", ["sequence, long", "sequence, short", "conv, large", "grouped"])
def test_slices_are_small_and_change_nothing(name, float64, rng, monkeypatch):
    shape, stack, _ = MODELS[name]
    model, x, y = problem(shape, stack(), rng)
    largest, limit = [], 170
    monkeypatch.setattr(gram, "SLICE_BYTES", limit)
    monkeypatch.setattr(gram, "slice_size", lambda elements, dtype: max(limit // elements // 8, 1))

    def spy(name, measured):
        function = getattr(gram, name)

        def call(*tensors):
            result = function(*tensors)
            largest.append(tf.size(measured(tensors, result)).numpy() * 8)
            return result

        monkeypatch.setattr(gram, name, call)

    spy("_outer", lambda tensors, result: result)
    spy("_position_sums", lambda tensors, result: tensors[0])
    assert_norms(measure(model, x, y), one_by_one(model, mse, x, y))
    if name != "grouped":
        # All the kernel's per-example gradients together would be larger.
        assert max(largest) <= limit < 7 * 8 * model.count_params()
        assert len(largest) >= 2


def test_whoever_registers_a_rule_is_not_overruled(float64, rng, monkeypatch):
    model, x, y = problem((4,), [layers.Dense(3)], rng)
    doubled = LayerRule(
        lambda *a: {n: blocks.Shared([b, b]) for n, b in rules.dense(*a).items()},
        ("kernel", "bias"),
    )
    monkeypatch.setitem(RULES._rules, layers.Dense, doubled)
    expected = [2 * g for g in one_by_one(model, mse, x, y)]
    assert_norms(measure(model, x, y), expected)


@pytest.mark.parametrize("size", [2, 100])
def test_the_other_engine(size, float64, rng, monkeypatch):
    monkeypatch.setattr(products, "slice_size", lambda elements, dtype: size)
    model, x, y = problem((3,), [layers.Dense(2), Unruly(), layers.Dense(2)], rng)
    expected = one_by_one(model, mse, x, y)
    with pytest.warns(UserWarning, match="slow vectorized_map engine.*Unruly"):
        assert_norms(measure(model, x, y, batch_size=5), expected)
    with pytest.raises(ValueError, match="layerwise engine cannot treat"):
        measure(model, x, y, engine="layerwise")
    model, x, y = problem((3,), [layers.Dense(2)], rng)
    found = measure(model, x, y, engine="vectorized_map")
    assert_norms(found, one_by_one(model, mse, x, y))


@pytest.mark.parametrize("engine", ["layerwise", "vectorized_map"])
def test_ghost_statistics_are_those_of_each_batch(engine, float64, rng):
    model, x, y = problem(
        (3,), [layers.Dense(3), nlb.GhostBatchNormalization(2), layers.Dense(2)], rng, count=8
    )
    before = [keras.ops.convert_to_numpy(v) for v in model.variables]
    parts = [
        nlb.gradients.per_example_gradients(model, mse, x[rows], y[rows], engine=engine)
        for rows in (slice(4), slice(4, 8))
    ]
    expected = [np.concatenate(column) for column in zip(*parts, strict=True)]
    assert_norms(measure(model, x, y, batch_size=4, engine=engine), expected)
    for v, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(v, value)


def test_a_convolutional_network_in_float32(rng):
    model = nlb.models.LeNet(10, input_shape=(20, 20, 1), ghost_batch_size=8)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    x, y = rng.normal(size=(24, 20, 20, 1)).astype("float32"), rng.integers(0, 10, 24)
    gradients = nlb.gradients.per_example_gradients(model, loss, x, y)
    flat = [np.reshape(g, (24, -1)).astype("float64") for g in gradients]
    expected = np.linalg.norm(sum(g @ g.T for g in flat)) / 24
    assert measure(model, x, y, loss).full == pytest.approx(expected, 1e-6)


def test_closed_forms(float64, rng):
    # At θ = 0 with one output and ℓ_i = ½ (θ·x_i − y_i)², g_i = −y_i x_i.
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1, use_bias=False)])
    model.set_weights([np.zeros((3, 1))])
    x, y = rng.normal(size=(9, 3)), rng.normal(size=(9, 1))
    matrix = (y * x).T @ (y * x) / 9
    found = measure(model, x, y, lambda y, p: tf.square(p - y) / 2, batch_size=4)
    assert found.full == pytest.approx(np.linalg.norm(matrix), 1e-12)
    assert found.diagonal == pytest.approx(np.linalg.norm(np.diag(matrix)), 1e-12)
    assert found.trace == pytest.approx(np.trace(matrix), 1e-12)
    # F of one example has rank one.
    one = measure(model, x[:1], y[:1])
    assert one.full == pytest.approx(one.trace, 1e-12)
    assert one.paths == tuple(v.path for v in model.trainable_variables)


def test_reductions_weights_and_datasets(float64, rng):
    model, x, y = problem((4,), [layers.Dense(3)], rng)
    plain = measure(model, x, y, keras.losses.MeanSquaredError())
    for loss in ("mse", mse, keras.losses.MeanSquaredError(reduction="sum")):
        again = measure(model, x, y, loss, batch_size=3)
        np.testing.assert_allclose(again.block_full, plain.block_full, rtol=1e-12)
        assert again.full == pytest.approx(plain.full, 1e-12)
    weight = rng.uniform(size=7)
    data = tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(3)
    empty = data.take(1).map(lambda *parts: tuple(p[:0] for p in parts))
    expected = [g * weight.reshape(-1, *[1] * (g.ndim - 1)) for g in one_by_one(model, mse, x, y)]
    assert_norms(
        measure(model, empty.concatenate(data), None, keras.losses.MeanSquaredError()), expected
    )


def test_variables_without_gradient(float64, rng):
    inputs = keras.Input((3,))
    used = layers.Dense(2)(inputs)
    idle = layers.Dense(2)(inputs)
    model = keras.Model(inputs, [used, idle])
    x = rng.normal(size=(5, 3))
    y = [rng.normal(size=(5, 2))] * 2
    found = measure(model, x, y, lambda y, p: mse(y[0], p[0]))
    assert found.block_trace[:2].min() > 0
    assert found.block_full[2:].tolist() == found.block_diagonal[2:].tolist() == [0, 0]


ONES = np.ones((4, 3), "float32")
LABELS = np.ones((4, 2), "float32")


def small_model(value=1.0):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="dense")])
    model.set_weights([np.full((3, 2), value), np.zeros(2)])
    return model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": len}, "must be a keras.Model.*len"),
        ({"loss": None}, "`loss` must be a keras loss.*Received: None.*`model.loss`"),
        ({"loss": lambda y, p: tf.reduce_sum(y - p, axis=0)}, r"4 examples.*shape=\(2,\).*Return"),
        ({"loss": lambda y, p: {"a": 0.0}}, "scalar tensor.*Received: {'a': 0.0}"),
        ({"x": ONES[:0], "y": LABELS[:0]}, r"at least one.*\(0, 3\)"),
        ({"x": tf.data.Dataset.from_tensors((ONES, LABELS)).take(0), "y": None}, "is empty"),
        ({"model": small_model(np.nan)}, "6 NaN or infinite numbers in '.*dense/kernel'.*earlier"),
        ({"x": ONES * np.inf}, "Fisher is not finite.*dense/kernel.*Check the data"),
    ],
)
def test_errors(options, message):
    arguments = {"model": small_model(), "loss": "mse", "x": ONES, "y": LABELS, **options}
    with pytest.raises(ValueError, match=message):
        fisher_norms(**arguments, verbose=0)


def test_frozen_models_and_frozen_results():
    model = small_model()
    with pytest.raises(dataclasses.FrozenInstanceError):
        measure(model, ONES, LABELS).full = 0
    assert isinstance(measure(model, ONES, LABELS), FisherNorms)
    model.trainable = False
    with pytest.raises(ValueError, match="has no trainable variables"):
        measure(model, ONES, LABELS)


def test_progress_is_shown_unless_asked_not_to(capsys):
    for verbose in (0, 1):
        measure(small_model(), ONES, LABELS, batch_size=2, verbose=verbose)
        assert ("3/3" in capsys.readouterr().out) == bool(verbose)


@pytest.mark.parametrize("module", [batches, fisher])
def test_docstring_examples(module):
    result = doctest.testmod(module, extraglobs={"keras": keras})
    assert result.failed == 0 and result.attempted > 0
