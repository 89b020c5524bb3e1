"""Interception of the calls of layers, at any depth of a model.

Both per-example engines need values from inside of layers: `layerwise` their inputs and
pre-activations, `vectorized` the batch statistics and dropout masks.
"""

import contextlib
import dataclasses
import functools
import threading

_active = threading.local()  # replicas of a distribution strategy run in threads of their own


def _handlers():
    if not hasattr(_active, "handlers"):
        _active.handlers = {}
    return _active.handlers


def _install(layer):
    """Route `layer.call` through the handlers, once for each layer."""
    original = layer.call
    if hasattr(original, "_noisylb_tap"):
        return

    @functools.wraps(original)
    def call(*args, **kwargs):
        handler = _handlers().get(id(layer))
        if handler is None:
            return original(*args, **kwargs)
        return handler(layer, original, *args, **kwargs)

    call._noisylb_tap = True
    # Keras' own __setattr__ would track the function as a part of the layer.
    object.__setattr__(layer, "call", call)


def _inside(outer, handler):
    """The handler with a `call` that goes to the handler `outer`, if there is one."""
    if outer is None:
        return handler
    return lambda layer, call, *args, **kwargs: handler(
        layer, functools.partial(outer, layer, call), *args, **kwargs
    )


@contextlib.contextmanager
def intercept(layers, handler):
    """Within the context, replace each call of `layers` by `handler`.

    Args:
        layers: layers whose `call` is to be intercepted.
        handler: function `(layer, call, *args, **kwargs) -> outputs`, where `call` is the layer's
            own method, or its replacement by an outer context.

    Yields:
        Nothing.
    """
    before = dict(_handlers())
    for layer in layers:
        _install(layer)
        _handlers()[id(layer)] = _inside(before.get(id(layer)), handler)
    try:
        yield
    finally:
        _active.handlers = before


def all_layers(model):
    """Every layer of `model`, nested ones included, each once."""
    # The only accessor that also finds the sublayers of subclassed layers.
    seen = {id(layer): layer for layer in model._flatten_layers()}
    return list(seen.values())


@dataclasses.dataclass
class Use:
    """One call of one layer: its inputs, its arguments and its pre-activation."""

    layer: object
    inputs: object
    kwargs: dict
    output: object = None


def record_use(uses):
    """A handler that appends a `Use` to `uses` for every call.

    The pre-activation is the argument of the layer's activation function. For a layer without one
    it is the layer's output.
    """

    def handler(layer, call, inputs, **kwargs):
        use = Use(layer, inputs, kwargs)
        uses.append(use)
        activation = getattr(layer, "activation", None)
        if activation is None:
            use.output = call(inputs, **kwargs)
            return use.output

        def tap(z):
            use.output = z
            return activation(z)

        object.__setattr__(layer, "activation", tap)
        try:
            return call(inputs, **kwargs)
        finally:
            object.__setattr__(layer, "activation", activation)

    return handler
