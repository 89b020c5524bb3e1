"""Many samples of a noise, and what they are compared with."""

import numpy as np
import oracle
import tensorflow as tf

import keras_noisylb as nlb


def jacobian(losses, variables):
    """The gradient of each of the examples' losses, which `losses()` computes for a whole batch."""
    with tf.GradientTape() as tape:
        value = losses()
    return oracle.dense(tape.jacobian(value, variables))


def matrix(columns):
    """A list of arrays with examples first as one matrix."""
    return np.concatenate([np.reshape(column, (len(column), -1)) for column in columns], axis=1)


def second_moment(gradients):
    g = matrix(gradients)
    return g.T @ g / len(g)


def draw(noise, model, loss, x, y, count=3000, rows=None, jit=False, **options):
    """The noise of `count` seeds, one row each, of the batch or of rows that `rows(seed)` picks."""

    def one(seed):
        batch = (x, y) if rows is None else (tf.gather(x, rows(seed)), tf.gather(y, rows(seed)))
        _, found = nlb.noisy_gradients(model, loss, *batch, noise, seed, **options)
        return tf.concat([tf.reshape(n, [-1]) for n in found if n is not None], axis=0)

    if jit:
        one = tf.function(one, jit_compile=True, autograph=False)

    @tf.function(autograph=False)
    def each(seeds):
        return tf.map_fn(one, seeds, fn_output_signature=model.trainable_variables[0].dtype)

    return np.asarray(each(tf.range(count)), "float64")


def worst_z(samples, covariance):
    """Largest deviation of any second moment from `covariance`, in standard errors."""
    size = np.sqrt(np.mean(samples**2))
    samples, covariance = samples / size, covariance / size**2
    count = len(samples)
    moments = samples.T @ samples / count
    variance = (samples**2).T @ samples**2 / count - moments**2
    deviation = np.abs(moments - covariance)
    errors = np.sqrt(np.maximum(variance, 0) / count)
    exact = np.where(deviation > 1e-12, np.inf, 0.0)
    return np.divide(deviation, errors, where=errors > 1e-12, out=exact).max()


def assert_only(samples, right, *wrong):
    """Independent samples of mean 0 and covariance `right`: not 1.2 times that, nor a wrong one."""
    count = len(samples)
    deviation = samples.std(0) + 1e-300
    assert np.abs(samples.mean(0) / deviation).max() < 5 / np.sqrt(count)
    standard = samples / deviation
    assert np.abs(standard[:-1].T @ standard[1:]).max() < 5 * np.sqrt(count)
    assert worst_z(samples, right) < 5
    for covariance in (1.2 * right, *wrong):
        assert worst_z(samples, covariance) > 5


def statistics(noise, *problem, seeds=(0,)):
    """What the noise was given to make its sample of, for each seed."""
    seen, sample = [], noise.sample

    def spy(statistic, amplitude, draws):
        seen.append(statistic)
        return sample(statistic, amplitude, draws)

    noise.sample = spy
    for seed in seeds:
        nlb.noisy_gradients(*problem, noise, seed)
    return seen
