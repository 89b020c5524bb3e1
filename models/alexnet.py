"""AlexNet for CIFAR."""

import keras
from keras import layers

from keras_noisylb.models.blocks import Blocks, ImageShape, Normalization, image_input


def AlexNet(
    num_classes: int = 10,
    *,
    input_shape: ImageShape = (32, 32, 3),
    normalization: Normalization = "ghost",
    ghost_batch_size: int = 128,
    l2: float = 0.0,
    dropout: float = 0.5,
    name: str = "alexnet",
) -> keras.Model:
    """The reduced AlexNet of Hoffer et al. 2017 for CIFAR (https://arxiv.org/abs/1705.08741).

    Two blocks of 64 5x5 filters, 3x3 pooling with stride 2, normalisation and ReLU; then dense
    layers of 384 and 192 units with dropout. The original is by Krizhevsky et al. 2012.

    Args:
        num_classes: number of logits.
        input_shape: shape (height, width, channels) of one image, at least 7x7.
        normalization: `"ghost"`, `"batch"` or `None`, before each ReLU.
        ghost_batch_size: number of examples in a ghost batch.
        l2: factor of the squared norm of the kernels in the loss.
        dropout: fraction of the hidden units that are dropped.
        name: name of the model.

    Returns:
        A functional `keras.Model` from (B, *input_shape) to logits (B, num_classes).

    Raises:
        ValueError: if the normalization is unknown, or the images are too small.

    Example:
    >>> AlexNet().get_layer("pool2").output.shape
    (None, 7, 7, 64)
    """
    blocks = Blocks(normalization, ghost_batch_size, l2)
    inputs = x = image_input(input_shape, smallest=7)
    for k in (1, 2):
        x = blocks.conv(x, 64, 5, f"conv{k}", padding="same")
        x = layers.MaxPooling2D(3, strides=2, name=f"pool{k}")(x)
        x = blocks.norm_relu(x, f"conv{k}")
    x = blocks.dense_stack(x, (384, 192), dropout)
    return keras.Model(inputs, blocks.logits(x, num_classes), name=name)


BUILDERS = {"alexnet": AlexNet}
