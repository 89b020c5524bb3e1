"""Multilayer perceptron."""

import keras
from keras import layers

from keras_noisylb.models.blocks import normalize_relu, regularizer


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
    options = {"kernel_initializer": "he_normal", "kernel_regularizer": regularizer(l2)}
    inputs = keras.Input(input_shape)
    x = layers.Flatten(name="flatten")(inputs)
    for k, units in enumerate(hidden_units, start=1):
        use_bias = normalization is None
        x = layers.Dense(units, use_bias=use_bias, name=f"dense{k}", **options)(x)
        x = normalize_relu(x, f"dense{k}", normalization, ghost_batch_size)
    return keras.Model(inputs, layers.Dense(num_classes, name="logits", **options)(x), name=name)
