"""Ghost batch normalisation against Keras' own layer applied ghost by ghost."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_noisylb as nlb


def groups(batch, ghost):
    count = max(batch // ghost, 1)
    return np.arange(batch) * count // batch


def layer_pair(x, ghost, **options):
    ours = nlb.GhostBatchNormalization(ghost, **options)
    keras_layer = keras.layers.BatchNormalization(**{"momentum": 0.9, **options})
    rng = np.random.default_rng(0)
    for layer in (ours, keras_layer):
        layer.build(x.shape)
    weights = [rng.uniform(0.5, 2, w.shape) for w in ours.get_weights()]
    for layer in (ours, keras_layer):
        layer.set_weights(weights)
    return ours, keras_layer


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("shape", [(3,), (4, 5, 3), (5, 3)])
@pytest.mark.parametrize(("batch", "ghost"), [(12, 4), (13, 4), (3, 8), (7, 1), (1, 4)])
def test_equals_keras_ghost_by_ghost(batch, ghost, shape, axis, rng):
    x = 5 + 2 * rng.standard_normal((batch, *shape))
    ours, theirs = layer_pair(x, ghost, axis=axis)
    member = groups(batch, ghost)
    target = tf.constant(rng.standard_normal(x.shape))
    inputs = tf.constant(x)
    results = []
    for layer, parts in ((ours, [slice(None)]), (theirs, [member == k for k in set(member)])):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            pieces = [
                layer(
                    tf.boolean_mask(inputs, p) if p is not parts[0] or layer is theirs else inputs,
                    training=True,
                )
                for p in parts
            ]
            outputs = tf.concat(pieces, axis=0)
            value = tf.reduce_sum(tf.square(outputs - target) * outputs)
        gradients = tape.gradient(value, [inputs, layer.gamma, layer.beta])
        results.append([outputs, *gradients, *layer.get_weights()])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-12)
    ours.trainable = theirs.trainable = False
    np.testing.assert_allclose(ours(x, training=True), theirs(x, training=True), rtol=1e-12)


@pytest.mark.parametrize("jit", [False, True])
def test_unknown_batch_size_and_empty_batch(jit, rng):
    layer = nlb.GhostBatchNormalization(4)
    layer.build((None, 3))
    function = tf.function(
        lambda x: layer(x, training=True),
        input_signature=[tf.TensorSpec((None, 3))],
        jit_compile=jit,
    )
    for batch in (9, 2):
        x = rng.standard_normal((batch, 3)).astype("float32")
        np.testing.assert_allclose(function(x), layer(x, training=True), rtol=1e-4, atol=1e-5)
    before = layer.get_weights()
    if not jit:
        assert function(np.zeros((0, 3), "float32")).shape == (0, 3)
    for a, b in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_keeps_float32_statistics(policy, rng):
    x = (1000 + rng.standard_normal((64, 8))).astype("float32")
    layer = nlb.GhostBatchNormalization(16, dtype=policy)
    outputs = layer(x, training=True)
    assert keras.backend.standardize_dtype(outputs.dtype) == policy.removeprefix("mixed_")
    assert layer.moving_mean.dtype == "float32"
    assert np.isfinite(np.asarray(tf.cast(outputs, "float32"))).all()


def test_variance_survives_a_large_mean(rng):
    x = 1e4 + rng.standard_normal((64, 8))
    layer = nlb.GhostBatchNormalization(64)
    _, variance = layer.ghost_statistics(x.astype("float32"))
    np.testing.assert_allclose(variance[0], x.astype("float32").astype("float64").var(0), rtol=1e-3)


@pytest.mark.parametrize("axis", [-1, 1])
def test_reload(tmp_path, axis, rng):
    model = keras.Sequential([keras.Input((4, 5, 3)), nlb.GhostBatchNormalization(4, axis=axis)])
    x = rng.standard_normal((9, 4, 5, 3)).astype("float32")
    model(x, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].axis == axis
    np.testing.assert_array_equal(loaded(x, training=True), model(x, training=True))


def test_moving_statistics_stay_equal_on_replicas(rng):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        layer = nlb.GhostBatchNormalization(4)
        layer.build((None, 3))
    x = rng.standard_normal((16, 3)).astype("float32")
    halves = strategy.experimental_distribute_values_from_function(
        lambda context: x[context.replica_id_in_sync_group * 8 :][:8]
    )
    tf.function(lambda h: strategy.run(lambda v: layer(v, training=True), args=(h,)))(halves)
    values = [v.numpy() for v in strategy.experimental_local_results(layer.moving_mean.value)]
    np.testing.assert_array_equal(*values)
    expected = np.mean([ghost_average(half) for half in (x[:8], x[8:])], axis=0)
    np.testing.assert_allclose(values[0], expected, rtol=1e-4, atol=1e-6)


def ghost_average(x):
    moving = 0
    for ghost in (x[:4], x[4:]):
        moving = 0.9 * moving + 0.1 * ghost.mean(0)
    return moving


def test_replace_batch_norm(rng):
    inner = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.BatchNormalization(name="deep")])
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same")(inputs)
    model = keras.Model(inputs, keras.layers.BatchNormalization(name="norm")(inner(x)))
    x = rng.standard_normal((10, 8, 8, 3)).astype("float32")
    model(x, training=True)
    ghost = nlb.replace_batch_norm(model, ghost_batch_size=16)
    assert isinstance(ghost.get_layer("norm"), nlb.GhostBatchNormalization)
    np.testing.assert_allclose(ghost(x), model(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ghost(x, training=True), model(x, training=True), atol=1e-4)
    with pytest.warns(UserWarning, match="no batch normalisation"):
        nlb.replace_batch_norm(ghost, 16)

    class Subclassed(keras.Model):
        pass

    with pytest.raises(ValueError, match="subclassed"):
        nlb.replace_batch_norm(Subclassed(), 16)


@pytest.mark.parametrize(
    "options",
    [{"ghost_batch_size": 0}, {"ghost_batch_size": 2.5}, {"ghost_batch_size": 2, "axis": 0}],
)
def test_bad_arguments(options):
    with pytest.raises(ValueError, match="Received"):
        nlb.GhostBatchNormalization(**options)
