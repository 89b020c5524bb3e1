"""Single examples go through a model with the statistics and masks of their batch."""

import keras
import tensorflow as tf

from keras_noisylb.gradients.taps import all_layers
from keras_noisylb.layers import GhostBatchNormalization

MASKS = (
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)


def replayed_layers(model):
    """The layers whose calls are recorded: they couple the examples of a batch or are random."""
    return [
        layer
        for layer in all_layers(model)
        if isinstance(layer, MASKS)
        or (isinstance(layer, GhostBatchNormalization) and layer.trainable)
    ]


def record(saved):
    """A handler that appends what `replay` needs to `saved`, examples first."""

    def handler(layer, call, inputs, **kwargs):
        if isinstance(layer, GhostBatchNormalization):
            saved.append(layer.ghost_statistics(inputs))
            return call(inputs, **kwargs)
        mask = call(tf.ones_like(inputs), **kwargs)
        saved.append((mask,))
        return inputs * mask

    return handler


def replay(saved):
    """A handler that repeats recorded calls for one example, given its rows of `saved`."""
    rows = iter(saved)

    def handler(layer, call, inputs, **kwargs):
        row = [value[None] for value in next(rows)]
        if isinstance(layer, GhostBatchNormalization):
            return layer.scale_and_shift(layer.normalize(inputs, *row))
        return inputs * row[0]

    return handler
