"""Both engines against loops over single examples, in float64."""

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from keras import layers

import keras_noisylb as nlb
from keras_noisylb import gradients
from keras_noisylb.gradients import convolutions

pytestmark = pytest.mark.usefixtures("float64")
MSE = keras.losses.mean_squared_error
IMAGE, SEQUENCE = (8, 9, 4), (7, 4)


def image_net(*middle):
    return keras.Sequential([keras.Input(IMAGE), *middle, layers.Flatten(), layers.Dense(3)])


def sequence_net(*middle):
    return keras.Sequential([keras.Input(SEQUENCE), *middle, layers.Flatten(), layers.Dense(3)])


def shared():
    inputs, layer = keras.Input(SEQUENCE), layers.Dense(4, activation="tanh")
    convolution = layers.Conv1D(4, 3, padding="same")
    x = convolution(layer(convolution(layer(layer(inputs)))))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.nested = keras.Sequential([layers.Dense(5, activation="relu"), layers.Dense(4)])
        self.head = layers.Dense(3)

    def call(self, x):
        return self.head(keras.ops.sum(self.nested(x), axis=1))


def embedding():
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(5, 4)(inputs)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


BOTH = ("layerwise", "vectorized_map")
CASES = {
    "conv": (lambda: image_net(layers.Conv2D(6, 3, activation="tanh")), BOTH),
    "conv same": (lambda: image_net(layers.Conv2D(6, (2, 3), padding="same")), BOTH),
    "conv strides": (lambda: image_net(layers.Conv2D(6, 3, strides=(2, 3))), BOTH),
    "conv same strides": (lambda: image_net(layers.Conv2D(6, 3, 2, padding="same")), BOTH),
    "conv dilation": (lambda: image_net(layers.Conv2D(6, 3, dilation_rate=2)), BOTH),
    "conv groups": (lambda: image_net(layers.Conv2D(6, 3, groups=2, padding="same")), BOTH[:1]),
    "depthwise": (lambda: image_net(layers.DepthwiseConv2D(3, depth_multiplier=2)), BOTH),
    "depthwise strides": (lambda: image_net(layers.DepthwiseConv2D(3, 2, padding="same")), BOTH),
    "separable": (lambda: image_net(layers.SeparableConv2D(5, 3, activation="tanh")), BOTH),
    "norms": (
        lambda: image_net(
            layers.LayerNormalization(),
            layers.GroupNormalization(2),
            layers.RMSNormalization(),
            layers.LayerNormalization(axis=(1, 3)),
        ),
        BOTH,
    ),
    "conv1d causal": (
        lambda: sequence_net(layers.Conv1D(5, 3, padding="causal", dilation_rate=2)),
        BOTH,
    ),
    "conv1d same": (lambda: sequence_net(layers.Conv1D(5, 4, 2, padding="same")), BOTH),
    "dense sequence": (lambda: sequence_net(layers.Dense(5, activation="tanh")), BOTH),
    "einsum": (
        lambda: sequence_net(
            layers.EinsumDense("abc,cde->abde", (7, 2, 5), bias_axes="de"),
            layers.EinsumDense("...e,ef->...f", 3, bias_axes="f"),
        ),
        BOTH,
    ),
    "shared": (shared, BOTH),
    "subclassed": (Subclassed, BOTH),
    "embedding": (embedding, BOTH),
    "lstm": (lambda: sequence_net(layers.LSTM(4)), BOTH[1:]),
}


def data(model, rng, count=6):
    if model.name.startswith("functional") and model.inputs[0].dtype == "int32":
        return rng.integers(0, 5, (count, 7)), rng.standard_normal((count, 3))
    shape = SEQUENCE if isinstance(model, Subclassed) else model.inputs[0].shape[1:]
    return rng.standard_normal((count, *shape)), rng.standard_normal((count, 3))


@pytest.mark.parametrize("case", CASES)
def test_engines_equal_a_loop_over_examples(case, rng):
    build, engines = CASES[case]
    model = build()
    x, y = data(model, rng)
    model(x)
    oracle.perturb(model, rng)
    expected = oracle.one_by_one(model, MSE, x, y)
    fisher = [np.mean(g**2, axis=0) for g in expected]
    for engine in engines:
        actual = gradients.per_example_gradients(model, MSE, x, y, engine=engine)
        oracle.assert_close(actual, expected)
        oracle.assert_close(gradients.diagonal_fisher(model, MSE, x, y, engine=engine), fisher)


@pytest.mark.parametrize("engine", BOTH)
def test_few_examples(engine, rng):
    model = image_net(layers.Conv2D(6, 3, activation="tanh"))
    x, y = data(model, rng)
    expected = [np.mean(g**2, axis=0) for g in oracle.one_by_one(model, MSE, x[:4], y[:4])]
    few = gradients.diagonal_fisher(model, MSE, x, y, engine=engine, max_examples=4)
    oracle.assert_close(few, expected)


