"""Replaces a model's batch normalisation with ghost batch normalisation."""

import warnings

import keras

from keras_noisylb.layers.ghost_batch_norm import GhostBatchNormalization


def replace_batch_norm(model: keras.Model, ghost_batch_size: int) -> keras.Model:
    """A copy of `model` with ghost batch normalisation in place of batch normalisation.

    Every `keras.layers.BatchNormalization` becomes a `GhostBatchNormalization` with the same name,
    configuration and weights. Its momentum is then applied once per ghost batch, not once per
    batch.

    Args:
        model: a Sequential or Functional model; Sequential and Functional models nested in it are
            converted too.
        ghost_batch_size: number of examples in a ghost batch.

    Returns:
        A new model; `model` is not changed. Warns if `model` has no batch normalisation.

    Raises:
        ValueError: if the model cannot be copied layer by layer (subclassed models), or if a batch
            normalisation cannot be replaced (inside a wrapper or a subclassed layer, a subclass,
            `renorm`, `synchronized`).

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
            f"The {type(model).__name__} {model.name!r} cannot be copied layer by layer. In the "
            "code of subclassed models and layers, replace BatchNormalization with "
            f"GhostBatchNormalization. Keras says: {error}"
        ) from error
    # Private, but no public method finds the layers inside wrappers and subclassed layers.
    missed = [
        layer.name
        for layer in copy._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if missed:
        raise ValueError(
            f"These batch normalisations of {model.name!r} cannot be replaced: "
            f"{', '.join(missed)}. They are inside a wrapper or a subclassed layer, belong to a "
            "subclass, or use `renorm` or `synchronized`. Use GhostBatchNormalization there."
        )
    if not replaced:
        warnings.warn(f"{model.name!r} has no batch normalisation to replace.", stacklevel=2)
    return copy
