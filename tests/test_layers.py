import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import on_devices

from keras_noisylb.layers import GhostBatchNormalization, replace_batch_norm


def slices(batch, ghost):
    """The ghosts as the definition has them: example i belongs to ghost i * G // B."""
    count = max(batch // ghost, 1)
    owner = np.array([i * count // batch for i in range(batch)])
    starts = [int(np.argmax(owner == g)) for g in range(count)]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], batch], strict=True)]


def pair(rng, shape, ghost, axis=-1, **options):
    """Ghost BN and Keras' BN with the same random weights."""
    options = {"axis": axis, "momentum": 0.8, "dtype": "float64"} | options
    layers = GhostBatchNormalization(ghost, **options), keras.layers.BatchNormalization(**options)
    features = shape[axis]
    weights = [rng.uniform(0.5, 2, features) for _ in range(4)]
    for layer in layers:
        layer.build(shape)
        layer.set_weights(weights)
    return layers


def outputs_and_gradients(function, x, upstream, layer):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
        value = tf.reduce_sum(upstream * tf.sin(y))
    return [y, *tape.gradient(value, [x, *(v.value for v in layer.trainable_variables)])]


SHAPES = [
    ((12, 5), -1),
    ((13, 5), 1),
    ((11, 3, 5), -1),
    ((8, 2, 3, 5), 3),
    ((14, 5, 2, 3), 1),
    ((3, 2, 2, 5), -1),  # less than a ghost
]


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_equals_keras_applied_ghost_by_ghost(shape, axis, jit_compile, rng):
    ghost_layer, keras_layer = pair(rng, shape, 4, axis)
    x, upstream = (tf.constant(rng.normal(2, 3, shape)) for _ in range(2))

    @tf.function(
        jit_compile=jit_compile,
        input_signature=[tf.TensorSpec((None, *shape[1:]), "float64")] * 2,
    )
    def actual(x, upstream):
        return outputs_and_gradients(
            lambda x: ghost_layer(x, training=True), x, upstream, ghost_layer
        )

    def by_ghost(x):
        return tf.concat([keras_layer(x[s], training=True) for s in slices(len(x), 4)], axis=0)

    expected = outputs_and_gradients(by_ghost, x, upstream, keras_layer)
    for a, e in zip(actual(x, upstream), expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-9)
    for a, e in zip(ghost_layer.get_weights(), keras_layer.get_weights(), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-12)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_the_public_pieces_make_up_the_call(shape, axis, rng):
    layer, _ = pair(rng, shape, 4, axis)
    x = tf.constant(rng.normal(2, 3, shape))
    mean, variance = layer.ghost_statistics(x)
    others = tuple(k for k in range(x.ndim) if k != axis % x.ndim)
    for s in slices(len(x), 4):
        for row in range(s.start, s.stop):
            np.testing.assert_allclose(mean[row], np.mean(x[s], axis=others))
            np.testing.assert_allclose(variance[row], np.var(x[s], axis=others))
    pieces = layer.scale_and_shift(layer.normalize(x, mean, variance))
    np.testing.assert_allclose(pieces, layer(x, training=True))


@pytest.mark.parametrize("shape", [(8, 2), (7, 2), (7, 3, 2)])
def test_second_derivatives(shape, rng):
    """Keras' own batch norm fails this: TensorFlow's moments stop a gradient on the way."""
    layer, _ = pair(rng, shape, 3)
    x, upstream = tf.constant(rng.normal(size=shape)), tf.constant(rng.normal(size=shape))

    def reference(x):
        parts = []
        for s in slices(len(x), 3):
            deviation = x[s] - tf.reduce_mean(x[s], axis=range(x.ndim - 1))
            variance = tf.reduce_mean(deviation**2, axis=range(x.ndim - 1))
            parts.append(deviation / tf.sqrt(variance + layer.epsilon))
        return tf.concat(parts, axis=0) * layer.gamma + layer.beta

    def hessian(function):
        with tf.GradientTape() as outer:
            outer.watch(x)
            gradient = outputs_and_gradients(function, x, upstream, layer)[1]
        return outer.jacobian(gradient, x)

    actual = hessian(lambda x: layer(x, training=True))
    np.testing.assert_allclose(actual, hessian(reference), rtol=1e-8, atol=1e-10)


def test_inference_is_plain_batch_norm_for_any_batch(rng):
    """Keras issue 15790: ghosts at inference."""
    ghost_layer, keras_layer = pair(rng, (None, 3, 3, 5), 4)
    for batch in (0, 1, 5, 8):
        x = rng.normal(size=(batch, 3, 3, 5))
        np.testing.assert_allclose(ghost_layer(x), keras_layer(x))
        np.testing.assert_allclose(ghost_layer(x, training=False), keras_layer(x))


