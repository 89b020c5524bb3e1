"""LeNet."""

import keras
from keras import layers

from keras_noisylb.models.blocks import Blocks, ImageShape, Normalization, image_input


def LeNet(
    num_classes: int = 10,
    *,
    input_shape: ImageShape = (28, 28, 1),
    normalization: Normalization = "ghost",
    ghost_batch_size: int = 128,
    l2: float = 0.0,
    name: str = "lenet",
) -> keras.Model:
    """LeNet with 20 and 50 5x5 filters and 500 hidden units (LeCun et al. 1998, Caffe's variant).

    Args:
        num_classes: number of logits.
        input_shape: shape (height, width, channels) of one image, at least 16x16.
        normalization: `"ghost"`, `"batch"` or `None`, before each ReLU.
        ghost_batch_size: number of examples in a ghost batch.
        l2: factor of the squared norm of the kernels in the loss.
        name: name of the model.

    Returns:
        A functional `keras.Model` from (B, *input_shape) to logits (B, num_classes).

    Raises:
        ValueError: if the normalization is unknown, or the images are too small.

    Example:
    >>> LeNet(normalization=None).count_params()
    431080
    """
    blocks = Blocks(normalization, ghost_batch_size, l2)
    inputs = x = image_input(input_shape, smallest=16)
    for k, filters in enumerate((20, 50), start=1):
        x = blocks.conv_norm_relu(x, filters, 5, f"conv{k}")
        x = layers.MaxPooling2D(name=f"pool{k}")(x)
    x = blocks.dense_stack(x, (500,))
    return keras.Model(inputs, blocks.logits(x, num_classes), name=name)


BUILDERS = {"lenet": LeNet}