@pytest.mark.parametrize("engine", BOTH)
@pytest.mark.parametrize("budget", [1, 2000, 5000])
def test_slices_do_not_change_the_sums(engine, budget, rng, monkeypatch):
    model = image_net(layers.Conv2D(6, 3), layers.Dense(4))
    x, y = data(model, rng, count=7)
    expected = gradients.diagonal_fisher(model, MSE, x, y, engine=engine)
    monkeypatch.setattr("keras_noisylb.gradients.slices.SLICE_BYTES", budget)
    for jit in (False, True) if (engine, budget) == ("layerwise", 2000) else (False,):
        function = tf.function(
            lambda x, y: gradients.diagonal_fisher(model, MSE, x, y, engine=engine),
            jit_compile=jit,
            input_signature=[
                tf.TensorSpec((None, *IMAGE), "float64"),
                tf.TensorSpec((None, 3), "float64"),
            ],
        )
        oracle.assert_close(function(x, y), expected)


def test_uncorrelated_is_the_formula_of_a5(rng):
    model = image_net(layers.Conv2D(6, 3, 2, padding="same", activation="tanh"))
    x, y = data(model, rng)
    kernel = model.layers[0].kernel
    patches = tf.image.extract_patches(x, (1, 3, 3, 1), (1, 2, 2, 1), (1, 1, 1, 1), "SAME")
    with tf.GradientTape() as tape:
        z = tf.nn.conv2d(x, kernel, 2, "SAME") + model.layers[0].bias
        tape.watch(z)
        outputs = model.layers[2](model.layers[1](tf.tanh(z)))
        value = tf.reduce_mean(MSE(y, outputs))
    d = np.asarray(tape.gradient(value, z)) * len(y)
    expected = np.einsum("mhwp,mhwo->po", np.square(patches), np.square(d)) / len(y)
    actual = gradients.diagonal_fisher(model, MSE, x, y, conv="uncorrelated")
    oracle.assert_close(actual[:1], [expected.reshape(kernel.shape)])
    exact = gradients.diagonal_fisher(model, MSE, x, y)
    oracle.assert_close(actual[1:], exact[1:])
    assert not np.allclose(actual[0], exact[0], rtol=0.05)


def ghost_net():
    return keras.Sequential([
        keras.Input((4,)),
        layers.Dense(5),
        nlb.GhostBatchNormalization(3),
        layers.Activation("tanh"),
        layers.Dense(3),
    ])


def test_layerwise_on_ghost_batches_gives_contributions(rng):
    model = ghost_net()
    oracle.perturb(model, rng)
    x, y = rng.standard_normal((7, 4)), rng.standard_normal((7, 3))
    groups = np.arange(7) * 2 // 7

    def forward(values, x):
        w1, b1, gamma, beta, w2, b2 = values
        z = tf.einsum("mi,mij->mj", x, w1) + b1
        parts = []
        for k in range(2):
            ghost = z[groups == k]
            mean, variance = tf.nn.moments(ghost, axes=[0])
            parts.append((ghost - mean) / tf.sqrt(variance + 1e-3))
        z = tf.tanh(tf.concat(parts, axis=0) * gamma + beta)
        return tf.einsum("mi,mij->mj", z, w2) + b2

    expected = oracle.contributions(forward, model.trainable_variables, MSE, x, y)
    actual = gradients.per_example_gradients(model, MSE, x, y, engine="layerwise")
    oracle.assert_close(actual, expected)
    mean = [np.mean(g, axis=0) for g in actual]
    oracle.assert_close(mean, oracle.batch_gradient(model, MSE, x, y))


def test_vectorized_map_on_ghost_batches_holds_the_statistics(rng):
    model = ghost_net()
    oracle.perturb(model, rng)
    x, y = rng.standard_normal((7, 4)), rng.standard_normal((7, 3))
    norm = model.layers[1]
    mean, variance = norm.ghost_statistics(model.layers[0](x))
    rows = []
    for i in range(7):
        with tf.GradientTape() as tape:
            z = (model.layers[0](x[i : i + 1]) - mean[i]) / tf.sqrt(variance[i] + 1e-3)
            outputs = model.layers[3](tf.tanh(z * norm.gamma + norm.beta))
            value = tf.reduce_mean(MSE(y[i : i + 1], outputs))
        rows.append(oracle.dense(tape.gradient(value, model.trainable_variables)))
    expected = [np.stack(column) for column in zip(*rows, strict=True)]
    actual = gradients.per_example_gradients(model, MSE, x, y, engine="vectorized_map")
    oracle.assert_close(actual, expected)


@pytest.mark.parametrize("engine", BOTH)
def test_dropout_uses_the_masks_of_the_batch(engine, rng):
    model = keras.Sequential([keras.Input((50,)), layers.Dropout(0.5), layers.Dense(3)])
    x, y = np.ones((6, 50)), rng.standard_normal((6, 3))
    kernel, bias = gradients.per_example_gradients(model, MSE, x, y, engine=engine)
    mask = np.asarray(kernel[:, :, 0] / bias[:, None, 0])
    assert set(np.unique(mask.round(9))) == {0.0, 2.0}
    assert len({row.tobytes() for row in mask.round(9)}) == 6


