"""What a statistic costs, layer by layer."""

import math

import keras
import tensorflow as tf

from keras_noisylb.gradients.loss import call_model
from keras_noisylb.gradients.rules import RULES
from keras_noisylb.gradients.taps import all_layers, intercept, record_use
from keras_noisylb.reporting.table import Row


def rows_of(model, statistic, specs, batch_size):
    """A row of the report for each layer with trainable variables of its own.

    Args:
        model: a built Keras model.
        statistic: the `Statistic` that is computed beside the gradient.
        specs: nested `tf.TensorSpec`s of the inputs.
        batch_size: examples of one batch on one device.

    Returns:
        Tuple of the list of `Row`, and the multiplications of a whole step with noise over those of
        the plain step.
    """
    positions = _positions(model, specs)
    rows, plain, total = [], 0, 0
    for layer, variables in _owners(model):
        size = sum(math.prod(v.shape) for v in variables)
        count = positions.get(id(layer), 1)
        step = 3 * count * size  # forward, and backward to inputs and to parameters
        cost = statistic.cost(layer, size, count, batch_size)
        rows.append(
            Row(
                f"{layer.name} ({type(layer).__name__})",
                " ".join("×".join(map(str, v.shape)) or "1" for v in variables),
                cost.method,
                cost.exact,
                4 * cost.numbers / 2**20,
                1 + cost.multiplications / step,
            )
        )
        plain, total = plain + step, total + step + cost.multiplications
    return rows, total / max(plain, 1)


def multiplications(model, specs):
    """The multiplications of one example forward, of the layers with trainable variables.

    Args:
        model: a built Keras model.
        specs: nested `tf.TensorSpec`s of the inputs.
    """
    positions = _positions(model, specs)
    return sum(
        positions.get(id(layer), 1) * sum(math.prod(v.shape) for v in variables)
        for layer, variables in _owners(model)
    )


def _owners(model):
    """Pairs of a layer and its trainable variables, each with the smallest layer that holds it."""
    owners = {}
    for layer in all_layers(model):
        for v in layer.trainable_variables:
            known = owners.get(id(v), layer)
            smaller = len(layer.trainable_variables) <= len(known.trainable_variables)
            owners[id(v)] = layer if smaller else known
    found = {}
    for v in model.trainable_variables:
        layer = owners[id(v)]
        found.setdefault(id(layer), (layer, []))[1].append(v)
    return list(found.values())


def _positions(model, specs):
    """How often the variables of a layer are used for one example."""
    uses = []
    layers = [layer for layer in all_layers(model) if RULES.get(layer) is not None]

    def trace(x):
        uses.clear()  # TensorFlow traces again if the first call makes variables
        with keras.StatelessScope(), intercept(layers, record_use(uses)):
            call_model(model, x)

    tf.function(trace, autograph=False).get_concrete_function(specs)
    counts = {}
    for use in uses:
        shape = use.output.shape[1:]
        if getattr(use.layer, "data_format", None) == "channels_first":
            shape = shape[1:]
        else:
            shape = shape[:-1]
        number = math.prod(size or 1 for size in shape)
        counts[id(use.layer)] = counts.get(id(use.layer), 0) + number
    return counts
