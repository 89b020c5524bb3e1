"""Whether the layerwise engine can treat a model: found by a trace, without running the model."""

import dataclasses
import weakref

import keras
import tensorflow as tf

from keras_noisylb.gradients.loss import call_model
from keras_noisylb.gradients.rules import RULES, covered_variables
from keras_noisylb.gradients.taps import all_layers, intercept, record_use

# Examples of the traced batch: a prime that is no likely size of another axis, so that a first axis
# of another size is not that of the examples.
_EXAMPLES = 8191

_cache: weakref.WeakKeyDictionary[keras.Model, dict] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class Coverage:
    """The layers that the layerwise engine records, and what it cannot treat.

    Args:
        layers: the layers.
        obstacles: for each trainable variable that it cannot treat, a sentence that says why.
    """

    layers: tuple
    obstacles: tuple


def coverage(model, x):
    """Find the layers of `model` that have rules, and the variables that no rule covers.

    Args:
        model: a built Keras model.
        x: its (nested) inputs, of which only shapes and dtypes count.

    Returns:
        A `Coverage`.
    """
    specs = keras.tree.map_structure(
        lambda t: None if t is None else tf.TensorSpec((_EXAMPLES, *t.shape[1:]), t.dtype), x
    )
    rules = tuple(RULES.get(layer) for layer in all_layers(model))  # others may be registered later
    key = (tuple(id(v) for v in model.trainable_variables), repr(specs), rules)
    known = _cache.setdefault(model, {})
    if key not in known:
        known[key] = _find(model, specs)
    return known[key]


def _find(model, specs):
    if not all(layer.built for layer in all_layers(model)):
        _trace(model, (), specs)  # a layer's activation, for one, is built when it is first called
    owners, holders, layers = {}, {}, []
    for layer in all_layers(model):
        covered = covered_variables(layer)
        for v in covered.values():
            holders.setdefault(id(v), []).append(layer)
        if covered:
            layers.append(layer)
        for v in layer.trainable_variables:
            owner = owners.get(id(v), layer)
            smaller = len(layer.trainable_variables) <= len(owner.trainable_variables)
            owners[id(v)] = layer if smaller else owner  # the layer itself, not what contains it
    hidden, nested, merged = _trace(model, layers, specs)
    obstacles = []
    for v in model.trainable_variables:
        owner = owners[id(v)]
        kind = "quantised " if getattr(owner, "quantization_mode", None) else ""
        what = f"{v.path} of the {kind}{type(owner).__name__} layer {owner.name!r}"
        calls = {id(layer) for layer in holders.get(id(v), ())}  # more than one if they share it
        if id(v) in hidden and not calls:
            obstacles.append(f"{what} has no layer rule")
        elif id(v) in hidden:
            obstacles.append(f"{what} is also used outside of that layer's own call")
        elif calls & nested:
            obstacles.append(f"{what} is used inside a loop, which the tape does not record")
        elif calls & merged:
            obstacles.append(f"{what} is called on tensors whose first axis is not the examples'")
    return Coverage(tuple(layers), tuple(obstacles))


def _trace(model, layers, specs):
    """Trace the model with the variables constant that recorded calls of `layers` use.

    Returns:
        The ids of the variables that reach the outputs outside of a recorded call, of the layers
        that are called in a graph of their own, and of those that are called on inputs without one
        row for each example.
    """
    uses, hidden, nested, merged = [], set(), set(), set()
    record = record_use(uses)

    def cut(layer, call, *args, **kwargs):
        # What the rule covers is constant in this scope. If it still gets a gradient, the model
        # also uses it outside of recorded calls.
        constants = [(v, tf.stop_gradient(v.value)) for v in covered_variables(layer).values()]
        with keras.StatelessScope(state_mapping=constants):
            return record(layer, call, *args, **kwargs)

    def trace(x):
        uses.clear()  # TensorFlow traces again if the first call makes variables
        graph = keras.tree.flatten(x)[0].graph
        with keras.StatelessScope(), intercept(layers, cut), tf.GradientTape() as tape:
            outputs = keras.tree.flatten(call_model(model, x))
            target = tf.add_n([tf.reduce_sum(tf.cast(y, "float32")) for y in outputs])
        gradients = tape.gradient(target, model.trainable_variables)
        pairs = zip(model.trainable_variables, gradients, strict=True)
        hidden.update(id(v) for v, g in pairs if g is not None)
        nested.update(id(use.layer) for use in uses if use.output.graph is not graph)
        merged.update(id(use.layer) for use in uses if not _has_examples(use))

    # Traced, not run. No init_scope around it: the tape would not record.
    tf.function(trace, autograph=False).get_concrete_function(specs)
    return hidden, nested, merged


def _has_examples(use):
    return use.inputs.shape[0] == use.output.shape[0] == _EXAMPLES
