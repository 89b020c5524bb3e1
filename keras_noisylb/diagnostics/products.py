"""Scalar products and squares of the per-example gradients of a data set, for both engines."""

import functools

import keras
import tensorflow as tf

from keras_noisylb.diagnostics.gram import gram
from keras_noisylb.gradients.batch import Batch
from keras_noisylb.gradients.engines import layerwise_layers
from keras_noisylb.gradients.layerwise import Tapped
from keras_noisylb.gradients.slices import slice_size
from keras_noisylb.gradients.vectorized import Replay


def gradients_of(objective, dataset, engine="auto"):
    """The per-example gradients of a data set, one part at a time.

    Args:
        objective: an `Objective`.
        dataset: batches with their `element_spec`.
        engine: "auto", "layerwise" or "vectorized_map".

    Returns:
        Function without arguments. It reads the data set once and yields, for each part, a function
        that computes a `LayerGradients` or a `StackedGradients`.

    Raises:
        ValueError: if the engine does not support the model.
    """

    def batches():
        for batch in dataset:
            batch = keras.tree.map_structure(tf.convert_to_tensor, batch)
            if keras.tree.flatten(batch)[0].shape[0]:
                yield batch

    layers = layerwise_layers(objective.model, dataset.element_spec[0], engine)
    if layers is not None:
        return lambda: (
            functools.partial(LayerGradients, objective, layers, batch) for batch in batches()
        )

    def stacked(batch, start, end):
        replay = Replay(objective, Batch(*batch), draws=None)
        arrays = keras.tree.map_structure(lambda array: array[start:end], replay.arrays())
        return replay.per_example(arrays)

    number = tf.TensorSpec((), "int32")
    compiled = tf.function(stacked, input_signature=(dataset.element_spec, number, number))
    size = slice_size(sum(v.shape.num_elements() for v in objective.variables), "float32")
    return lambda: (
        functools.partial(StackedGradients, compiled, batch, start, min(start + size, examples))
        for batch in batches()
        for examples in [keras.tree.flatten(batch)[0].shape[0]]
        for start in range(0, examples, size)
    )


class LayerGradients:
    """The gradients of one batch, stored as the layers' inputs and output gradients.

    Args:
        objective: an `Objective`.
        layers: the layers to record, as found by `coverage`.
        batch: tuple (x, y) or (x, y, sample_weight).
    """

    def __init__(self, objective, layers, batch):
        batch = Batch(*batch)
        self.num_examples = batch.num_examples
        # The tape, which holds all activations, is released when this function returns.
        tapped = Tapped(objective, layers, batch, draws=None)
        by_variable, _ = tapped.by_variable(tapped.recorded.fisher_loss)
        index = {id(v): k for k, v in enumerate(objective.variables)}
        self._found = {index[id(found.variable)]: found for found in by_variable}

    def squares(self):
        """Yield each variable's index and Σ_i g_i²."""
        for k, gradients in self._found.items():
            yield k, self.num_examples**2 * gradients.sums(self.num_examples)[1]

    def products(self, other):
        """Yield each variable's index and the matrix g_i · g_j with the examples j of `other`."""
        for k, gradients in self._found.items():
            product = gram(gradients, other._found[k])
            yield k, self.num_examples * other.num_examples * product


class StackedGradients:
    """The gradients of a few examples: one tensor per variable, with the examples first.

    Args:
        compute: function `(batch, start, end)` that returns these tensors.
        batch: tuple (x, y) or (x, y, sample_weight).
        start: the first example.
        end: the example after the last.
    """

    def __init__(self, compute, batch, start, end):
        self.num_examples = end - start
        self._gradients = compute(batch, tf.constant(start), tf.constant(end))

    def squares(self):
        """Yield each variable's index and Σ_i g_i²."""
        for k, gradients in enumerate(self._gradients):
            yield k, tf.reduce_sum(tf.square(gradients), axis=0)

    def products(self, other):
        """Yield each variable's index and the matrix g_i · g_j with the examples j of `other`."""
        for k, pair in enumerate(zip(self._gradients, other._gradients, strict=True)):
            a, b = (tf.reshape(g, (g.shape[0], -1)) for g in pair)
            yield k, tf.matmul(a, b, transpose_b=True)
