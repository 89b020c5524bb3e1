"""The embedding's rule: numbers by brute force, and what is built for long sentences."""

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from keras import layers

from keras_noisylb import gradients
from keras_noisylb.gradients.blocks import Rows, added

MSE = keras.losses.mean_squared_error
WORDS, WIDTH = 5, 3


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("lengths", [(1,), (9,), (4, 7)])
def test_rows_against_tables(lengths, jit, rng):
    """Several uses of one table, each with words that come more than once."""
    ids = [rng.integers(0, WORDS, (6, n)).astype("int32") for n in lengths]
    d = [rng.standard_normal((6, n, WIDTH)) for n in lengths]
    tables = np.zeros((6, WORDS, WIDTH))
    for words, values in zip(ids, d, strict=True):
        np.add.at(tables, (np.arange(6)[:, None], words), values)

    @tf.function(jit_compile=jit)
    def find(ids, d):
        block = added([Rows(*pair, WORDS) for pair in zip(ids, d, strict=True)])
        return *block.sums(), block.per_example()

    oracle.assert_close(find(ids, d), [tables.sum(0), (tables**2).sum(0), tables])


def sentences(shared, words=WORDS):
    """Words embedded once, or twice by the same table."""
    inputs = keras.Input((None,), dtype="int32")
    table = layers.Embedding(words, WIDTH)
    x = table(inputs) * table(inputs[:, ::-1]) if shared else table(inputs)
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))


@pytest.mark.parametrize("shared", [False, True])
def test_nothing_larger_than_the_embedded_sentences_is_built(shared):
    examples, length = 16, 64
    model = sentences(shared, words=200)

    @tf.function
    def fisher(x, y):
        return gradients.diagonal_fisher(model, MSE, x, y)

    specs = tf.TensorSpec((examples, length), "int32"), tf.TensorSpec((examples, 2))
    graph = fisher.get_concrete_function(*specs).graph
    sizes = [t.shape.num_elements() for op in graph.get_operations() for t in op.outputs]
    embedded = examples * length * WIDTH
    assert None not in sizes and not graph.as_graph_def().library.function
    assert embedded in sizes and max(sizes) <= (1 + shared) * embedded


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("shared", [False, True])
def test_repeated_words_in_a_model(shared, rng):
    model = sentences(shared)
    oracle.perturb(model, rng)
    x, y = rng.integers(0, WORDS, (6, 8)), rng.standard_normal((6, 2))
    expected = [np.mean(g**2, axis=0) for g in oracle.one_by_one(model, MSE, x, y)]
    oracle.assert_close(gradients.diagonal_fisher(model, MSE, x, y, engine="layerwise"), expected)
