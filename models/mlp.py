"""Multilayer perceptron."""

import keras

from keras_noisylb.models.blocks import Blocks


def MLP(
    num_classes=10,
    input_shape=(28, 28, 1),
    hidden_units=(512,) * 5,
    normalization="ghost",
    ghost_batch_size=128,
    l2=0.0,
    name="mlp",
):
    """Fully connected network; by default F1 of Hoffer et al. 2017, five hidden layers of 512.

    Args:
        num_classes: number of logits.
        input_shape: shape of one input; it is flattened.
        hidden_units: units of each hidden layer.
        normalization: `"ghost"`, `"batch"` or `None`, before each ReLU.
        ghost_batch_size: examples that ghost batch normalisation takes together.
        l2: factor of the squared norm of the kernels in the loss.
        name: name of the model.

    Returns:
        A functional `keras.Model` from (B, *input_shape) to logits (B, num_classes).

    Raises:
        ValueError: for an unknown normalization.

    Example:
    >>> MLP(hidden_units=(32,)).output_shape
    (None, 10)
    """
    blocks = Blocks(normalization, ghost_batch_size, l2)
    inputs = keras.Input(input_shape)
    x = blocks.dense_stack(inputs, hidden_units)
    return keras.Model(inputs, blocks.logits(x, num_classes), name=name)
