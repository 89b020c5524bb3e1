import keras
import numpy as np
import pytest

from keras_noisylb import models
from keras_noisylb.layers import GhostBatchNormalization

SIZES = {"ghost": 4, "batch": 4, None: 1}  # parameters per unit beside its weights


@pytest.mark.parametrize("normalization", SIZES)
@pytest.mark.parametrize(("shape", "classes"), [((28, 28, 1), 10), ((20, 32, 3), 7)])
def test_lenet(normalization, shape, classes):
    model = models.LeNet(classes, shape, normalization)
    height, width = (((size - 4) // 2 - 4) // 2 for size in shape[:2])
    per_unit = SIZES[normalization]
    assert model.count_params() == (
        20 * (25 * shape[2] + per_unit)
        + 50 * (25 * 20 + per_unit)
        + 500 * (50 * height * width + per_unit)
        + classes * (500 + 1)
    )
    assert model.get_layer("pool2").output.shape == (None, height, width, 50)
    assert model.output_shape == (None, classes)
    assert model(np.ones((3, *shape)), training=True).shape == (3, classes)


@pytest.mark.parametrize("normalization", SIZES)
def test_mlp(normalization):
    model = models.MLP(3, (4, 5), (6, 7), normalization)
    per_unit = SIZES[normalization]
    assert model.count_params() == 6 * (20 + per_unit) + 7 * (6 + per_unit) + 3 * (7 + 1)
    assert model(np.ones((2, 4, 5)), training=True).shape == (2, 3)
    hidden = [layer.units for layer in models.MLP().layers if isinstance(layer, keras.layers.Dense)]
    assert hidden == [512] * 5 + [10]


def test_layer_names_explain_themselves():
    names = [layer.name for layer in models.LeNet().layers[1:]]
    blocks = [[f"conv{k}", f"conv{k}_norm", f"conv{k}_relu", f"pool{k}"] for k in (1, 2)]
    dense = ["flatten", "dense1", "dense1_norm", "dense1_relu", "logits"]
    assert names == [*blocks[0], *blocks[1], *dense]


@pytest.mark.parametrize("build", [models.LeNet, models.MLP])
def test_options(build):
    model = build(ghost_batch_size=64, l2=0.01, name="mine")
    norms = [layer for layer in model.layers if isinstance(layer, GhostBatchNormalization)]
    assert {norm.ghost_batch_size for norm in norms} == {64}
    assert model.name == "mine"
    kernels = [v for v in model.trainable_variables if v.name == "kernel"]
    penalty = sum(0.01 * np.sum(np.square(kernel)) for kernel in kernels)
    np.testing.assert_allclose(sum(model.losses), penalty, rtol=1e-5)
    assert not build().losses
    plain = build(normalization="batch").layers
    assert any(isinstance(layer, keras.layers.BatchNormalization) for layer in plain)


def test_initialisation_is_he():
    """The variance of the kernels is 2 / fan-in, to five standard errors."""
    kernel = np.asarray(models.LeNet().get_layer("dense1").kernel)
    assert abs(kernel.var() * kernel.shape[0] / 2 - 1) < 5 * np.sqrt(2 / kernel.size)


@pytest.mark.parametrize("name", models.names())
def test_registry(name, tmp_path):
    model = models.get(name)(num_classes=4)
    assert (model.name, model.output_shape) == (name, (None, 4))
    model.save(tmp_path / "model.keras")
    x = np.ones((2, 28, 28, 1))
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))


def test_refuses():
    with pytest.raises(ValueError, match=r"Unknown model 'resnet'.*lenet, mlp"):
        models.get("resnet")
    with pytest.raises(ValueError, match=r"`normalization` must be one of.*Received: 'layer'"):
        models.LeNet(normalization="layer")
