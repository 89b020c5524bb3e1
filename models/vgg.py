"""VGG16."""

from collections.abc import Sequence

import keras
from keras import layers

from keras_noisylb.models.blocks import Blocks, ImageShape, Normalization, image_input

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # filters and number of convolutions


def VGG16(
    num_classes: int = 10,
    *,
    input_shape: ImageShape = (32, 32, 3),
    dense_units: Sequence[int] = (),
    normalization: Normalization = "ghost",
    ghost_batch_size: int = 128,
    l2: float = 0.0,
    dropout: float = 0.5,
    name: str = "vgg16",
) -> keras.Model:
    """VGG with 13 convolutions in five stages (Simonyan and Zisserman 2014, configuration D).

    The default is the usual variant for CIFAR: the logits follow the last pooling. The variant for
    ImageNet has `dense_units=(4096, 4096)`, `input_shape=(224, 224, 3)`, `num_classes=1000`, and in
    the paper `normalization=None` (https://arxiv.org/abs/1409.1556).

    Args:
        num_classes: number of logits.
        input_shape: shape (height, width, channels) of one image, at least 32x32.
        dense_units: number of units of each fully connected layer before the logits.
        normalization: `"ghost"`, `"batch"` or `None`, before each ReLU.
        ghost_batch_size: number of examples in a ghost batch.
        l2: factor of the squared norm of the kernels in the loss.
        dropout: fraction of the units of each fully connected layer that are dropped.
        name: name of the model.

    Returns:
        A functional `keras.Model` from (B, *input_shape) to logits (B, num_classes).

    Raises:
        ValueError: if the normalization is unknown, or the images are too small.

    Example:
    >>> VGG16(normalization=None).count_params()
    14719818
    """
    blocks = Blocks(normalization, ghost_batch_size, l2)
    inputs = x = image_input(input_shape, smallest=32)
    for stage, (filters, convolutions) in enumerate(STAGES, start=1):
        for k in range(1, convolutions + 1):
            x = blocks.conv_norm_relu(x, filters, 3, f"stage{stage}_conv{k}", padding="same")
        x = layers.MaxPooling2D(name=f"stage{stage}_pool")(x)
    x = blocks.dense_stack(x, dense_units, dropout)
    return keras.Model(inputs, blocks.logits(x, num_classes), name=name)


BUILDERS = {"vgg16": VGG16}
