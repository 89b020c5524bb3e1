"""Multilayer perceptron."""

from collections.abc import Sequence

import keras

from keras_noisylb.models.blocks import Blocks, Normalization


def MLP(
    num_classes: int = 10,
    *,
    input_shape: tuple[int, ...] = (28, 28, 1),
    hidden_units: Sequence[int] = (512,) * 5,
    normalization: Normalization = "ghost",
    ghost_batch_size: int = 128,
    l2: float = 0.0,
    name: str = "mlp",
) -> keras.Model:
    """Fully connected network; by default F1 of Hoffer et al. 2017, with five hidden layers of 512.

    Args:
        num_classes: number of logits.
        input_shape: shape of one input; it is flattened.
        hidden_units: number of units of each hidden layer.
        normalization: `"ghost"`, `"batch"` or `None`, before each ReLU.
        ghost_batch_size: number of examples in a ghost batch.
        l2: factor of the squared norm of the kernels in the loss.
        name: name of the model.

    Returns:
        A functional `keras.Model` from (B, *input_shape) to logits (B, num_classes).

    Raises:
        ValueError: if the normalization is unknown.

    Example:
    >>> MLP(hidden_units=(32,)).output_shape
    (None, 10)
    """
    blocks = Blocks(normalization, ghost_batch_size, l2)
    inputs = keras.Input(input_shape)
    x = blocks.dense_stack(inputs, hidden_units)
    return keras.Model(inputs, blocks.logits(x, num_classes), name=name)


BUILDERS = {"mlp": MLP}
