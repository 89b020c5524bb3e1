"""Folding of batch normalisation into the layers before it."""

import doctest
import re
import warnings

import keras
import numpy as np
import pytest
from batch_norms import moved, norm
from keras import layers
from oracle import perturb

import keras_noisylb as nlb
from keras_noisylb.diagnostics import fold_batch_norm, folding


def examples(model, rng, count=5):
    return rng.normal(size=(count, *model.inputs[0].shape[1:]))


def norms(model):
    return [v.path for v in model.variables if v.name == "moving_mean"]


def assert_same_outputs(model, folded, rng, tolerance=1e-12):
    x = examples(model, rng)
    outputs = [keras.tree.flatten(m(x, training=False)) for m in (model, folded)]
    for a, b in zip(*outputs, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(a).max())


def quietly(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return fold_batch_norm(model)


LAYERS = {
    "dense": ((5,), lambda **o: layers.Dense(3, **o)),
    "dense on sequences": ((4, 5), lambda **o: layers.Dense(3, **o)),
    "conv1d": ((6, 2), lambda **o: layers.Conv1D(3, 3, **o)),
    "conv2d": ((6, 6, 2), lambda **o: layers.Conv2D(3, 3, strides=2, padding="same", **o)),
    "grouped": ((6, 6, 4), lambda **o: layers.Conv2D(6, 2, groups=2, **o)),
    "conv3d": ((4, 4, 4, 2), lambda **o: layers.Conv3D(3, 2, **o)),
    "conv1d_transpose": ((4, 2), lambda **o: layers.Conv1DTranspose(3, 2, **o)),
    "conv2d_transpose": ((4, 4, 2), lambda **o: layers.Conv2DTranspose(3, 2, **o)),
    "conv3d_transpose": ((3, 3, 3, 2), lambda **o: layers.Conv3DTranspose(3, 2, **o)),
    "depthwise1d": ((6, 2), lambda **o: layers.DepthwiseConv1D(3, depth_multiplier=3, **o)),
    "depthwise2d": ((6, 6, 2), lambda **o: layers.DepthwiseConv2D(3, depth_multiplier=3, **o)),
}


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_takes_up_a_normalisation(name, use_bias, float64, rng):
    shape, layer = LAYERS[name]
    inputs = keras.Input(shape)
    x = norm(ghost=use_bias)(layer(use_bias=use_bias, name="linear")(inputs))
    model = moved(keras.Model(inputs, layers.ReLU()(x)), rng)
    folded = quietly(model)
    assert [v.path for v in folded.variables] == ["linear/kernel", "linear/bias"]
    assert len(folded.layers) == len(model.layers) - 1
    assert_same_outputs(model, folded, rng)


def test_every_layer_type_is_tested():
    tested = {type(layer()) for _, layer in LAYERS.values()}
    assert tested == set(folding.CHANNEL_AXES)


@pytest.mark.parametrize("ghost", [False, True])
@pytest.mark.parametrize(("center", "scale"), [(True, False), (False, True), (False, False)])
def test_without_beta_or_gamma(center, scale, ghost, float64, rng):
    inputs = keras.Input((5,))
    x = norm(ghost, center=center, scale=scale, epsilon=0.1)(layers.Dense(3)(inputs))
    model = moved(keras.Model(inputs, x), rng)
    assert_same_outputs(model, quietly(model), rng)


@pytest.mark.parametrize("normalization", ["ghost", "batch"])
@pytest.mark.parametrize(
    "build",
    [
        lambda n: nlb.models.ResNet(3, input_shape=(16, 16, 3), depth=8, normalization=n),
        lambda n: nlb.models.LeNet(3, input_shape=(16, 16, 1), normalization=n),
        lambda n: nlb.models.MLP(3, input_shape=(6,), normalization=n),
        lambda n: nlb.models.VGG16(3, normalization=n),
    ],
    ids=["resnet", "lenet", "mlp", "vgg"],
)
def test_the_zoo_folds_to_float32_accuracy(build, normalization, rng):
    model = build(normalization)
    for v in model.variables:
        if v.name in ("gamma", "beta", "moving_mean", "moving_variance"):
            v.assign(v + rng.uniform(0, 0.3, v.shape))
    assert norms(model)
    folded = quietly(model)
    assert not norms(folded)
    assert_same_outputs(model, folded, rng, 1e-5)


def block(x, name):
    y = layers.Conv2D(2, 3, padding="same", use_bias=False, name=f"{name}_conv1")(x)
    y = layers.ReLU()(norm(name=f"{name}_norm1")(y))
    y = norm(True, name=f"{name}_norm2")(layers.Conv2D(2, 3, padding="same")(y))
    return layers.ReLU()(y + layers.Conv2D(2, 1)(x))  # an operation that is no layer


def test_nested_models_and_operations(float64, rng):
    inner_input = keras.Input((6, 6, 2))
    inner = keras.Model(inner_input, block(inner_input, "inner"), name="inner")
    stack = keras.Sequential(
        [keras.Input((6, 6, 2)), layers.Conv2D(3, 3), norm(), layers.Dropout(0.5)], name="stack"
    )
    inputs = {"b": keras.Input((6, 6, 2), name="b"), "a": keras.Input((6, 6, 2), name="a")}
    x = inner(inner(inputs["a"])) - block(inputs["b"], "outer")  # the same weights twice
    model = moved(keras.Model(inputs, {"y": stack(x), "x": x}), rng)
    model.compile("sgd", "mse")
    folded = quietly(model)
    assert not norms(folded) and not folded.compiled and folded.name == model.name
    x = {name: rng.normal(size=(4, 6, 6, 2)) for name in "ab"}
    expected, actual = model(x), folded(x)
    assert expected.keys() == actual.keys()
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-11, atol=1e-11)


