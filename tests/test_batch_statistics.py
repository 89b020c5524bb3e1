"""Layers with batch statistics, when a statistic uses parts of the batch, in float64."""

import foreign_oracle
import keras
import numpy as np
import oracle
import pytest
import sampling
import tensorflow as tf
from foreign_models import GHOST, Problem, squared_error
from keras import layers

import keras_noisylb as nlb
from keras_noisylb import gradients
from keras_noisylb.diagnostics import gram
from keras_noisylb.gradients.accumulate import compute
from keras_noisylb.gradients.batch import Batch
from keras_noisylb.gradients.engines import squares

pytestmark = pytest.mark.usefixtures("float64")
M, KEPT = 7, 5  # of two ghosts, of 4 and 3 examples, the first and a part of the second


def twice(norm):
    """One layer that is called twice: its gradients are added before they are squared."""
    x = inputs = keras.Input((4,))
    for layer in (layers.Dense(4), norm, layers.Activation("tanh"), layers.Dense(4), norm):
        x = layer(x)
    return keras.Model(inputs, layers.Dense(3)(x))


def on_images(norm):
    stack = [layers.Conv2D(4, 2), norm, layers.Flatten(), layers.Dense(3)]
    return keras.Sequential([keras.Input((3, 4, 2)), *stack])


def on_masked_sequences(norm):
    stack = [layers.Masking(), norm, layers.GlobalAveragePooling1D(), layers.Dense(3)]
    return keras.Sequential([keras.Input((5, 4)), *stack])


CASES = {
    "batch, twice": lambda: twice(layers.BatchNormalization()),
    "ghosts, twice": lambda: twice(nlb.GhostBatchNormalization(GHOST)),
    "batch, images": lambda: on_images(layers.BatchNormalization()),
    "ghosts, images": lambda: on_images(nlb.GhostBatchNormalization(GHOST)),
    "batch, masked": lambda: on_masked_sequences(layers.BatchNormalization()),
}


@pytest.fixture(params=CASES)
def problem(request, rng):
    model = CASES[request.param]()
    oracle.perturb(model, rng)
    x = rng.standard_normal((M, *model.inputs[0].shape[1:]))
    if request.param.endswith("masked"):
        x[::2, -2:] = 0
    return Problem(model, squared_error, x, rng.standard_normal((M, 3)), coupled=True)


def parts(problem):
    return problem.model, problem.loss, problem.x, problem.y


def test_parts_of_a_batch_are_normalised_as_the_whole(problem, monkeypatch):
    rows = list(foreign_oracle.contributions(problem))
    expected = [np.stack(column) for column in zip(*rows, strict=True)]
    whole, few = ([np.mean(g[:n] ** 2, axis=0) for g in expected] for n in (M, KEPT))
    oracle.assert_close(gradients.per_example_gradients(*parts(problem)), expected)
    for budget in (2**20, 1):  # bytes: all examples at once, and one at a time
        monkeypatch.setattr("keras_noisylb.gradients.slices.SLICE_BYTES", budget)
        oracle.assert_close(gradients.diagonal_fisher(*parts(problem)), whole)
        oracle.assert_close(gradients.diagonal_fisher(*parts(problem), max_examples=KEPT), few)
        noise = nlb.KroneckerFactored(2, max_examples=KEPT)
        ((squares, _),) = sampling.statistics(noise, *parts(problem))
        gained = [k for k, v in enumerate(problem.model.trainable_variables) if v.name == "gamma"]
        oracle.assert_close([squares[k] for k in gained], [few[k] for k in gained])


def test_blocks_of_a_gram_matrix_are_normalised_as_the_whole(problem, monkeypatch):
    rows = list(foreign_oracle.contributions(problem))
    monkeypatch.setattr(gram, "slice_size", lambda elements, dtype: 2)
    found = nlb.diagnostics.fisher_norms(*parts(problem), batch_size=M, verbose=0)
    for column, block_full in zip(zip(*rows, strict=True), found.block_full, strict=True):
        g = np.reshape(column, (M, -1))
        np.testing.assert_allclose(block_full, np.linalg.norm(g @ g.T) / M, rtol=1e-9)


def test_parts_of_microbatches_are_normalised_as_the_whole(rng):
    model = twice(nlb.GhostBatchNormalization(GHOST))
    oracle.perturb(model, rng)
    x, y = rng.standard_normal((M, 4)), rng.standard_normal((M, 3))
    problem = Problem(model, squared_error, x, y, coupled=True)
    rows = [0, 1, 2, 4, 5, 6]  # 5 of 7, rounded up in each of two microbatches of one ghost
    columns = zip(*foreign_oracle.contributions(problem), strict=True)
    expected = [np.mean(np.stack(column)[rows] ** 2, axis=0) for column in columns]
    batch = Batch(tf.constant(x), tf.constant(y))
    target = gradients.objective(model, squared_error)
    kind = squares(model, batch.x, max_examples=KEPT)
    oracle.assert_close(compute(target, batch, kind, None, num_microbatches=2).statistic, expected)