def test_a_frozen_layer_is_in_inference(rng):
    layer, _ = pair(rng, (None, 5), 4)
    layer.trainable = False
    before, x = layer.get_weights(), rng.normal(size=(8, 5))
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))
    for a, b in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(0, 5), (0, 3, 3, 5)])
def test_an_empty_batch_changes_nothing(shape, rng):
    layer, _ = pair(rng, shape, 4)
    before = layer.get_weights()
    x = tf.zeros(shape, "float64")
    results = outputs_and_gradients(lambda x: layer(x, training=True), x, x, layer)
    assert results[0].shape == shape
    assert all(np.isfinite(r).all() for r in results)
    for a, b in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_ghosts_of_one_example_stay_finite():
    layer = GhostBatchNormalization(1)
    layer.build((None, 3))
    x = tf.random.normal((4, 3))
    results = outputs_and_gradients(lambda x: layer(x, training=True), x, x, layer)
    np.testing.assert_array_equal(results[0], np.zeros((4, 3)))
    assert all(np.isfinite(r).all() for r in results)


def test_a_large_mean_keeps_the_digits_of_the_variance(rng):
    x = (rng.normal(size=(64, 3)) + 1e4).astype("float32")
    layer = GhostBatchNormalization(16)
    layer.build(x.shape)
    exact = np.var(x.astype("float64").reshape(4, 16, 3), axis=1)
    np.testing.assert_allclose(layer.ghost_statistics(x)[1][::16], exact, rtol=1e-3)