def test_the_original_is_untouched(float64, rng):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), norm(), layers.Dense(2)])
    model.layers[0].trainable = False
    before = [keras.ops.convert_to_numpy(v) for v in moved(model, rng).variables]
    folded = fold_batch_norm(model)
    perturb(folded, rng)
    folded.layers[1].set_weights([10 * w for w in folded.layers[1].get_weights()])
    for v, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(v, value)
    assert isinstance(model.layers[1].output, keras.KerasTensor)  # still called once only
    assert [layer.trainable for layer in folded.layers[1:]] == [False, True]


def test_a_model_without_normalisation_is_copied(float64, rng):
    model = moved(keras.Sequential([keras.Input((4,)), layers.Dense(3)]), rng)
    assert_same_outputs(model, quietly(model), rng)


class OwnNorm(layers.BatchNormalization):
    pass


def linear(x, name="linear", **options):
    return layers.Dense(3, name=name, **options)(x)


def the_norm(x, **options):
    return norm(name="norm", **options)(x)


def an_output_too(x):
    y = linear(x)
    return [the_norm(y), y]


def used_twice(x):
    y = linear(x)
    return the_norm(y) + y


def shared_layer(x):
    layer = layers.Dense(3, name="linear")
    return the_norm(layer(x)) + layer(2 * x)


def shared_norm(x):
    shared = norm(name="norm")
    return shared(linear(x, "other")) + shared(linear(x))


def wrapped(x):
    return layers.TimeDistributed(norm(), name="norm")(linear(layers.Reshape((2, 2))(x)))


KEPT = [
    (the_norm, "it follows an input"),
    (lambda x: the_norm(layers.Dropout(0.5, name="drop")(x)), "it follows 'drop', a Dropout"),
    (lambda x: the_norm(layers.Add(name="sum")([linear(x), x[:, :3]])), "it follows 'sum', a Add"),
    (used_twice, "the output of 'linear' is used elsewhere too"),
    (an_output_too, "the output of 'linear' is used elsewhere too"),
    (shared_layer, "it or 'linear' is used several times"),
    (shared_norm, "it or 'linear' is used several times"),
    (lambda x: the_norm(linear(x, activation="tanh")), "'linear' has an activation"),
    (lambda x: norm(name="norm")(linear(x), training=True), "called with training=True"),
    (
        lambda x: the_norm(linear(layers.Reshape((2, 2))(x)), axis=1),
        "its axis 1 is not that of the channels of 'linear'",
    ),
    (lambda x: OwnNorm(name="norm")(linear(x)), "inside of a OwnNorm"),
    (wrapped, "inside of a TimeDistributed"),
]


@pytest.mark.parametrize(("build", "reason"), KEPT)
def test_what_cannot_be_folded_stays_and_is_named(build, reason, float64, rng):
    inputs = keras.Input((4,))
    model = moved(keras.Model(inputs, build(inputs), name="model"), rng)
    with pytest.warns(UserWarning, match=re.escape(f"stays in 'model': 'norm' ({reason}).")):
        folded = fold_batch_norm(model)
    assert len(norms(folded)) == 1
    assert_same_outputs(model, folded, rng)


def test_pre_activation_folds_where_a_convolution_precedes(float64, rng):
    inputs = keras.Input((6, 6, 2))
    x = layers.ReLU()(norm(name="first")(inputs))
    x = layers.ReLU()(norm(name="second")(layers.Conv2D(3, 3)(x)))
    model = moved(keras.Model(inputs, layers.Conv2D(3, 3)(x)), rng)
    with pytest.warns(UserWarning, match="'first'") as caught:
        folded = fold_batch_norm(model)
    assert "second" not in str(caught[0].message)
    assert norms(folded) == ["first/moving_mean"]
    assert_same_outputs(model, folded, rng)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nlb.NoisyModel(nlb.models.MLP()), "Of a NoisyModel, pass its `.model`"),
        (lambda: keras.Sequential([layers.Dense(2)]), "is not built. Give it a keras.Input"),
        (lambda: 3, "Sequential or Functional.*Received: 3"),
    ],
)
def test_models_that_cannot_be_copied(model, message):
    with pytest.raises(ValueError, match=message):
        fold_batch_norm(model())


def test_docstring_examples():
    result = doctest.testmod(folding)
    assert result.failed == 0 and result.attempted > 0
