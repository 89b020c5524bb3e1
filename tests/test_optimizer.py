"""NoisyOptimizer has the interface of the optimizer that it wraps."""

import inspect

import keras
import numpy as np
import pytest

import keras_noisylb as nlb

X, Y = np.ones((8, 3), "float32"), np.zeros((8, 2), "float32")
# What a user may ask of every optimizer, with values that exclude each other in parts.
OPTIONS = [
    {"weight_decay": 0.1, "clipnorm": 2.0, "loss_scale_factor": 8.0},
    {"clipvalue": 0.5, "use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3},
    {"global_clipnorm": 3.0, "gradient_accumulation_steps": 2},
]


def wrapped(inner, **options):
    return nlb.NoisyOptimizer(inner, nlb.DiagonalFisher(2, estimator="split"), **options)


def trained(optimizer, steps=2):
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, bias_initializer="ones")])
    noisy = nlb.optimizer.find_noisy(optimizer) is not None
    model = nlb.NoisyModel(network) if noisy else network
    model.compile(optimizer, "mse", run_eagerly=True)
    for _ in range(steps):
        model.train_on_batch(X, Y)
    return network.get_weights()


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_every_option_of_keras_is_the_inner_optimizers():
    base = inspect.signature(keras.optimizers.SGD).parameters
    ours = {name for options in OPTIONS for name in options}
    assert set(base) - ours == {"learning_rate", "momentum", "nesterov", "name", "kwargs"}
    for options in OPTIONS:
        noisy = wrapped(keras.optimizers.SGD(0.1, **options))
        other = wrapped(keras.optimizers.SGD(0.1))
        for name, value in options.items():
            assert getattr(noisy, name) == value
            setattr(other, name, value)
            assert getattr(other.inner_optimizer, name) == getattr(other, name) == value
        noisy.noise_steps = other.noise_steps = 0
        plain = trained(keras.optimizers.SGD(0.1, **options))
        assert_same(trained(noisy), plain)
        assert_same(trained(other), plain)


def test_every_method_of_keras_is_the_inner_optimizers():
    base = keras.optimizers.Optimizer
    methods = {name for name, _ in inspect.getmembers(base) if not name.startswith("_")}
    # These make or assign the variables they are given, or go by `variables` and `apply`.
    general = {"add_optimizer_variables", "add_variable", "add_variable_from_reference", "assign"}
    general |= {"assign_add", "assign_sub", "apply_gradients"}
    general |= {"load_own_variables", "save_own_variables"}
    refused = {"stateless_apply", "update_step"}  # Keras raises for the TensorFlow backend
    own = {name for name in methods if getattr(nlb.NoisyOptimizer, name) != getattr(base, name)}
    assert own | {"from_config"} == methods - general - refused


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("by", ["var_names", "var_list"])
def test_what_is_excluded_from_weight_decay(scaled, by):
    def excluding(noisy):
        inner = keras.optimizers.AdamW(0.1, weight_decay=0.5)
        optimizer = wrapped(inner, noise_steps=0) if noisy else inner
        whole = keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer
        keras.utils.set_random_seed(0)
        layer = keras.layers.Dense(2, bias_initializer="ones")
        network = keras.Sequential([keras.Input((3,)), layer])
        optimizer.exclude_from_weight_decay(**{by: ["bias"] if by == "var_names" else [layer.bias]})
        model = nlb.NoisyModel(network) if noisy else network
        model.compile(whole, lambda y, y_pred: 0.0 * y_pred, run_eagerly=True)
        model.train_on_batch(X, Y)
        return network.get_weights()

    kernel, bias = excluding(noisy=True)
    assert_same([kernel, bias], excluding(noisy=False))
    np.testing.assert_array_equal(bias, 1)
    keras.utils.set_random_seed(0)
    start = keras.layers.Dense(2)
    start.build((None, 3))
    np.testing.assert_allclose(kernel, 0.95 * start.kernel, rtol=1e-5)


def test_two_ways_of_loss_scaling_do_not_add_up():
    inner = keras.optimizers.SGD(0.1, loss_scale_factor=128.0)
    scaled = keras.optimizers.LossScaleOptimizer(wrapped(inner, noise_steps=0))
    assert inner.loss_scale_factor is None
    assert_same(trained(scaled), trained(keras.optimizers.SGD(0.1)))


def test_the_weights_of_the_optimizer_are_set():
    made = [wrapped(keras.optimizers.SGD(0.1, momentum=0.9), seed=1) for _ in range(2)]
    for optimizer, steps in zip(made, (3, 1), strict=True):
        trained(optimizer, steps)
    assert any(np.any(a != b) for a, b in zip(made[0].variables, made[1].variables, strict=True))
    made[1].set_weights([variable.numpy() for variable in made[0].variables])
    for a, b in zip(made[0].variables, made[1].variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_loss_scale_goes_on_in_the_next_fit():
    optimizer = wrapped(keras.optimizers.SGD(0.1))
    scaled = keras.optimizers.LossScaleOptimizer(
        optimizer, initial_scale=8.0, dynamic_growth_steps=1
    )
    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model = nlb.NoisyModel(network)
    model.compile(scaled, "mse", run_eagerly=True)
    for scale in (16.0, 32.0):
        model.fit(X, Y, verbose=0)
        assert float(scaled.dynamic_scale.numpy()) == scale
