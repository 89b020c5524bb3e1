"""Replaces the batch normalisation of a model by ghost batch normalisation."""

import warnings

import keras

from keras_noisylb.layers.ghost_batch_norm import GhostBatchNormalization


def replace_batch_norm(model: keras.Model, ghost_batch_size: int) -> keras.Model:
    """A copy of `model` with ghost batch normalisation in place of batch normalisation.

    Every `keras.layers.BatchNormalization` becomes a `GhostBatchNormalization` of the same name,
    configuration and weights. Its momentum then counts ghosts, not batches.

    Args:
        model: a Sequential or Functional model; such models nested in it are treated too.
        ghost_batch_size: number of examples that are normalised together.

    Returns:
        A new model; `model` stays as it is. Warns where there was nothing to replace.

    Raises:
        ValueError: if layers are decided by code that cannot be copied (subclassed models), or if a
            batch normalisation cannot be replaced (inside a wrapper, a subclass, `renorm`,
            `synchronized`).

    Example:
    ```python
    model = replace_batch_norm(keras.applications.ResNet50(weights=None), ghost_batch_size=64)
    ```
    """
    replaced = []

    def replaceable(layer):
        options = ("renorm", "synchronized")
        return type(layer) is keras.layers.BatchNormalization and not any(
            getattr(layer, option, False) for option in options
        )

    def clone(layer):
        config = layer.get_config()
        if not replaceable(layer):
            return layer.__class__.from_config(config)
        replaced.append(layer.name)
        for name in ("synchronized", "renorm", "renorm_clipping", "renorm_momentum"):
            config.pop(name, None)
        return GhostBatchNormalization.from_config({**config, "ghost_batch_size": ghost_batch_size})

    try:
        copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
        copy.set_weights(model.get_weights())
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"The {type(model).__name__} {model.name!r} cannot be copied layer by layer. In "
            "subclassed models and layers write GhostBatchNormalization where their code has "
            f"BatchNormalization. Keras says: {error}"
        ) from error
    # Not public, but nothing public finds the layers inside wrappers and subclassed layers.
    missed = [
        layer.name
        for layer in copy._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if missed:
        raise ValueError(
            f"These batch normalisations of {model.name!r} cannot be replaced: "
            f"{', '.join(missed)}. They stand inside a wrapper or a subclassed layer, are of a "
            "subclass, or use `renorm` or `synchronized`. Write GhostBatchNormalization there."
        )
    if not replaced:
        warnings.warn(f"{model.name!r} has no batch normalisation to replace.", stacklevel=2)
    return copy
