import inspect
import itertools
import re

import keras
import numpy as np
import pytest

from keras_noisylb import models
from keras_noisylb.gradients.coverage import coverage
from keras_noisylb.layers import GhostBatchNormalization
from keras_noisylb.models import MLP, VGG, VGG16, AlexNet, LeNet, ResNet

PER_UNIT = {"ghost": 4, "batch": 4, None: 1}  # parameters per unit beside its weights
VGG_FILTERS = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
EVERY_KIND = [LeNet, MLP, AlexNet, VGG16, models.get("resnet8")]


def chain(units, weights_per_input, per_unit):
    """Parameters of a chain of layers, each fed by the `units` of the one before it."""
    return sum(b * (weights_per_input * a + per_unit) for a, b in itertools.pairwise(units))


def resnet_size(depth, width, channels, classes, per_unit):
    """Of He et al. 2016's table: 2n + 1 layers of 16 filters, 2n of 32, 2n of 64."""
    two_n = (depth - 2) // 3
    layers = [16] * (two_n + 1) + [32] * two_n + [64] * two_n
    units = [channels] + [width * filters for filters in layers]
    return chain(units, 9, per_unit) + classes * (units[-1] + 1)


def vgg_size(height, width, channels, classes, dense, per_unit):
    units = [512 * (height // 32) * (width // 32), *dense]
    convolutions = chain([channels, *VGG_FILTERS], 9, per_unit)
    return convolutions + chain(units, 1, per_unit) + classes * (units[-1] + 1)


def test_formulas_give_the_published_sizes():
    sizes = [resnet_size(depth, 1, 3, 10, 2) / 1e6 for depth in (20, 32, 44, 56, 110)]
    assert [f"{size:.2f}" for size in sizes[:4]] == ["0.27", "0.46", "0.66", "0.85"]
    assert f"{sizes[4]:.1f}" == "1.7"
    assert vgg_size(224, 224, 3, 1000, (4096, 4096), 1) == 138_357_544
    assert f"{vgg_size(32, 32, 3, 10, (), 1) / 1e6:.1f}" == "14.7"


@pytest.mark.parametrize("normalization", PER_UNIT)
@pytest.mark.parametrize(("shape", "classes"), [((28, 28, 1), 10), ((20, 32, 3), 7)])
def test_lenet(normalization, shape, classes):
    model = LeNet(classes, input_shape=shape, normalization=normalization)
    height, width = (((size - 4) // 2 - 4) // 2 for size in shape[:2])
    per_unit = PER_UNIT[normalization]
    assert model.count_params() == (
        20 * (25 * shape[2] + per_unit)
        + 50 * (25 * 20 + per_unit)
        + 500 * (50 * height * width + per_unit)
        + classes * (500 + 1)
    )
    assert model.get_layer("pool2").output.shape == (None, height, width, 50)
    assert model(np.ones((3, *shape)), training=True).shape == (3, classes)


@pytest.mark.parametrize("normalization", PER_UNIT)
def test_mlp(normalization):
    model = MLP(3, input_shape=(4, 5), hidden_units=(6, 7), normalization=normalization)
    per_unit = PER_UNIT[normalization]
    assert model.count_params() == 6 * (20 + per_unit) + 7 * (6 + per_unit) + 3 * (7 + 1)
    assert model(np.ones((2, 4, 5)), training=True).shape == (2, 3)
    hidden = [layer.units for layer in MLP().layers if isinstance(layer, keras.layers.Dense)]
    assert hidden == [512] * 5 + [10]


@pytest.mark.parametrize("normalization", PER_UNIT)
@pytest.mark.parametrize(("shape", "classes"), [((32, 32, 3), 10), ((7, 28, 1), 3)])
def test_alexnet(normalization, shape, classes):
    model = AlexNet(classes, input_shape=shape, normalization=normalization)
    height, width = (((size - 1) // 2 - 1) // 2 for size in shape[:2])
    per_unit = PER_UNIT[normalization]
    assert model.count_params() == (
        chain([shape[2], 64, 64], 25, per_unit)
        + chain([64 * height * width, 384, 192], 1, per_unit)
        + classes * (192 + 1)
    )
    assert model.get_layer("pool2").output.shape == (None, height, width, 64)
    assert model(np.ones((2, *shape)), training=True).shape == (2, classes)


@pytest.mark.parametrize("normalization", PER_UNIT)
@pytest.mark.parametrize(
    ("shape", "classes", "dense"), [((32, 32, 3), 10, ()), ((64, 33, 1), 4, (8, 6))]
)
def test_vgg16(normalization, shape, classes, dense):
    model = VGG16(classes, input_shape=shape, dense_units=dense, normalization=normalization)
    assert model.count_params() == vgg_size(*shape, classes, dense, PER_UNIT[normalization])
    filters = [layer.filters for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert filters == VGG_FILTERS
    assert model(np.ones((2, *shape)), training=True).shape == (2, classes)


@pytest.mark.parametrize("normalization", PER_UNIT)
def test_vgg(normalization):
    model = VGG(7, stages=[(5, 1), (3, 2)], input_shape=(9, 4, 2), normalization=normalization)
    convolutions = chain([2, 5, 3, 3], 9, PER_UNIT[normalization])
    assert model.count_params() == convolutions + 7 * (3 * 2 * 1 + 1)
    assert model.get_layer("stage2_pool").output.shape == (None, 2, 1, 3)
    with pytest.raises(ValueError, match=r"at least 4x4 pixels.*\(3, 4, 2\)"):
        VGG(stages=[(5, 1), (3, 2)], input_shape=(3, 4, 2))
    small = models.get("vgg7")(input_shape=(16, 16, 3), normalization=normalization)
    convolutions = chain([3, 16, 16, 32, 32, 64, 64], 9, PER_UNIT[normalization])
    assert small.count_params() == convolutions + 10 * (64 * 4 + 1)
    assert small.name == "vgg7"


@pytest.mark.parametrize(
    ("depth", "width", "shape", "classes", "normalization"),
    [
        (8, 1, (32, 32, 3), 10, "ghost"),
        (8, 3, (7, 4, 2), 5, "batch"),
        (14, 1, (1, 1, 1), 2, None),
        (44, 1, (8, 8, 3), 10, "ghost"),
    ],
)
def test_resnet(depth, width, shape, classes, normalization):
    model = ResNet(
        classes, input_shape=shape, depth=depth, width=width, normalization=normalization
    )
    per_unit = PER_UNIT[normalization]
    assert model.count_params() == resnet_size(depth, width, shape[2], classes, per_unit)
    for stage in (1, 2, 3):
        sizes = [-(-size // 2 ** (stage - 1)) for size in shape[:2]]
        last = model.get_layer(f"stage{stage}_block{(depth - 2) // 6}_relu").output
        assert last.shape == (None, *sizes, width * 16 * 2 ** (stage - 1))
    assert model(np.ones((2, *shape)), training=True).shape == (2, classes)


def test_resnet_by_hand(rng):
    """All layers of a small network, computed again in NumPy from the weights by their names."""
    model = ResNet(3, input_shape=(6, 9, 2), depth=14, normalization="batch")
    model.set_weights([rng.uniform(0.3, 0.6, w.shape) - 0.4 for w in model.get_weights()])
    for layer in model.layers:
        if layer.name.endswith("_norm"):
            layer.moving_variance.assign(rng.uniform(1, 2, layer.moving_variance.shape))

    def conv_norm(x, name, stride=1):
        kernel = np.asarray(model.get_layer(name).kernel)
        height, width = x.shape[1:3]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        z = sum(
            padded[:, i : i + height, j : j + width] @ kernel[i, j] for i, j in np.ndindex(3, 3)
        )
        norm = model.get_layer(f"{name}_norm")
        gamma, beta, mean, variance = map(np.asarray, norm.weights)
        return (z[:, ::stride, ::stride] - mean) / np.sqrt(variance + 1e-3) * gamma + beta

    x = images = rng.normal(size=(4, 6, 9, 2))
    x = np.maximum(conv_norm(x, "stem_conv"), 0)
    for stage, block in np.ndindex(3, 2):
        name = f"stage{stage + 1}_block{block + 1}"
        stride = 2 if stage and not block else 1
        shortcut = x[:, ::stride, ::stride]
        if stride == 2:
            shortcut = np.concatenate([shortcut, np.zeros_like(shortcut)], axis=-1)
        x = np.maximum(conv_norm(x, f"{name}_conv1", stride), 0)
        x = np.maximum(conv_norm(x, f"{name}_conv2") + shortcut, 0)
        np.testing.assert_array_less(0.1, (x > 0).mean())
    kernel, bias = map(np.asarray, model.get_layer("logits").weights)
    logits = x.mean(axis=(1, 2)) @ kernel + bias
    np.testing.assert_allclose(model(images), logits, rtol=1e-4, atol=1e-4 * np.abs(logits).max())


def names_of(model):
    return [layer.name for layer in model.layers[1:]]


def test_layer_names_explain_themselves():
    def normalized(name):
        return [name, f"{name}_norm", f"{name}_relu"]

    dense = ["flatten", *normalized("dense1"), "logits"]
    lenet = [[*normalized(f"conv{k}"), f"pool{k}"] for k in (1, 2)]
    assert names_of(LeNet()) == [*lenet[0], *lenet[1], *dense]

    vgg = [f"stage{s}_{n}" for s, n in ((1, "conv2"), (3, "conv3"), (5, "conv3"), (5, "pool"))]
    assert {*vgg, "dense1", "dense1_relu", "dense1_dropout"} <= {*names_of(VGG16(dense_units=[1]))}

    first = [*normalized("stage1_block1_conv1"), *normalized("stage1_block1_conv2")[:2]]
    expected = [*normalized("stem_conv"), *first, "stage1_block1_add", "stage1_block1_relu"]
    names = names_of(models.get("resnet8")())
    assert names[: len(expected)] == expected
    pattern = r"(stem|stage[123]_block1)_(conv[12]?|shortcut)?_?(pad|pool|norm|relu|add)?"
    assert all(re.fullmatch(pattern, name) for name in names[:-2])
    assert names[-2:] == ["global_pool", "logits"]


@pytest.mark.parametrize("build", EVERY_KIND)
def test_options(build):
    model = build(ghost_batch_size=64, l2=0.01, name="mine")
    norms = [layer for layer in model.layers if isinstance(layer, GhostBatchNormalization)]
    assert {norm.ghost_batch_size for norm in norms} == {64}
    assert model.name == "mine"
    kernels = [v for v in model.trainable_variables if v.name == "kernel"]
    assert len(kernels) == len(model.losses)
    penalty = sum(0.01 * np.sum(np.square(kernel)) for kernel in kernels)
    np.testing.assert_allclose(sum(model.losses), penalty, rtol=1e-5)
    plain = build(normalization="batch")
    assert not plain.losses
    found = [isinstance(layer, keras.layers.BatchNormalization) for layer in plain.layers]
    assert sum(found) == len(norms)


@pytest.mark.parametrize("build", [AlexNet, lambda **kw: VGG16(dense_units=(3, 2), **kw)])
def test_dropout(build):
    def rates(**options):
        layers = build(**options).layers
        return [layer.rate for layer in layers if isinstance(layer, keras.layers.Dropout)]

    assert rates() == [0.5, 0.5]
    assert rates(dropout=0.2) == [0.2, 0.2]
    assert not rates(dropout=0.0)


@pytest.mark.parametrize("build", EVERY_KIND)
def test_initialisation_is_he(build):
    """Kernels have mean 0 and variance 2 / fan-in, to five standard errors of a normal sample."""
    for kernel in build().trainable_variables:
        if kernel.name == "kernel":
            unit = np.asarray(kernel) / np.sqrt(2 / np.prod(kernel.shape[:-1]))
            assert abs(unit.mean()) < 5 / np.sqrt(unit.size), kernel.path
            assert abs(unit.var() - 1) < 5 * np.sqrt(2 / unit.size), kernel.path


@pytest.mark.parametrize("name", models.names())
def test_registry(name, tmp_path):
    model = models.get(name)(num_classes=4)
    assert (model.name, model.output_shape) == (name, (None, 4))
    model.save(tmp_path / "model.keras")
    x = np.linspace(-1, 1, 2 * np.prod(model.input_shape[1:])).reshape(2, *model.input_shape[1:])
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    (tmp_path / "model.keras").unlink()
    np.testing.assert_array_equal(loaded(x), model(x))
    assert names_of(loaded) == names_of(model)


@pytest.mark.parametrize(("name", "depth", "width"), [("resnet20", 20, 1), ("resnet8x3", 8, 3)])
def test_registry_of_other_resnets(name, depth, width):
    model = models.get(name)()
    assert model.name == name
    assert model.count_params() == resnet_size(depth, width, 3, 10, 4)


@pytest.mark.parametrize("name", [*models.names(), "resnet20x2"])
def test_builders_share_their_options(name):
    shared = {"num_classes", "input_shape", "normalization", "ghost_batch_size", "l2", "name"}
    assert shared <= inspect.signature(models.get(name)).parameters.keys()


@pytest.mark.parametrize("build", EVERY_KIND)
@pytest.mark.parametrize("normalization", PER_UNIT)
def test_every_variable_has_a_layer_rule(build, normalization):
    model = build(normalization=normalization)
    assert not coverage(model, np.ones((2, *model.input_shape[1:]), "float32")).obstacles


@pytest.mark.parametrize(("build", "smallest"), [(LeNet, 16), (AlexNet, 7), (VGG16, 32)])
def test_smallest_image(build, smallest):
    assert build(input_shape=(smallest, smallest, 1)).get_layer("flatten").input.shape[1:3] == (
        1,
        1,
    )
    for shape in [(smallest - 1, 64, 1), (64, smallest - 1, 1), (64, 64), (None, 64, 3)]:
        with pytest.raises(ValueError, match=rf"{smallest}x{smallest} .*{re.escape(str(shape))}"):
            build(input_shape=shape)


def test_refuses():
    with pytest.raises(ValueError, match=r"Unknown model 'resnet'.*lenet, mlp.*resnet<depth>"):
        models.get("resnet")
    with pytest.raises(ValueError, match=r"`normalization` must be one of.*Received: 'layer'"):
        LeNet(normalization="layer")
    for depth in (2, 7, 45, 8.0):
        with pytest.raises(ValueError, match=rf"`depth` must be 6n \+ 2.*depth={depth}"):
            ResNet(depth=depth)
    for width in (0, 1.5):
        with pytest.raises(ValueError, match=rf"`width` must be a positive.*width={width}"):
            ResNet(width=width)
    with pytest.raises(ValueError, match=r"`depth` must be 6n \+ 2"):
        models.get("resnet21")()
