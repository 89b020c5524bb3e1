"""The memory of a step, computed from its graph, against counts by hand."""

import keras
import pytest
import tensorflow as tf

import keras_noisylb as nlb
from keras_noisylb.gradients.microbatches import cut
from keras_noisylb.gradients.statistics import PlainStep
from keras_noisylb.reporting import memory

L = keras.layers
GHOST = 16


def graph_of(function, *shapes):
    specs = [tf.TensorSpec(shape) for shape in shapes]
    return tf.function(function, input_signature=specs).get_concrete_function().graph


def test_tensors_live_until_their_last_use():
    def chain(x):
        a = tf.exp(x)  # 400 bytes beside x
        b = tf.exp(a)  # and now x is free
        return tf.exp(tf.reshape(b, (10, 10)))  # reshaped, b is not a new tensor

    def fork(x):
        a = tf.exp(x)
        return tf.exp(tf.exp(tf.exp(a))) + a  # a waits

    constants = 2 * 4  # the shape that reshape takes
    assert memory._peak(graph_of(chain, (100,))) == pytest.approx(800, abs=constants)
    assert memory._peak(graph_of(fork, (100,))) == 1200


def test_a_dense_network_by_hand():
    """Forward, x, h and y are kept; backward needs the gradients of one layer at a time."""
    rows, wide = 1000, 64
    model = keras.Sequential([keras.Input((8,)), L.Dense(wide, use_bias=False), L.Dense(1)])
    found = memory.microbatch_bytes(model, PlainStep(), tf.TensorSpec((None, 8)), rows)
    activations = 4 * rows * (8 + wide)
    assert activations < found / memory.ALLOWANCE < 4 * rows * (8 + 2 * wide) + 20_000
    twice = memory.microbatch_bytes(model, PlainStep(), tf.TensorSpec((None, 8)), 2 * rows)
    assert twice == pytest.approx(2 * found, rel=0.05)


@pytest.mark.parametrize("batch_size", [100, 256, 1000])
@pytest.mark.parametrize("limit", [1, 20, 100, 333, 2000])
def test_the_fewest_microbatches_are_found(batch_size, limit):
    number, found = memory.fewest_microbatches(lambda rows: rows, limit, batch_size, [GHOST])
    sizes = {
        2**k: cut(batch_size, 2**k, [GHOST]).largest for k in range(7) if 2**k * GHOST <= batch_size
    }
    fitting = [k for k, size in sizes.items() if size <= limit]
    assert number == min(fitting, default=None)
    assert found == sizes[number or max(sizes)]


@pytest.mark.parametrize(("estimator", "fisher"), [("split", "empirical"), ("per_example", "true")])
def test_the_report_names_a_number_of_microbatches(estimator, fisher):
    model = keras.Sequential([
        keras.Input((16, 16, 1)),
        L.Conv2D(8, 3, padding="same", activation="relu"),
        nlb.GhostBatchNormalization(GHOST),
        L.GlobalAveragePooling2D(),
        L.Dense(3),
    ])
    noise = nlb.DiagonalFisher(GHOST, estimator=estimator, fisher=fisher)
    whole = nlb.report(model, noise, 256, memory=100)
    assert whole.num_microbatches == 1
    assert whole.gibibytes > 256 * 16 * 16 * 2 * 8 * 4 / 2**30
    part = nlb.report(model, noise, 256, memory=0.6 * whole.gibibytes)
    assert part.num_microbatches > 1 and part.gibibytes <= 0.6 * whole.gibibytes
    assert f"num_microbatches={part.num_microbatches} " in str(part)
    never = nlb.report(model, noise, 256, memory=1e-6)
    assert never.num_microbatches is None and "No num_microbatches" in str(never)


def test_what_cannot_be_told_is_refused():
    model = keras.Sequential([keras.Input((4,)), L.Dense(2)])
    with pytest.raises(ValueError, match="cannot be read off the graph"):
        nlb.report(model, nlb.DiagonalFisher(8, engine="vectorized_map"), 256, memory=1.0)
    with pytest.raises(ValueError, match="`memory` must be"):
        nlb.report(model, nlb.DiagonalFisher(8), 256, memory=-1.0)
