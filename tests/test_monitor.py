"""GradientNoiseMonitor against the closed form of a population of examples."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import flat, on_devices, one_by_one, total_gradient

import keras_noisylb as nlb
from keras_noisylb.callbacks import GradientNoise
from keras_noisylb.gradients.accumulate import compute
from keras_noisylb.gradients.batch import Batch
from keras_noisylb.gradients.moments import WithMoments
from keras_noisylb.gradients.statistics import PlainStep
from keras_noisylb.training.step import Parts

LOSS = keras.losses.MeanSquaredError()
POPULATION, M, M_S, STEPS, EPOCHS = 40, 16, 4, 40, 20
KEYS = {"gradient_norm", "noise_norm", "noise_to_gradient", "fisher_trace", "gradient_noise_scale"}
KEYS |= {"temperature", "skipped_steps"}


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential([
        keras.Input((3,)),
        keras.layers.Dense(3, "tanh", kernel_regularizer=keras.regularizers.L2(0.1)),
        keras.layers.Dense(2),
    ])


def population(rng):
    x, y = rng.standard_normal((POPULATION, 3)), rng.standard_normal((POPULATION, 2))
    return x.astype("float32"), y.astype("float32")


def noisy(noise=None, inner=None, **options):
    noise = noise or nlb.DiagonalFisher(M_S)
    return nlb.NoisyOptimizer(inner or keras.optimizers.SGD(0.0), noise, seed=2, **options)


def accumulating():
    return keras.optimizers.SGD(0.0, gradient_accumulation_steps=2)


def scaling(optimizer):
    return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**12)


# Optimizer, options of NoisyModel, devices, examples of an update, kind of noise.
CASES = {
    "plain": (lambda: keras.optimizers.SGD(0.0), {}, 1, M, None),
    "off": (lambda: noisy(noise_steps=0), {}, 1, M, None),
    "noise": (noisy, {}, 1, M, "fisher"),
    "microbatches": (noisy, {"num_microbatches": 3}, 1, M, "fisher"),
    "accumulation": (lambda: noisy(inner=accumulating()), {}, 1, 2 * M, "fisher"),
    "update": (
        lambda: noisy(inner=accumulating(), placement="update"), {}, 1, 2 * M, "fisher"
    ),
    "loss scale": (lambda: scaling(noisy()), {}, 1, M, "fisher"),
    "multiplicative accumulation": (
        lambda: noisy(nlb.Multiplicative(0.3), accumulating()), {}, 1, 2 * M, "multiplicative"
    ),
    "devices": (noisy, {}, 2, M, "fisher"),
    "scaled devices": (lambda: scaling(noisy(nlb.Isotropic(0.3))), {}, 2, M, "isotropic"),
}  # fmt: skip


def assert_mean(values, expected, wrong=1.4):
    values = np.asarray(values)
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - expected) < 5 * error
    assert abs(wrong * values.mean() - expected) > 5 * wrong * error


@pytest.mark.parametrize("case", CASES)
def test_the_logs_have_the_expected_values(case, rng):
    make, options, devices, large, kind = CASES[case]
    x, y = population(rng)
    steps = STEPS // devices
    rows = rng.integers(0, POPULATION, EPOCHS * steps * M)
    data = tf.data.Dataset.from_tensor_slices((x[rows], y[rows])).batch(M, drop_remainder=True)
    with on_devices(devices).scope():
        model = nlb.NoisyModel(network(), **options)
        fast = {} if devices > 1 else {"steps_per_execution": steps}
        model.compile(make(), LOSS, jit_compile=False, **fast)
    logs = model.fit(
        data, epochs=EPOCHS, steps_per_epoch=steps, verbose=0,
        callbacks=[nlb.GradientNoiseMonitor()],
    ).history  # fmt: skip
    logs = {key: np.array(values) for key, values in logs.items()}

    every = one_by_one(network(), LOSS, x, y)
    # `one_by_one` leaves out the regularisers, which are no part of the Fisher.
    every = np.concatenate([np.reshape(g, (POPULATION, -1)) for g in every], axis=1)
    data_norm = np.square(every.mean(0)).sum()
    variance = np.square(every).sum(1).mean() - data_norm
    total = np.square(flat(total_gradient(network(), LOSS, x, y))).sum()
    scale = logs["gradient_noise_scale"]
    assert_mean(logs["fisher_trace"], variance + data_norm)
    assert_mean(logs["gradient_norm"] ** 2, total + variance / large)
    found = logs["gradient_norm"] ** 2 / (1 + scale / large)
    assert_mean(found, total, wrong=2)
    assert_mean(found * scale, variance)
    if kind is None:
        assert not logs["noise_norm"].any()
    else:
        expected = {
            "fisher": (large - M_S) / (large * M_S) * (variance + data_norm),
            "isotropic": 0.3**2 * every.shape[1],
            "multiplicative": 0.3**2 * (total + variance / large),
        }[kind]
        assert_mean(logs["noise_norm"] ** 2, expected)
    ratio = logs["noise_norm"] / logs["gradient_norm"]
    np.testing.assert_allclose(logs["noise_to_gradient"], ratio, rtol=1e-5)


@pytest.mark.parametrize("num_microbatches", [2, 3])
def test_moments_are_unbiased(num_microbatches, float64, rng):
    """Their means over all orders of a batch, exactly."""
    x, y = rng.standard_normal((4, 3)), rng.standard_normal((4, 2))
    model, loss = network(), keras.losses.MeanSquaredError()
    every = one_by_one(model, loss, x, y)
    every = np.concatenate([np.reshape(g, (4, -1)) for g in every], axis=1)
    variance = np.var(every, axis=0, ddof=1).sum()
    data = np.square(every.mean(0)).sum()
    total = np.square(flat(total_gradient(model, loss, x, y))).sum()
    found = []
    for order in map(list, itertools.permutations(range(4))):
        batch = Batch(tf.constant(x[order]), tf.constant(y[order]))
        target = nlb.gradients.objective(model, loss)
        statistic = compute(
            target, batch, WithMoments(PlainStep()), None, num_microbatches
        ).statistic
        found.append([float(moment) for moment in statistic[1]])
    expected = [variance, data - variance / 4, total - variance / 4]
    np.testing.assert_allclose(np.mean(found, axis=0), expected, rtol=1e-5)


def compiled(metrics=("mae",)):
    model = nlb.NoisyModel(network())
    model.compile(noisy(), LOSS, metrics=list(metrics), run_eagerly=True)
    return model


def test_logs_are_those_of_a_training_metric(rng, capsys):
    x, y = population(rng)
    model = compiled()
    first = model.fit(
        x, y, batch_size=M, epochs=2, verbose=2, validation_data=(x, y),
        callbacks=[nlb.GradientNoiseMonitor()],
    ).history  # fmt: skip
    assert set(first) == KEYS | {"loss", "mae", "val_loss", "val_mae"}
    assert "gradient_noise_scale: " in capsys.readouterr().out
    assert set(model.evaluate(x, y, return_dict=True, verbose=0)) == {"loss", "mae"}
    later = model.fit(x, y, batch_size=M, verbose=0).history
    assert set(later) == {"loss", "mae"}
    np.testing.assert_allclose(first["loss"][0], later["loss"][0], rtol=1e-5)
    again = model.fit(x, y, batch_size=M, verbose=0, callbacks=[nlb.GradientNoiseMonitor()])
    assert set(again.history) == KEYS | {"loss", "mae"}


def test_a_monitored_run_trains_as_another(rng):
    x, y = population(rng)
    weights = []
    for callbacks in ([], [nlb.GradientNoiseMonitor()]):
        model = nlb.NoisyModel(network())
        model.compile(noisy(inner=keras.optimizers.SGD(0.1)), LOSS, run_eagerly=True)
        model.fit(x, y, batch_size=M, verbose=0, shuffle=False, callbacks=callbacks)
        weights.append(flat(model.get_weights()))
    np.testing.assert_allclose(*weights, rtol=1e-4, atol=1e-5)


def test_a_failed_run_is_no_longer_monitored(rng):
    x, y = population(rng)
    model = compiled()

    class Failing(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        model.fit(x, y, batch_size=M, verbose=0, callbacks=[nlb.GradientNoiseMonitor(), Failing()])
    assert set(model.fit(x, y, batch_size=M, verbose=0).history) == {"loss", "mae"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_the_logs(tmp_path, rng):
    pytest.importorskip("tensorboard")
    x, y = population(rng)
    board = keras.callbacks.TensorBoard(tmp_path)
    compiled().fit(x, y, M, 1, 0, [board, nlb.GradientNoiseMonitor()])
    tags = {
        value.tag
        for file in map(str, tmp_path.rglob("*tfevents*"))
        for record in tf.data.TFRecordDataset(file)
        for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value
    }
    assert {f"epoch_{key}" for key in KEYS} <= tags


def test_other_models_are_refused(rng):
    model = network()
    model.compile("sgd", LOSS)
    with pytest.raises(ValueError, match=r"NoisyModel\(model\)\. Received: Sequential"):
        model.fit(*population(rng), verbose=0, callbacks=[nlb.GradientNoiseMonitor()])


def test_batches_without_halves_are_left_out_and_a_lost_signal_is_infinite():
    metric = GradientNoise()
    metric.update_state(8.0, 2.0, 2.0, 1.0, 4, Parts(), False)
    before = {key: float(value) for key, value in metric.result().items()}
    assert before == pytest.approx({
        "gradient_norm": 2.0, "noise_norm": 1.0, "noise_to_gradient": 0.5, "fisher_trace": 10.0,
        "gradient_noise_scale": 4.0, "skipped_steps": 0.0,
    })  # fmt: skip
    metric.update_state(0.0, 7.0, 7.0, 9.0, 1, Parts(), False)
    assert {key: float(value) for key, value in metric.result().items()} == before
    metric.update_state(8.0, -3.0, -3.0, 1.0, 4, Parts(), False)
    after = {key: float(value) for key, value in metric.result().items()}
    assert after["gradient_noise_scale"] == np.inf
    assert after["fisher_trace"] == pytest.approx(7.5)
    assert after["gradient_norm"] == pytest.approx(np.sqrt(1.5))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("moment", range(4))
def test_steps_that_are_not_finite_are_left_out_and_counted(wrong, moment):
    metric = GradientNoise()
    moments = [8.0, 2.0, 2.0, 1.0]
    overflowed = [wrong if k == moment else value for k, value in enumerate(moments)]
    metric.update_state(*overflowed, 4, Parts(), False)
    alone = {key: float(value) for key, value in metric.result().items()}
    assert alone.pop("skipped_steps") == 1
    assert np.isnan(list(alone.values())).all()
    metric.update_state(*moments, 4, Parts(), False)
    metric.update_state(*overflowed, 4, Parts(), False)
    both = {key: float(value) for key, value in metric.result().items()}
    assert both.pop("skipped_steps") == 2
    expected = GradientNoise()
    expected.update_state(*moments, 4, Parts(), False)
    assert both == {key: float(expected.result()[key]) for key in both}


def test_overflows_of_mixed_precision_are_counted(rng):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = nlb.NoisyModel(network())
        scaled = keras.optimizers.LossScaleOptimizer(noisy(), initial_scale=2.0**22)
        model.compile(scaled, LOSS, run_eagerly=True)
        x, y = population(rng)
        x, y = np.repeat(x, 8, axis=0), np.repeat(y, 8, axis=0)
        logs = model.fit(x, y, M, verbose=0, callbacks=[nlb.GradientNoiseMonitor()]).history
    finally:
        keras.config.set_dtype_policy("float32")
    steps = len(x) // M
    done = int(scaled.inner_optimizer.iterations.numpy())
    assert 0 < done < steps
    assert logs["skipped_steps"] == [steps - done]
    assert np.isfinite([logs[key] for key in KEYS]).all()


def test_a_step_that_overflows_on_one_device_is_left_out_on_all(rng):
    x, y = population(rng)
    x, y = x[: 2 * M], y[: 2 * M]
    x[-1] = np.inf
    with on_devices(2).scope():
        model = nlb.NoisyModel(network())
        model.compile(scaling(noisy(noise_steps=0)), LOSS, jit_compile=False)
    seen = []
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: seen.append({**logs}))
    model.fit(
        x, y, batch_size=M, shuffle=False, verbose=0, callbacks=[nlb.GradientNoiseMonitor(), watch]
    )
    assert [logs.pop("skipped_steps") for logs in seen] == [0, 1]
    for key in KEYS - {"skipped_steps"}:
        assert seen[0][key] == seen[1][key]  # and are numbers
