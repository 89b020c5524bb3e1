"""Per-example gradients the slow, obvious way."""

import functools

import numpy as np
import tensorflow as tf


def dense(gradients):
    return [np.asarray(tf.convert_to_tensor(g)) for g in gradients]


def batch_gradient(model, loss, x, y):
    with tf.GradientTape() as tape:
        value = tf.reduce_mean(loss(y, model(x, training=True)))
    return dense(tape.gradient(value, model.trainable_variables))


def one_by_one(model, loss, x, y):
    """Gradient of each example as a batch of its own: right where examples do not interact."""
    rows = [batch_gradient(model, loss, x[i : i + 1], y[i : i + 1]) for i in range(len(y))]
    return [np.stack(column) for column in zip(*rows, strict=True)]


def contributions(forward, variables, loss, x, y):
    """Give every example its own copy of the parameters; M times the gradient for each copy.

    `forward(values, x)` maps parameters with an example axis first and the batch to outputs.
    """
    values = [tf.stack([v.value] * len(y)) for v in variables]
    with tf.GradientTape() as tape:
        tape.watch(values)
        value = tf.reduce_mean(loss(y, forward(values, x)))
    return [len(y) * np.asarray(g) for g in tape.gradient(value, values)]


def perturb(model, rng, size=0.3):
    """Move the weights away from special points such as a zero bias."""
    for v in model.trainable_variables:
        v.assign(v + size * rng.standard_normal(v.shape))


def assert_close(actual, expected, rtol=1e-9):
    for a, e in zip(actual, expected, strict=True):
        a, e = np.asarray(a), np.asarray(e)
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol * max(np.abs(e).max(), 1e-6))


def total_gradient(model, loss, x, y, sample_weight=None, extra=True):
    """Gradient of a training step as Keras takes it: masks, weights and the model's own losses."""
    with tf.GradientTape() as tape:
        value = loss(y, model(x, training=True), sample_weight=sample_weight)
        if extra:
            value = tf.add_n([value, *model.losses])
    return dense(tape.gradient(value, model.trainable_variables))


def flat(tensors):
    """All numbers of a list of tensors in one vector; `None` has none."""
    return np.concatenate([np.ravel(tf.convert_to_tensor(t)) for t in tensors if t is not None])


@functools.cache
def on_devices(number):
    """A strategy for one device or several; always the same one for the same number.

    Not by collectives: TensorFlow numbers these anew for every strategy, so two strategies in one
    process can take each other's, and a step that fails leaves them broken for all that follow.
    """
    if number == 1:
        return tf.distribute.get_strategy()
    reduction = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy([f"CPU:{d}" for d in range(number)], reduction)
