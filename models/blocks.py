"""Pieces that the models share."""

import keras

from keras_noisylb.layers import GhostBatchNormalization

NORMALIZATIONS = ("ghost", "batch", None)


def regularizer(l2):
    """L2 regulariser l2 · ‖w‖², or `None` for 0."""
    return keras.regularizers.L2(l2) if l2 else None


def normalize_relu(x, name, normalization, ghost_batch_size):
    """Normalise (or not) and apply ReLU.

    Args:
        x: symbolic tensor.
        name: prefix of the layers' names.
        normalization: "ghost", "batch" or `None`.
        ghost_batch_size: examples in a ghost.

    Returns:
        Symbolic tensor.

    Raises:
        ValueError: for another normalization.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"`normalization` must be one of {NORMALIZATIONS}. Received: {normalization!r}"
        )
    if normalization == "ghost":
        x = GhostBatchNormalization(ghost_batch_size, name=f"{name}_norm")(x)
    elif normalization == "batch":
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)
