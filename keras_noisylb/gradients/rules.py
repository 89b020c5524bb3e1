"""Per-example gradients of one layer, from its inputs and the gradient of its pre-activation.

A rule is a pure function `(layer, use, d, conv) -> {attribute: block}`. `use.inputs` are the inputs
of the layer's call, M examples first. `d` is M times the gradient of the batch loss at the layer's
pre-activation, so that its i-th row gives g_i. `conv` is "exact" or "uncorrelated". `blocks.py` has
the forms of a block. A rule receives all examples of the call, also where only some are used.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_noisylb.gradients import convolutions
from keras_noisylb.gradients.blocks import Outer, Pieces, Rows, offset, positions, summed
from keras_noisylb.layers import GhostBatchNormalization


@dataclasses.dataclass(frozen=True)
class LayerRule:
    """How the layerwise engine treats the layers of one class.

    Args:
        gradients: function `(layer, use, d, conv) -> {attribute: block}`.
        variables: names of the layer's attributes that the rule covers.
        applies: function `layer -> bool`, false for configurations that the rule cannot treat.
    """

    gradients: Callable[..., dict[str, Any]]
    variables: tuple[str, ...]
    applies: Callable[[keras.layers.Layer], bool] = lambda layer: True

    def covered(self, layer: keras.layers.Layer) -> dict[str, keras.Variable]:
        """`{attribute: variable}` for the layer's trainable variables that the rule covers."""
        if not self.applies(layer):
            return {}
        named = {name: getattr(layer, name, None) for name in self.variables}
        return {n: v for n, v in named.items() if isinstance(v, keras.Variable) and v.trainable}


class LayerRules:
    """Rules by layer class. A subclass may compute something else: it needs its own rule."""

    def __init__(self) -> None:
        self._rules: dict[type, LayerRule] = {}

    def register(self, layer_class: type, rule: LayerRule) -> None:
        """Use `rule` for layers whose class is exactly `layer_class`."""
        self._rules[layer_class] = rule

    def get(self, layer: keras.layers.Layer) -> LayerRule | None:
        """The rule for `layer`, or `None` if there is none or the layer is quantised."""
        quantised = getattr(layer, "quantization_mode", None) is not None
        return None if quantised else self._rules.get(type(layer))


def dense(layer, use, d, conv):
    """Dense, on vectors or on the last axis of anything."""
    if len(d.shape) == 2:
        kernel = Outer(tf.cast(use.inputs, d.dtype), d)
    else:
        kernel = Pieces(_position_products, use.inputs, d)
    return {"kernel": kernel, "bias": offset(d, d.shape[-1:])}


def _position_products(a, d):
    a = tf.cast(a, d.dtype)
    return [tf.matmul(positions(a), positions(d), transpose_a=True)]


def _einsum_labels(layer):
    inputs, _, rest = layer.equation.replace(" ", "").partition(",")
    kernel, _, output = rest.partition("->")
    return inputs, kernel, output


def _einsum_applies(layer):
    """Whether the examples are the first axis of inputs and output, and no axis of the kernel."""
    inputs, kernel, output = _einsum_labels(layer)
    if inputs.startswith("..."):
        return output.startswith("...") and "." not in kernel
    return inputs[0] == output[0] and inputs[0] not in kernel and "." not in kernel


def einsum_dense(layer, use, d, conv):
    """EinsumDense: the equation of its kernel gradient, with the example axis kept."""
    inputs, kernel, output = _einsum_labels(layer)
    unused = [label for label in "ABCDEFGHIJ" if label not in layer.equation]
    dots = "".join(unused[: len(use.inputs.shape) - len(inputs.replace("...", ""))])
    inputs, output = inputs.replace("...", dots), output.replace("...", dots)
    equation = f"{inputs},{output}->{inputs[0]}{kernel}"
    kernel = Pieces(lambda a, d: [tf.einsum(equation, tf.cast(a, d.dtype), d)], use.inputs, d)
    blocks = {"kernel": kernel}
    if layer.bias is not None:
        blocks["bias"] = offset(d, layer.bias.shape)
    return blocks


def embedding(layer, use, d, conv):
    """Embedding: scattered rows, never a table for each example."""
    batch = tf.shape(d)[0]
    ids = tf.reshape(tf.cast(use.inputs, "int32"), (batch, -1))
    return {"embeddings": Rows(ids, tf.reshape(d, (batch, -1, d.shape[-1])), layer.input_dim)}


def normalization(*, scale, shift=None):
    """The rule of a layer that multiplies normalised inputs by one variable and adds another.

    Args:
        scale: name of the variable that multiplies.
        shift: name of the variable that is added, if there is one.

    Returns:
        A `LayerRule`.
    """

    def gradients(layer, use, d, conv):
        gain = getattr(layer, scale, None)
        bias = getattr(layer, shift, None) if shift else None
        # With a scale of one and no shift, the layer's outputs are its normalised inputs. The scope
        # also keeps this second call from updating the statistics again.
        substitutes = [(v, tf.ones(v.shape, v.dtype)) for v in (gain,) if v is not None]
        substitutes += [(v, tf.zeros(v.shape, v.dtype)) for v in (bias,) if v is not None]
        with keras.StatelessScope(state_mapping=substitutes):
            normalized = tf.cast(layer.call(use.inputs, **use.kwargs), d.dtype)
        blocks = {}
        if gain is not None:
            pieces = lambda d, n: [_summed_along(layer, d * n, gain)]  # noqa: E731
            blocks[scale] = Pieces(pieces, d, normalized, compact=True)
        if bias is not None:
            pieces = lambda d: [_summed_along(layer, d, bias)]  # noqa: E731
            blocks[shift] = Pieces(pieces, d, compact=True)
        return blocks

    return LayerRule(gradients, (scale, shift) if shift else (scale,))


def _summed_along(layer, gradient, variable):
    """Sum over all axes but that of the examples and those that the variable varies along."""
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    rank = len(gradient.shape)
    axes = [axis % rank for axis in axes]
    others = [axis for axis in range(rank) if axis not in axes]
    return summed(tf.transpose(gradient, others + axes), tuple(variable.shape))


def default_rules() -> LayerRules:
    """Rules for the layers of Keras, and of this package, that can be treated layer by layer.

    Returns:
        A new `LayerRules`.
    """
    rules = LayerRules()
    layers = keras.layers
    rules.register(layers.Dense, LayerRule(dense, ("kernel", "bias")))
    rules.register(layers.EinsumDense, LayerRule(einsum_dense, ("kernel", "bias"), _einsum_applies))
    rules.register(layers.Embedding, LayerRule(embedding, ("embeddings",)))
    for layer_class in (layers.Conv1D, layers.Conv2D):
        rules.register(layer_class, LayerRule(convolutions.conv, ("kernel", "bias")))
    rules.register(
        layers.DepthwiseConv2D, LayerRule(convolutions.depthwise_conv, ("kernel", "bias"))
    )
    rules.register(
        layers.SeparableConv2D,
        LayerRule(convolutions.separable_conv, ("depthwise_kernel", "pointwise_kernel", "bias")),
    )
    for layer_class in (
        layers.BatchNormalization,
        GhostBatchNormalization,
        layers.LayerNormalization,
        layers.GroupNormalization,
    ):
        rules.register(layer_class, normalization(scale="gamma", shift="beta"))
    rules.register(layers.RMSNormalization, normalization(scale="scale"))
    return rules


RULES = default_rules()


def covered_variables(layer):
    """`{attribute: variable}` for the layer's trainable variables that a rule covers."""
    rule = RULES.get(layer)
    return {} if rule is None else rule.covered(layer)
