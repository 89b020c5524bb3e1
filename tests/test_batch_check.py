"""A batch size without noise is an error, for every form of the data and of the steps."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import on_devices

import keras_noisylb as nlb

M_S = 20


def fit(data, devices=1, **compile_options):
    with on_devices(devices).scope():
        model = nlb.NoisyModel(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
        noise = nlb.DiagonalFisher(M_S, estimator="split")
        optimizer = nlb.NoisyOptimizer(keras.optimizers.SGD(0.1), noise)
        model.compile(optimizer, loss="mse", **compile_options)
    model.fit(**data, verbose=0)


def arrays(count):
    return np.ones((count, 2), "float32"), np.ones((count, 1), "float32")


def dataset(count, batch_size):
    return {"x": tf.data.Dataset.from_tensor_slices(arrays(count)).batch(batch_size)}


@pytest.mark.parametrize("form", ["arrays", "dataset", "generator", "devices", "steps"])
def test_a_nominal_batch_that_is_not_large_raises(form):
    x, y = arrays(50)
    data = {
        "arrays": {"x": x, "y": y, "batch_size": 20},
        "generator": {"x": ((x[i : i + 20], y[i : i + 20]) for i in range(0, 50, 20))},
    }.get(form, dataset(50, 20))
    options = {"devices": {"devices": 2}, "steps": {"steps_per_execution": 3}}.get(form, {})
    with pytest.raises(ValueError, match=r"batch size 20 .*small_batch_size=20"):
        fit(data, **options)


@pytest.mark.parametrize("steps_per_execution", [1, 2, 3])
def test_a_short_or_missing_last_batch_is_none_of_its_business(steps_per_execution):
    fit(dataset(40, 32), steps_per_execution=steps_per_execution)


def test_a_short_batch_on_two_devices():
    fit(dataset(33, 32), devices=2)
