"""LeNet."""

import keras
from keras import layers

from keras_noisylb.models.blocks import normalize_relu, regularizer


def LeNet(
    num_classes=10,
    input_shape=(28, 28, 1),
    normalization="ghost",
    ghost_batch_size=128,
    l2=0.0,
    name="lenet",
):
    """LeNet with 20 and 50 5x5 filters and 500 hidden units (LeCun et al. 1998, Caffe's form).

    Args:
        num_classes: number of logits.
        input_shape: shape (height, width, channels) of one image, at least 16x16.
        normalization: `"ghost"`, `"batch"` or `None`, before each ReLU.
        ghost_batch_size: examples that ghost batch normalisation takes together.
        l2: factor of the squared norm of the kernels in the loss.
        name: name of the model.

    Returns:
        A functional `keras.Model` from (B, *input_shape) to logits (B, num_classes).

    Raises:
        ValueError: for an unknown normalization.

    Example:
    >>> LeNet(normalization=None).count_params()
    431080
    """
    options = {"kernel_initializer": "he_normal", "kernel_regularizer": regularizer(l2)}
    use_bias = normalization is None  # the normalisation's own offset makes it superfluous
    inputs = x = keras.Input(input_shape)
    for k, filters in enumerate((20, 50), start=1):
        x = layers.Conv2D(filters, 5, use_bias=use_bias, name=f"conv{k}", **options)(x)
        x = normalize_relu(x, f"conv{k}", normalization, ghost_batch_size)
        x = layers.MaxPooling2D(name=f"pool{k}")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(500, use_bias=use_bias, name="dense1", **options)(x)
    x = normalize_relu(x, "dense1", normalization, ghost_batch_size)
    return keras.Model(inputs, layers.Dense(num_classes, name="logits", **options)(x), name=name)
