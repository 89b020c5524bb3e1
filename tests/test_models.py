"""Models and schedules against closed forms."""

import itertools

import keras
import numpy as np
import pytest

import keras_noisylb as nlb
from keras_noisylb import models


def test_lenet_parameters():
    conv = 25 * 20 + 25 * 20 * 50
    dense = 4 * 4 * 50 * 500 + 500 * 10
    assert models.LeNet(normalization=None).count_params() == conv + dense + 70 + 500 + 10
    trainable = sum(np.prod(v.shape) for v in models.LeNet().trainable_variables)
    assert trainable == conv + dense + 10 + 2 * (70 + 500)


def test_mlp_parameters():
    units = [784, 512, 512, 512, 512, 512, 10]
    expected = sum(a * b for a, b in itertools.pairwise(units))
    assert models.MLP(normalization=None).count_params() == expected + sum(units[1:])


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("normalization", ["ghost", "batch", None])
def test_models_give_logits_and_reload(name, normalization, tmp_path, rng):
    model = models.get(name)(
        num_classes=7, input_shape=(20, 24, 3), normalization=normalization, l2=1e-4
    )
    x = rng.standard_normal((5, 20, 24, 3)).astype("float32")
    assert model(x, training=True).shape == (5, 7)
    assert model.losses
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras")(x), model(x))


def test_unknown_names():
    with pytest.raises(ValueError, match=r"'resnet9'.*lenet, mlp"):
        models.get("resnet9")
    with pytest.raises(ValueError, match="normalization"):
        models.LeNet(normalization="layer")


def test_warmup_step_decay():
    schedule = nlb.WarmupStepDecay(0.8, warmup_steps=4, decay_steps=(6, 9), decay_factor=0.1)
    again = nlb.WarmupStepDecay.from_config(schedule.get_config())
    expected = [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.08, 0.08, 0.08, 0.008, 0.008]
    for step, rate in enumerate(expected):
        for kind in (int, float, keras.ops.convert_to_tensor):
            assert float(schedule(kind(step))) == pytest.approx(rate)
        assert float(again(step)) == pytest.approx(rate)
    assert float(nlb.WarmupStepDecay(0.5)(0)) == 0.5
    for bad in ({"learning_rate": -1}, {"learning_rate": 1, "decay_steps": (5, 2)}):
        with pytest.raises(ValueError, match="Received"):
            nlb.WarmupStepDecay(**bad)


def test_scaling_rules():
    assert nlb.linear_scaling(0.1, 4096, 128) == pytest.approx(3.2)
    assert nlb.sqrt_scaling(0.1, 4096, 128) == pytest.approx(0.1 * 32**0.5)
