import math
from fractions import Fraction

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_noisylb.schedules import WarmupStepDecay, linear_scaling, sqrt_scaling, updates_in


def reference(step, learning_rate, warmup_steps, decay_steps, decay_factor):
    """Multiply step by step, in plain Python."""
    if step < warmup_steps:
        learning_rate *= (step + 1) / warmup_steps
    for boundary in decay_steps:
        if step >= boundary:
            learning_rate *= decay_factor
    return learning_rate


def scheduled(learning_rate, warmup_steps, decay_steps, decay_factor):
    return WarmupStepDecay(
        learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=decay_steps,
        decay_factor=decay_factor,
    )


CONFIGS = [
    (0.5, 0, (), 0.1),
    (1.6, 4, (10, 15), 0.1),
    (1.6, 1, (3, 3), 0.5),
    (2.0, 8, (5, 20), 0.5),  # a boundary within the warm-up
]


@pytest.mark.parametrize("config", CONFIGS)
def test_equals_a_loop(config):
    schedule = scheduled(*config)
    expected = [reference(step, *config) for step in range(30)]
    compiled = [
        tf.function(schedule, jit_compile=jit, input_signature=[tf.TensorSpec((), "int64")])
        for jit in (False, True)
    ]
    calls = [schedule, lambda step: schedule(float(step)), lambda step: schedule(tf.constant(step))]
    for call in calls + compiled:
        actual = [call(step) for step in range(30)]
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
        assert actual[0].dtype == "float32"


def test_in_a_program_of_float64(float64):
    schedule = scheduled(*CONFIGS[1])
    found = [float(schedule(step)) for step in range(20)]
    np.testing.assert_allclose(found, [reference(k, *CONFIGS[1]) for k in range(20)], rtol=1e-6)


def test_drives_an_optimizer_and_is_restored_with_it():
    optimizer = keras.optimizers.SGD(WarmupStepDecay(0.8, warmup_steps=2, decay_steps=[3]))
    optimizer = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    variable = keras.Variable(0.0)
    steps = []
    for _ in range(5):
        before = float(variable.value)
        optimizer.apply([tf.constant(-1.0)], [variable])
        steps.append(float(variable.value) - before)
    np.testing.assert_allclose(steps, [0.4, 0.8, 0.8, 0.08, 0.08], rtol=1e-5)


def test_config_round_trip():
    schedule = WarmupStepDecay(1.6, warmup_steps=120, decay_steps=(1200, 1800), decay_factor=0.2)
    config = keras.optimizers.schedules.serialize(schedule)
    copy = keras.optimizers.schedules.deserialize(config)
    assert isinstance(copy, WarmupStepDecay)
    assert copy.get_config() == schedule.get_config()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -1.0}, r"must not be negative.*learning_rate=-1.0"),
        ({"learning_rate": float("nan")}, "must not be negative"),
        ({"learning_rate": 1.0, "warmup_steps": -2}, "warmup_steps=-2"),
        ({"learning_rate": 1.0, "decay_steps": (5, 3)}, r"increasing.*\(5, 3\)"),
        ({"learning_rate": 1.0, "decay_steps": (-1,)}, "not negative"),
        ({"learning_rate": 1.0, "decay_factor": 0}, r"positive. Received: 0"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        WarmupStepDecay(**options)


def test_scaling_rules():
    assert linear_scaling(0.1, 4096, 128) == pytest.approx(3.2)
    assert sqrt_scaling(0.1, 400, 100) == pytest.approx(0.2)
    for rule in (linear_scaling, sqrt_scaling):
        assert rule(0.1, 64, 64) == 0.1
        with pytest.raises(ValueError, match="batch_size=0"):
            rule(0.1, 0, 64)


def test_updates_in_a_part_of_a_training():
    cases = [(percent, total) for percent in range(101) for total in (*range(40), 100, 391, 19550)]
    for percent, total in cases:
        exact = math.ceil(Fraction(percent, 100) * total)
        assert updates_in(percent / 100, total) == exact
    assert any(math.ceil(p / 100 * n) > math.ceil(Fraction(p, 100) * n) for p, n in cases)