def test_a_batch_too_large_for_32_bit_products():
    x = tf.random.normal((70_000, 1))  # times 35,000 ghosts
    layer = GhostBatchNormalization(2)
    layer.build(x.shape)
    expected = np.repeat(np.mean(np.reshape(x, (-1, 2)), axis=1), 2)
    np.testing.assert_allclose(layer.ghost_statistics(x)[0][:, 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_mixed_precision_has_float32_statistics(half, rng):
    # The squares are beyond float16, and so would be a sum over the ghost.
    x = tf.cast(rng.normal(500, 300, (16, 6, 6, 3)), half)
    layer = GhostBatchNormalization(8, dtype=f"mixed_{half}")
    reference = GhostBatchNormalization(8)
    y, expected = layer(x, training=True), reference(tf.cast(x, "float32"), training=True)
    assert y.dtype == half
    assert {v.dtype for v in layer.weights} == {"float32"}
    assert all(s.dtype == "float32" for s in layer.ghost_statistics(x))
    np.testing.assert_array_equal(y, tf.cast(expected, half))
    for a, e in zip(layer.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("axis", [1, -1])
def test_save_and_load(axis, rng, tmp_path):
    """Keras issue 16713: a layer that rewrites its own axis cannot be loaded."""
    options = {
        "momentum": 0.7,
        "epsilon": 1e-4,
        "beta_initializer": "ones",
        "gamma_regularizer": keras.regularizers.L2(1e-3),
        "beta_constraint": keras.constraints.MaxNorm(3),
    }
    layer = GhostBatchNormalization(4, axis=axis, name="norm", **options)
    model = keras.Sequential([keras.Input((5, 3, 2)), layer])
    x = rng.normal(size=(9, 5, 3, 2))
    model(x, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("norm").get_config() == layer.get_config()
    for training in (False, True):
        np.testing.assert_array_equal(loaded(x, training=training), model(x, training=training))


def test_fit_with_a_remainder(rng):
    model = keras.Sequential([
        keras.layers.Dense(6),
        GhostBatchNormalization(4),
        keras.layers.Dense(1),
    ])
    model.compile("sgd", "mse")
    losses = model.fit(
        rng.normal(size=(27, 5)), np.zeros((27, 1)), batch_size=10, epochs=5, verbose=0
    ).history["loss"]
    assert losses[-1] < losses[0]


def test_replicas_keep_equal_moving_statistics(rng):
    """9 examples in batches of 8: the last batch leaves one replica without any."""
    strategy = on_devices(2)
    x = rng.normal(2, 3, (9, 5)).astype("float32")
    with strategy.scope():
        layer = GhostBatchNormalization(2)
        model = keras.Sequential([keras.Input((5,)), layer])
        model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(x, x, batch_size=8, shuffle=False, verbose=0)

    moving_mean = np.zeros(5)
    for halves in ((x[:4], x[4:8]), (x[8:], x[9:])):
        after = []
        for half in halves:
            value = moving_mean
            for s in slices(len(half), 2) if len(half) else []:
                value = 0.9 * value + 0.1 * half[s].mean(axis=0)
            after.append(value)
        moving_mean = np.mean(after, axis=0)
    for replica in layer.moving_mean.value.values:
        np.testing.assert_allclose(replica, moving_mean, rtol=1e-5)
    first, second = layer.moving_variance.value.values
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(first).all()


@pytest.mark.parametrize("size", [0, -1, 2.5, True, None])
def test_refuses_a_bad_ghost_batch_size(size):
    with pytest.raises(ValueError, match=r"positive integer.*Received: ghost_batch_size="):
        GhostBatchNormalization(size)


def test_refuses_a_bad_axis():
    for axis in (0, [1]):
        with pytest.raises(ValueError, match="feature axis"):
            GhostBatchNormalization(4, axis=axis)
    for axis in (-2, 2):
        with pytest.raises(ValueError, match=r"after the batch axis.*Received: axis="):
            GhostBatchNormalization(4, axis=axis).build((8, 5))
    with pytest.raises(ValueError, match="known size"):
        GhostBatchNormalization(4).build((8, None))


def test_refuses_a_mask_in_training_and_hands_it_on_in_inference():
    embedded = keras.layers.Embedding(5, 3, mask_zero=True)(np.array([[1, 2, 0], [3, 0, 0]]))
    layer = GhostBatchNormalization(2)
    with pytest.raises(ValueError, match="not have a mask"):
        layer(embedded, training=True)
    np.testing.assert_array_equal(layer.compute_mask(embedded, [[True]]), [[True]])
    assert layer(embedded).shape == (2, 3, 3)


def small_model():
    inputs = keras.Input((6, 6, 2))
    block = keras.Sequential(
        [
            keras.layers.Conv2D(3, 3),
            keras.layers.BatchNormalization(momentum=0.6, gamma_regularizer="l2", name="inner"),
        ],
        name="block",
    )
    x = block(inputs)
    x = keras.layers.BatchNormalization(scale=False, name="outer")(x)
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)), name="small")


def test_replace_batch_norm(rng):
    model = small_model()
    model.set_weights([rng.uniform(0.5, 2, w.shape) for w in model.get_weights()])
    weights = model.get_weights()
    replaced = replace_batch_norm(model, ghost_batch_size=8)
    # Keras renames the inputs of what it clones.
    assert [v.path for v in replaced.weights] == [v.path for v in model.weights]
    inner = replaced.get_layer("block").get_layer("inner")
    assert isinstance(inner, GhostBatchNormalization)
    assert (inner.momentum, inner.ghost_batch_size) == (0.6, 8)
    x = rng.normal(size=(8, 6, 6, 2))
    for training in (False, True, False):  # the last: with the statistics that training moved
        np.testing.assert_allclose(
            replaced(x, training=training), model(x, training=training), rtol=1e-5, atol=1e-5
        )
    model.set_weights(weights)
    np.testing.assert_allclose(replaced.losses, model.losses)
    assert not np.allclose(replace_batch_norm(model, 4)(x, training=True), model(x, training=True))


def test_replace_batch_norm_in_a_sequential_model():
    model = keras.Sequential([keras.layers.Dense(3), keras.layers.BatchNormalization()])
    replaced = replace_batch_norm(model, 4)  # not built yet
    assert isinstance(replaced.layers[1], GhostBatchNormalization)
    assert replaced(np.ones((8, 2)), training=True).shape == (8, 3)


def test_replace_batch_norm_warns_where_there_is_none():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    with pytest.warns(UserWarning, match="no batch normalisation"):
        copy = replace_batch_norm(model, 4)
    np.testing.assert_array_equal(copy(np.ones((1, 2))), model(np.ones((1, 2))))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.norm = keras.layers.BatchNormalization(name="hidden")

    def call(self, inputs, training=None):
        return self.norm(inputs, training=training)


def test_replace_batch_norm_names_what_it_cannot_do():
    with pytest.raises(ValueError, match="cannot be copied layer by layer"):
        replace_batch_norm(Subclassed(), 4)
    keras_norm = keras.layers.BatchNormalization
    for layer in (
        keras.layers.TimeDistributed(keras_norm(name="hidden")),
        keras_norm(renorm=True, name="hidden"),
        keras_norm(synchronized=True, name="hidden"),
    ):
        model = keras.Sequential([keras.Input((4, 3)), layer])
        with pytest.raises(ValueError, match=r"cannot be replaced: hidden\."):
            replace_batch_norm(model, 4)
    with pytest.raises(ValueError, match="positive integer"):
        replace_batch_norm(small_model(), 0)
