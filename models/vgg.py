"""The VGG family."""

import functools
from collections.abc import Sequence

import keras
from keras import layers

from keras_noisylb.models.blocks import Blocks, ImageShape, Normalization, image_input

# Filters and number of convolutions of each stage.
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
SMALL_STAGES = ((16, 2), (32, 2), (64, 2))


def VGG(
    num_classes: int = 10,
    *,
    stages: Sequence[tuple[int, int]],
    input_shape: ImageShape = (32, 32, 3),
    dense_units: Sequence[int] = (),
    normalization: Normalization = "ghost",
    ghost_batch_size: int = 128,
    l2: float = 0.0,
    dropout: float = 0.5,
    name: str = "vgg",
) -> keras.Model:
    """VGG: stages of 3x3 convolutions, each ended by max pooling (Simonyan and Zisserman 2014).

    `models.get("vgg7")` is a small one of six convolutions, with 16, 32 and 64 filters.

    Args:
        num_classes: number of logits.
        stages: tuple (filters, number of convolutions) of each stage.
        input_shape: shape (height, width, channels) of one image. Each stage halves height and
            width, so they are at least 2 to the number of stages.
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
    >>> VGG(stages=[(16, 1), (32, 2)], input_shape=(16, 16, 3)).output_shape
    (None, 10)
    """
    blocks = Blocks(normalization, ghost_batch_size, l2)
    inputs = x = image_input(input_shape, smallest=2 ** len(stages))
    for stage, (filters, convolutions) in enumerate(stages, start=1):
        for k in range(1, convolutions + 1):
            x = blocks.conv_norm_relu(x, filters, 3, f"stage{stage}_conv{k}", padding="same")
        x = layers.MaxPooling2D(name=f"stage{stage}_pool")(x)
    x = blocks.dense_stack(x, dense_units, dropout)
    return keras.Model(inputs, blocks.logits(x, num_classes), name=name)


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
    """`VGG` with 13 convolutions in five stages (configuration D). See `VGG` for the arguments.

    The default is the usual variant for CIFAR: the logits follow the last pooling. The variant for
    ImageNet has `dense_units=(4096, 4096)`, `input_shape=(224, 224, 3)`, `num_classes=1000`, and in
    the paper `normalization=None` (https://arxiv.org/abs/1409.1556).

    Example:
    >>> VGG16(normalization=None).count_params()
    14719818
    """
    return VGG(
        num_classes,
        stages=STAGES,
        input_shape=input_shape,
        dense_units=dense_units,
        normalization=normalization,
        ghost_batch_size=ghost_batch_size,
        l2=l2,
        dropout=dropout,
        name=name,
    )


BUILDERS = {"vgg7": functools.partial(VGG, stages=SMALL_STAGES, name="vgg7"), "vgg16": VGG16}
