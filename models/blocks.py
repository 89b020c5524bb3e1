"""Building blocks that the models share."""

from typing import Literal, get_args

import keras
from keras import layers

from keras_noisylb.layers import GhostBatchNormalization

ImageShape = tuple[int, int, int]
Normalization = Literal["ghost", "batch", None]


def image_input(input_shape, smallest=1):
    """Symbolic input for images that are large enough for the model's strides.

    Args:
        input_shape: shape (height, width, channels) of one image.
        smallest: smallest height and width.

    Returns:
        Symbolic tensor (B, *input_shape).

    Raises:
        ValueError: if `input_shape` has another form, or is too small.
    """
    shape = tuple(input_shape)
    if len(shape) != 3 or None in shape or min(shape[:2]) < smallest:
        raise ValueError(
            f"`input_shape` must be (height, width, channels) of at least {smallest}x{smallest} "
            f"pixels for this model. Received: input_shape={input_shape}. Resize or pad the "
            "images, or use a model with less pooling."
        )
    return keras.Input(shape)


class Blocks:
    """Adds layers with the same normalisation, initialisation and regularisation.

    Kernels are initialised as in He et al. 2015. Each method takes a symbolic tensor and the prefix
    of its layers' names, and returns a symbolic tensor.

    Args:
        normalization: `"ghost"`, `"batch"` or `None`.
        ghost_batch_size: number of examples in a ghost batch.
        l2: factor of the squared norm of the kernels in the loss.

    Raises:
        ValueError: if the normalization is unknown.
    """

    def __init__(self, normalization: Normalization, ghost_batch_size: int, l2: float) -> None:
        allowed = get_args(Normalization)
        if normalization not in allowed:
            raise ValueError(
                f"`normalization` must be one of {allowed}. Received: {normalization!r}"
            )
        self.normalization = normalization
        self.ghost_batch_size = ghost_batch_size
        self.kernel_options = {
            "kernel_initializer": "he_normal",
            "kernel_regularizer": keras.regularizers.L2(l2) if l2 else None,
        }
        # The offset of the normalisation makes a bias redundant.
        self.options = {"use_bias": normalization is None, **self.kernel_options}

    def conv(self, x, filters, size, name, **options):
        """A convolution with square filters; normalisation must follow."""
        return layers.Conv2D(filters, size, name=name, **self.options, **options)(x)

    def norm(self, x, name):
        """The normalisation, if there is one."""
        if self.normalization == "ghost":
            return GhostBatchNormalization(self.ghost_batch_size, name=f"{name}_norm")(x)
        if self.normalization == "batch":
            return layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
        return x

    def norm_relu(self, x, name):
        """The normalisation, then ReLU."""
        return layers.ReLU(name=f"{name}_relu")(self.norm(x, name))

    def conv_norm_relu(self, x, filters, size, name, **options):
        """A convolution, the normalisation, then ReLU."""
        return self.norm_relu(self.conv(x, filters, size, name, **options), name)

    def dense_stack(self, x, units, dropout=0.0):
        """Flatten, then fully connected layers dense1, dense2, ..., each followed by dropout."""
        x = layers.Flatten(name="flatten")(x)
        for k, width in enumerate(units, start=1):
            x = layers.Dense(width, name=f"dense{k}", **self.options)(x)
            x = self.norm_relu(x, f"dense{k}")
            if dropout:
                x = layers.Dropout(dropout, name=f"dense{k}_dropout")(x)
        return x

    def logits(self, x, num_classes):
        """The last layer, with bias and without normalisation."""
        return layers.Dense(num_classes, name="logits", **self.kernel_options)(x)