@pytest.mark.parametrize("engine", BOTH)
def test_sample_weights_scale_the_loss_of_an_example(engine, rng):
    model = sequence_net(layers.Dense(4, activation="tanh"))
    x, y = data(model, rng)
    weight = np.arange(6.0)
    loss = keras.losses.MeanSquaredError()
    plain = gradients.per_example_gradients(model, loss, x, y, engine=engine)
    weighted = gradients.per_example_gradients(
        model, loss, x, y, sample_weight=weight, engine=engine
    )
    scaled = [np.einsum("m...,m->m...", g, weight) for g in plain]
    oracle.assert_close(weighted, scaled)


def test_regularisers_and_add_loss_are_no_part_of_f(rng):
    def build(**options):
        return sequence_net(layers.Dense(4, activation="tanh", **options))

    plain, regular = build(), build(kernel_regularizer="l2", activity_regularizer="l2")
    regular.set_weights(plain.get_weights())
    x, y = data(plain, rng)
    expected = gradients.diagonal_fisher(plain, MSE, x, y)
    for engine in BOTH:
        oracle.assert_close(gradients.diagonal_fisher(regular, MSE, x, y, engine=engine), expected)


class Tied(keras.Model):
    """Uses a kernel outside of its layer, where a rule cannot see it."""

    def __init__(self):
        super().__init__()
        self.layer = layers.Dense(4)

    def call(self, x):
        return keras.ops.matmul(self.layer(x), self.layer.kernel)[..., :3]


def test_a_hidden_use_of_a_kernel_is_not_missed(rng):
    model = Tied()
    x, y = rng.standard_normal((6, 4)), rng.standard_normal((6, 3))
    model(x)
    with pytest.raises(ValueError, match="also used outside of that layer's own call"):
        gradients.diagonal_fisher(model, MSE, x, y, engine="layerwise")
    with pytest.warns(UserWarning, match="vectorized_map"):
        actual = gradients.diagonal_fisher(model, MSE, x, y)
    expected = [np.mean(g**2, axis=0) for g in oracle.one_by_one(model, MSE, x, y)]
    oracle.assert_close(actual, expected)


def test_a_user_can_register_a_rule(rng):
    class Scale(layers.Layer):
        def build(self, shape):
            self.factor = self.add_weight(shape[-1:], initializer="ones")

        def call(self, x):
            return x * self.factor

    def rule(layer, use, d, conv):
        from keras_noisylb.gradients.blocks import offset

        return {"factor": offset(d * use.inputs, layer.factor.shape)}

    model = sequence_net(Scale())
    x, y = data(model, rng)
    with pytest.raises(ValueError, match="no layer rule"):
        gradients.diagonal_fisher(model, MSE, x, y, engine="layerwise")
    gradients.RULES.register(Scale, gradients.LayerRule(rule, ("factor",)))
    expected = [np.mean(g**2, axis=0) for g in oracle.one_by_one(model, MSE, x, y)]
    oracle.assert_close(gradients.diagonal_fisher(model, MSE, x, y, engine="layerwise"), expected)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: layers.BatchNormalization(), "replace_batch_norm"),
        (lambda: layers.GaussianNoise(1.0), "random numbers"),
        (lambda: layers.Conv2D(4, 3, groups=2), "grouped"),
    ],
)
def test_vectorized_map_refuses_what_it_would_get_wrong(layer, message, rng):
    model = image_net(layer())
    x, y = data(model, rng)
    with pytest.raises(ValueError, match=message):
        gradients.diagonal_fisher(model, MSE, x, y, engine="vectorized_map")


def layer_on(shape, layer):
    reduced = layers.GlobalAveragePooling2D() if len(shape) == 3 else layers.GlobalMaxPooling1D()
    return keras.Sequential([keras.Input(shape), layer, reduced, layers.Dense(3)])


@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        ((20, 23, 16), lambda: layers.Conv2D(3, 3, padding="same", activation="tanh")),
        ((20, 23, 16), lambda: layers.Conv2D(3, (2, 4), padding="same", activation="tanh")),
        ((23, 20, 32), lambda: layers.Conv2D(3, (3, 2), activation="tanh")),
        ((40, 41, 16), lambda: layers.Conv2D(2, 3, dilation_rate=(2, 1), padding="same")),
        ((40, 16), lambda: layers.Conv1D(3, 3, padding="causal", dilation_rate=2)),
        ((41, 16), lambda: layers.Conv1D(3, 4, padding="same")),
    ],
)
def test_convolutions_with_inputs_and_gradients_on_one_lattice(shape, layer, rng, monkeypatch):
    taken = []
    find = convolutions._lattice
    monkeypatch.setattr(convolutions, "_lattice", lambda *a: taken.append(find(*a)) or taken[-1])
    model = layer_on(shape, layer())
    x, y = data(model, rng, 5)
    oracle.perturb(model, rng)
    actual = gradients.per_example_gradients(model, MSE, x, y, engine="layerwise")
    assert taken and None not in taken
    oracle.assert_close(actual, oracle.one_by_one(model, MSE, x, y))
