"""The zoo with ghost batch normalisation under `MirroredStrategy`, by both engines.

Every estimator on one network and two on every network are slow:
`pytest -m slow tests/test_zoo_on_devices.py`.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import on_devices
from small_nets import miniature

import keras_noisylb as nlb

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
DEVICES, M, M_S = 2, 32, 4
ESTIMATORS = {
    "vectorized_map": {"engine": "vectorized_map"},
    "layerwise": {"engine": "layerwise"},
    "weighted": {"estimator": "weighted"},
    "split": {"estimator": "split"},
}
ZOO = ("mlp", "lenet", "alexnet", "vgg16", "resnet44")  # beside resnet8
MATRIX = [
    *(("miniature", engine) for engine in ("vectorized_map", "layerwise")),
    *(pytest.param("resnet8", way, marks=pytest.mark.slow) for way in ESTIMATORS),
    *(
        pytest.param(model, way, marks=pytest.mark.slow)
        for model in ZOO
        for way in ("layerwise", "split")
    ),
]


def trained(name, data, dropout, noise=None):
    """The model after two steps on two devices; checks that the devices agree after each."""
    keras.utils.set_random_seed(0)
    options = {"input_shape": data[0].shape[1:], "ghost_batch_size": M_S}
    with on_devices(DEVICES).scope():
        build = miniature if name == "miniature" else nlb.models.get(name)
        model = build(num_classes=10, **options)
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.Dropout) and not dropout:
                layer.rate = 0.0
        optimizer = keras.optimizers.SGD(0.01)
        if noise is not None:
            model = nlb.NoisyModel(model)
            optimizer = nlb.NoisyOptimizer(optimizer, noise, seed=0)
        model.compile(optimizer, LOSS, jit_compile=False)
    for _ in range(2):
        model.fit(*data, batch_size=M, shuffle=False, verbose=0)
        for v in model.variables:
            if isinstance(v.value, tf.distribute.DistributedValues):
                first, *others = (np.asarray(part) for part in v.value.values)
                for other in others:
                    np.testing.assert_array_equal(first, other, err_msg=v.path)
    return [np.asarray(keras.ops.convert_to_numpy(v)) for v in model.trainable_variables]


@pytest.mark.parametrize(("name", "way"), MATRIX)
def test_the_zoo_trains_alike_on_all_devices(name, way, float64, rng):
    shape = {"miniature": (8, 8, 3), "mlp": (28, 28, 1), "lenet": (28, 28, 1)}.get(
        name, (32, 32, 3)
    )
    data = rng.standard_normal((M, *shape)), rng.integers(0, 10, M)
    dropout = way != "split"  # whose halves draw their masks in turn
    plain = trained(name, data, dropout)
    silent = trained(
        name, data, dropout, nlb.DiagonalFisher(M_S, multiplier=1e-12, **ESTIMATORS[way])
    )
    noisy = trained(name, data, dropout, nlb.DiagonalFisher(M_S, **ESTIMATORS[way]))
    for a, b in zip(silent, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)
    moved = [np.abs(a - b).max() for a, b in zip(noisy, plain, strict=True)]
    assert min(moved) > 1e-5
