"""Whether a model gives an example the same output alone as in a batch: tried once."""

import dataclasses
import warnings
import weakref

import keras
import numpy as np
import tensorflow as tf

from keras_noisylb.gradients.loss import call_model
from keras_noisylb.gradients.replay import record, replay, replayed_layers
from keras_noisylb.gradients.scope import Scope
from keras_noisylb.gradients.taps import all_layers, intercept
from keras_noisylb.layers.ghosts import whole_batch

_EXAMPLES, _ROW = 4, 1  # a row with others before and after it, that no symmetry maps to itself
_UNKNOWN = 16  # the size of an axis that the inputs leave open

_passed: weakref.WeakSet[keras.Model] = weakref.WeakSet()


def coupling(model, x):
    """Find a layer that couples the examples of a batch, beside ghost batches and dropout.

    Four random examples go through the model together, where ghost statistics and dropout masks are
    recorded. One of them then goes through it alone, with its rows of what was recorded. The
    weights are changed a little, because their present values may hide a coupling. This runs
    eagerly, once for a model, also while a step is traced or compiled.

    Args:
        model: the model.
        x: its (nested) inputs, of which only shapes and dtypes count.

    Returns:
        A sentence that names a layer; `None` if nothing was found. Warns where the model cannot be
        run on random numbers.
    """
    if model in _passed:
        return None
    with tf.init_scope(), whole_batch():
        try:
            found = _compare(model, keras.tree.map_structure(_random, x))
        except Exception as error:  # whatever a model may raise
            warnings.warn(
                "it could not be checked that the model treats every example alone, which the "
                f"vectorized_map engine needs: on random inputs it fails ({error}).",
                stacklevel=2,
            )
            found = None
    if found is None:
        _passed.add(model)
    return found


@dataclasses.dataclass
class _Call:
    """A call of a layer."""

    layer: object
    inputs: object
    outputs: object


@dataclasses.dataclass
class _Pass:
    """The calls of a forward pass, that of the model last, and whether it drew random numbers."""

    calls: list
    own_numbers: bool


def _compare(model, x):
    saved = []
    together = _run(model, x, record(saved))
    row = [tuple(value[_ROW] for value in values) for values in saved]
    one = keras.tree.map_structure(lambda a: None if a is None else a[_ROW : _ROW + 1], x)
    alone = _run(model, one, replay(row))
    if alone.own_numbers:  # `Replay.per_example` refuses it
        return None
    tolerance = _tolerance(model)
    difference = _difference(together.calls[-1].outputs, alone.calls[-1].outputs, tolerance)
    if not difference:
        return None
    first = (
        a.layer
        for a, b in zip(together.calls, alone.calls, strict=False)
        if _difference(a.outputs, b.outputs, tolerance)
        and not _difference(a.inputs, b.inputs, tolerance)
    )
    layer = next(first, model)
    return (
        f"the {type(layer).__name__} {layer.name!r} couples the examples of a batch, or draws "
        "random numbers of its own: alone, an example has another output than in a batch (the "
        f"model's output differs by {difference:.1g} of its largest entry)."
    )


def _run(model, x, handler):
    replayed, calls = replayed_layers(model), []
    others = [layer for layer in all_layers(model) if layer not in replayed and layer is not model]

    def observe(layer, call, *args, **kwargs):
        outputs = call(*args, **kwargs)
        calls.append(_Call(layer, (args, kwargs), outputs))  # inner layers first
        return outputs

    random = np.random.default_rng(0)
    moved = [
        (v, v.value + tf.cast(0.01 * random.standard_normal(v.shape), v.dtype))
        for v in model.trainable_variables
    ]
    scope = Scope(moved)
    with scope, intercept(others, observe), intercept(replayed, handler):
        calls.append(_Call(model, x, call_model(model, x)))
    return _Pass(calls, any(v.name == "seed_generator_state" for v in scope.written))


def _random(like):
    """Random inputs: from 0 to 2, or the integers 0 and 1, which all tables of numbers have."""
    if like is None:
        return None
    shape = [_EXAMPLES, *(size or _UNKNOWN for size in like.shape[1:])]
    random = np.random.default_rng(1)
    dtype = tf.as_dtype(like.dtype)
    if dtype.is_floating or dtype.is_complex:
        return tf.cast(random.uniform(0, 2, shape), dtype)
    first = random.integers(0, 2, shape[1:])
    rows = np.arange(_EXAMPLES).reshape(-1, *[1] * len(shape[1:]))
    integers = tf.constant((first + rows) % 2)  # neighbours differ, whatever the shape
    return tf.strings.as_string(integers) if dtype == "string" else tf.cast(integers, dtype)


def _tolerance(model):
    """Relative rounding errors of many operations: half of the digits."""
    epsilons = {"float64": 2**-52, "float16": 2**-10, "bfloat16": 2**-7}
    return max(epsilons.get(layer.compute_dtype, 2**-23) for layer in all_layers(model)) ** 0.5


def _difference(together, alone, tolerance):
    """The largest difference of the example's row, relative to its largest entry; 0 if none."""
    worst = 0.0
    pairs = zip(keras.tree.flatten(together), keras.tree.flatten(alone), strict=False)
    for a, b in pairs:
        if not (hasattr(a, "numpy") and hasattr(b, "numpy")):
            continue  # no tensor, or inside of a function of the model's own
        if a.dtype == "string" or a.shape[:1] != (_EXAMPLES,) or b.shape != (1, *a.shape[1:]):
            continue  # not one row for each example
        a, b = np.asarray(tf.cast(a[_ROW], "float64")), np.asarray(tf.cast(b[0], "float64"))
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        if not np.all(same):
            scale = np.nanmax(np.abs([a, b]))
            worst = max(worst, np.max(np.abs(a - b)[~same]) / scale)
    return worst if not worst <= tolerance else 0.0
