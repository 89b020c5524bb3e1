"""Folds batch normalisation into the preceding layers."""

import collections
import warnings

import keras
import numpy as np
from keras import layers

from keras_noisylb.layers import GhostBatchNormalization

# For each type of layer, the kernel axes that index its output channels.
CHANNEL_AXES = {
    layers.Dense: (-1,),
    layers.Conv1D: (-1,),
    layers.Conv2D: (-1,),
    layers.Conv3D: (-1,),
    layers.Conv1DTranspose: (-2,),
    layers.Conv2DTranspose: (-2,),
    layers.Conv3DTranspose: (-2,),
    layers.DepthwiseConv1D: (-2, -1),
    layers.DepthwiseConv2D: (-2, -1),
}


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """A copy of `model` with batch normalisation folded into the preceding weights.

    In inference, y = γ (W x + b − μ) / √(σ² + ε) + β equals a layer with kernel s W and bias
    s (b − μ) + β, where s = γ / √(σ² + ε). A `BatchNormalization` or `GhostBatchNormalization` is
    folded if it follows a Dense, convolution, transposed or depthwise convolution layer. In
    inference the copy computes the same function as `model`, up to rounding. It does not depend on
    the scale of W: c W, c b, c μ and c² (σ² + ε) give the same copy (Wen et al. 2020, section 5.3).
    It does depend on the scale of γ and β, even if the next layer after a ReLU cancels that scale.

    Args:
        model: a Sequential or Functional model. Models nested in it are folded too; a layer shared
            by several of them is copied several times.

    Returns:
        A new Functional model, not compiled. Warns about every normalisation that is not folded,
        with the reason.

    Raises:
        ValueError: if `model` is not Sequential or Functional, or not built.

    Example:
    >>> inputs = keras.Input((8,))
    >>> outputs = layers.BatchNormalization()(layers.Dense(4, use_bias=False)(inputs))
    >>> [v.name for v in fold_batch_norm(keras.Model(inputs, outputs)).variables]
    ['kernel', 'bias']
    """
    kept: dict[str, str] = {}
    folded = _fold(model, kept)
    if kept:
        reasons = "; ".join(f"{name!r} ({reason})" for name, reason in kept.items())
        warnings.warn(f"Batch normalisation stays in {model.name!r}: {reasons}.", stacklevel=2)
    return folded


def _fold(model, kept):
    graph = _functional(model)
    folds = _find_folds(graph, kept)  # layer name -> the normalisation folded into it
    gone = {norm.name for norm in folds.values()}
    copies = []

    def clone(layer):
        if _is_graph(layer):
            return _fold(layer, kept)
        config = layer.get_config()
        if layer.name in folds:
            config["use_bias"] = True
        copy = layer.__class__.from_config(config)
        if isinstance(layer, layers.Layer) and layer.name not in gone:
            copies.append((layer, copy))
        return copy

    def call(layer, *args, **kwargs):
        if layer.name in gone:
            return keras.tree.flatten((args, kwargs))[0]
        return layer(*args, **kwargs)

    folded = keras.models.clone_model(graph, clone_function=clone, call_function=call)
    for layer, copy in copies:
        norm = folds.get(layer.name)
        copy.set_weights(layer.get_weights() if norm is None else _folded_weights(layer, norm))
    return folded


def _is_graph(layer):
    return isinstance(layer, keras.Sequential | keras.Function)


def _functional(model):
    """The same layers as an uncompiled Functional model."""
    if not _is_graph(model):
        raise ValueError(
            "`model` must be a Sequential or Functional model, so that its layers can be copied. "
            f"Received: {model!r}. Of a NoisyModel, pass its `.model`."
        )
    if not model.built:
        raise ValueError(
            f"{model.name!r} is not built. Give it a keras.Input, or call it on a batch first."
        )
    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    return keras.Model(model.input, model.output, name=model.name)


def _find_folds(graph, kept):
    calls = []

    def record(layer, *args, **kwargs):
        outputs = layer(*args, **kwargs)
        inputs = [t for t in keras.tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)]
        calls.append((layer.name, inputs, kwargs, keras.tree.flatten(outputs)))
        return outputs

    skeleton = keras.models.clone_model(graph, call_function=record)
    layer_of = {operation.name: operation for operation in graph.operations}
    maker = {id(tensor): name for name, _, _, outputs in calls for tensor in outputs}
    num_calls = collections.Counter(name for name, *_ in calls)
    num_uses = collections.Counter(id(tensor) for _, inputs, *_ in calls for tensor in inputs)
    num_uses.update(id(tensor) for tensor in skeleton.outputs)

    def obstacle(norm, inputs, kwargs):
        layer = layer_of.get(maker.get(id(inputs[0])))
        if type(norm) not in (layers.BatchNormalization, GhostBatchNormalization):
            return f"inside of a {type(norm).__name__}"
        if kwargs.get("training"):
            return "called with training=True"
        if layer is None:
            return "it follows an input"
        if type(layer) not in CHANNEL_AXES:
            return f"it follows {layer.name!r}, a {type(layer).__name__}"
        if num_calls[norm.name] > 1 or num_calls[layer.name] > 1:
            return f"it or {layer.name!r} is used several times"
        if num_uses[id(inputs[0])] > 1:
            return f"the output of {layer.name!r} is used elsewhere too"
        if layer.activation is not keras.activations.linear:
            return f"{layer.name!r} has an activation"
        rank = len(inputs[0].shape)
        channels_first = getattr(layer, "data_format", None) == "channels_first"
        if norm.axis % rank != (1 if channels_first else rank - 1):
            return f"its axis {norm.axis} is not that of the channels of {layer.name!r}"
        return None

    folds = {}
    for name, inputs, kwargs, _ in calls:
        norm = layer_of[name]
        if _is_graph(norm) or not _normalises(norm):
            continue
        reason = obstacle(norm, inputs, kwargs)
        if reason is None:
            folds[maker[id(inputs[0])]] = norm
        else:
            kept[name] = reason
    return folds


def _normalises(layer):
    return any(variable.name == "moving_mean" for variable in getattr(layer, "weights", ()))


def _folded_weights(layer, norm):
    mean, variance = _float64(norm.moving_mean), _float64(norm.moving_variance)
    scale = 1 / np.sqrt(variance + norm.epsilon)
    if norm.gamma is not None:
        scale = scale * _float64(norm.gamma)
    kernel = _float64(layer.kernel)
    axes = [axis % kernel.ndim for axis in CHANNEL_AXES[type(layer)]]
    channels = [kernel.shape[axis] if axis in axes else 1 for axis in range(kernel.ndim)]
    bias = -mean if layer.bias is None else _float64(layer.bias) - mean
    bias = bias * scale
    if norm.beta is not None:
        bias = bias + _float64(norm.beta)
    return [kernel * scale.reshape(channels), bias]


def _float64(variable):
    return variable.numpy().astype("float64")
