"""Options are keyword-only, so that they cannot be confused."""

import inspect

import keras
from test_types import FUNCTIONS, SYMBOLS

import keras_noisylb as nlb

POSITIONAL_OPTIONS = 1


def too_many(function):
    """Parameters with a default, except the first, that can be passed by position."""
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = inspect.signature(function).parameters.values()
    options = [p.name for p in parameters if p.kind is positional and p.default is not p.empty]
    return options[POSITIONAL_OPTIONS:]


def is_of_keras(name):
    """Whether a method overrides one of Keras, whose signature it keeps."""
    owner, _, method = name.rpartition(".")
    bases = {"NoisyModel": keras.Model, "NoisyOptimizer": keras.optimizers.Optimizer}
    bases["GhostBatchNormalization"] = keras.layers.BatchNormalization
    return method != "__init__" and hasattr(bases.get(owner), method)


def test_what_is_too_much_is_found():
    def function(x, y, a=1, b=2, *, c=3): ...

    assert too_many(function) == ["b"]
    assert is_of_keras("NoisyModel.fit") and not is_of_keras("NoisyModel.__init__")
    assert not is_of_keras("NoisyModel.monitor") and not is_of_keras("keras_noisylb.report")


def test_all_that_is_public_is_seen():
    classes = {name for name, symbol in SYMBOLS.items() if inspect.isclass(symbol)}
    assert {"keras_noisylb.NoisyOptimizer", "keras_noisylb.DiagonalFisher"} <= classes
    assert {f"keras_noisylb.{n}" for n in nlb.__all__} <= SYMBOLS.keys()
    assert {"NoisyOptimizer.__init__", "keras_noisylb.models.LeNet"} <= FUNCTIONS.keys()


def test_options_are_named():
    found = {n: too_many(f) for n, f in FUNCTIONS.items() if too_many(f) and not is_of_keras(n)}
    assert not found


def test_noises_have_no_positional_option():
    for name in nlb.noise.__all__:
        noise = getattr(nlb.noise, name)
        if inspect.isclass(noise) and noise is not nlb.noise.Noise:
            positional = inspect.getfullargspec(noise).args
            assert len(positional) == 2, name  # self and the size
