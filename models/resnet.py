"""Residual networks for CIFAR."""

import functools
import numbers

import keras
from keras import layers

from keras_noisylb.models.blocks import Blocks, ImageShape, Normalization, image_input


def ResNet(
    num_classes: int = 10,
    *,
    input_shape: ImageShape = (32, 32, 3),
    depth: int = 44,
    width: int = 1,
    normalization: Normalization = "ghost",
    ghost_batch_size: int = 128,
    l2: float = 0.0,
    name: str | None = None,
) -> keras.Model:
    """Residual network for CIFAR (He et al. 2016, section 4.2, https://arxiv.org/abs/1512.03385).

    A 3x3 convolution; three stages with 16, 32 and 64 filters, each with n blocks of two 3x3
    convolutions; the mean over all positions; and the logits. Shortcuts have no parameters (option
    A of He et al.): if a stage halves the resolution, its first shortcut takes every second pixel
    and fills the new channels with zeros.

    Args:
        num_classes: number of logits.
        input_shape: shape (height, width, channels) of one image.
        depth: number of layers with weights, 6n + 2.
        width: factor of the number of filters in all layers.
        normalization: `"ghost"`, `"batch"` or `None`, after each convolution.
        ghost_batch_size: number of examples in a ghost batch.
        l2: factor of the squared norm of the kernels in the loss.
        name: name of the model, by default for example "resnet44" or "resnet44x2".

    Returns:
        A functional `keras.Model` from (B, *input_shape) to logits (B, num_classes).

    Raises:
        ValueError: if the normalization, depth or width is invalid.

    Example:
    >>> ResNet(depth=20, normalization=None).count_params()
    269034
    """
    if not isinstance(depth, numbers.Integral) or depth < 8 or depth % 6 != 2:
        raise ValueError(
            "`depth` must be 6n + 2 with n blocks in each of three stages, such as 8, 20, 32, 44, "
            f"56 or 110. Received: depth={depth!r}"
        )
    if not isinstance(width, numbers.Integral) or width < 1:
        raise ValueError(
            "`width` must be a positive integer, the factor of the number of filters. "
            f"Received: width={width!r}"
        )
    blocks = Blocks(normalization, ghost_batch_size, l2)
    inputs = image_input(input_shape)
    x = blocks.conv_norm_relu(inputs, 16 * width, 3, "stem_conv", padding="same")
    for stage in (1, 2, 3):
        for block in range(1, (depth - 2) // 6 + 1):
            halve = stage > 1 and block == 1
            x = residual_block(blocks, x, f"stage{stage}_block{block}", halve)
    x = layers.GlobalAveragePooling2D(name="global_pool")(x)
    name = name or f"resnet{depth}" + (f"x{width}" if width > 1 else "")
    return keras.Model(inputs, blocks.logits(x, num_classes), name=name)


def residual_block(blocks, x, name, halve):
    """ReLU of the sum of two 3x3 convolutions and their input.

    Args:
        blocks: the model's `Blocks`.
        x: symbolic tensor.
        name: prefix of the layers' names.
        halve: whether to halve the resolution and double the channels.

    Returns:
        Symbolic tensor.
    """
    shortcut, channels = x, x.shape[-1]
    options = {"padding": "same"}
    if halve:
        # Padding "same" would shift a strided convolution against the pixels of the shortcut.
        x = layers.ZeroPadding2D(1, name=f"{name}_conv1_pad")(x)
        options = {"strides": 2}
        shortcut = layers.AveragePooling2D(1, strides=2, name=f"{name}_shortcut_pool")(shortcut)
        # With data_format="channels_first", the layer pads the last two axes: width and channels.
        shortcut = layers.ZeroPadding2D(
            ((0, 0), (0, channels)), data_format="channels_first", name=f"{name}_shortcut_pad"
        )(shortcut)
        channels *= 2
    x = blocks.conv_norm_relu(x, channels, 3, f"{name}_conv1", **options)
    x = blocks.conv(x, channels, 3, f"{name}_conv2", padding="same")
    x = blocks.norm(x, f"{name}_conv2")
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.ReLU(name=f"{name}_relu")(x)


def ResNet44(
    num_classes: int = 10,
    *,
    input_shape: ImageShape = (32, 32, 3),
    normalization: Normalization = "ghost",
    ghost_batch_size: int = 128,
    l2: float = 0.0,
    name: str = "resnet44",
) -> keras.Model:
    """`ResNet` of depth 44, with 0.66 M parameters. See `ResNet` for the arguments.

    Example:
    >>> ResNet44().name
    'resnet44'
    """
    return ResNet(
        num_classes,
        input_shape=input_shape,
        depth=44,
        width=1,
        normalization=normalization,
        ghost_batch_size=ghost_batch_size,
        l2=l2,
        name=name,
    )


def ResNet44x2(
    num_classes: int = 10,
    *,
    input_shape: ImageShape = (32, 32, 3),
    normalization: Normalization = "ghost",
    ghost_batch_size: int = 128,
    l2: float = 0.0,
    name: str = "resnet44x2",
) -> keras.Model:
    """`ResNet` of depth 44 with twice the filters and 2.6 M parameters; the paper's for CIFAR-100.

    Example:
    >>> ResNet44x2().output_shape
    (None, 10)
    """
    return ResNet(
        num_classes,
        input_shape=input_shape,
        depth=44,
        width=2,
        normalization=normalization,
        ghost_batch_size=ghost_batch_size,
        l2=l2,
        name=name,
    )


BUILDERS = {
    "resnet8": functools.partial(ResNet, depth=8),
    "resnet44": ResNet44,
    "resnet44x2": ResNet44x2,
}
