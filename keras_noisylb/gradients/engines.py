"""Choosing how the statistic that a noise asks for is obtained from a model."""

import warnings
import weakref

import keras

from keras_noisylb.gradients import vectorized
from keras_noisylb.gradients.coverage import coverage
from keras_noisylb.gradients.kronecker import KroneckerFactors, factored_places
from keras_noisylb.gradients.layerwise import LayerwiseSquares
from keras_noisylb.gradients.statistics import Gradient
from keras_noisylb.gradients.vectors import Split, Weighted

_warned: weakref.WeakSet[keras.Model] = weakref.WeakSet()


def layerwise_layers(model, x, engine="auto", conv="exact"):
    """Decide between the engines.

    Args:
        model: the model.
        x: its inputs.
        engine: "auto", "layerwise" or "vectorized_map".
        conv: "exact" or "uncorrelated".

    Returns:
        The layers that the layerwise engine records, or `None` for the vectorized_map engine.

    Raises:
        ValueError: if layerwise was asked for, by `engine` or `conv`, and cannot treat the model.
    """
    if engine == "vectorized_map":
        return None
    found = coverage(model, x)
    if not found.obstacles:
        return found.layers
    reasons, obstacle = "; ".join(found.obstacles), vectorized.obstacle(model)
    if engine == "layerwise" or conv == "uncorrelated":
        others = "" if obstacle else 'engine="vectorized_map" with conv="exact", or '
        raise ValueError(
            f"the layerwise engine cannot treat this model: {reasons}. Register a rule in "
            "keras_noisylb.gradients.RULES, or, for DiagonalFisher and FisherTrace, use "
            f"{others}{vectorized.ANY_MODEL}."
        )
    if obstacle is not None:
        raise ValueError(
            "no engine for the gradients of single examples can treat this model. layerwise: "
            f"{reasons}. vectorized_map: {obstacle} Otherwise use, in a noise, "
            f"{vectorized.ANY_MODEL}."
        )
    if model not in _warned:
        _warned.add(model)
        warnings.warn(
            f"per-example gradients come from the slow vectorized_map engine: {reasons}.",
            stacklevel=2,
        )
    return None


def squares(model, x, engine="auto", max_examples=None, conv="exact"):
    """The statistic "mean over examples of g_i²", with the engine that fits.

    Args:
        model: the model.
        x: its inputs.
        engine: "auto", "layerwise" or "vectorized_map".
        max_examples: take the mean over the first so many examples only; `None` for all.
        conv: "exact" or "uncorrelated".

    Returns:
        A statistic for `accumulate.compute`.
    """
    layers = layerwise_layers(model, x, engine, conv)
    if layers is None:
        return vectorized.VectorizedSquares(max_examples)
    return LayerwiseSquares(layers, max_examples, conv)


def statistic_for(noise, model, x):
    """The statistic that a noise turns into its sample.

    Args:
        noise: an object that names its statistic, "squares", "weighted", "split", "factors" or
            "gradient", and has the options that it needs.
        model: the model.
        x: its inputs.

    Returns:
        A statistic for `accumulate.compute`.

    Raises:
        ValueError: if it cannot be obtained for the model.
    """
    name = noise.statistic
    if name == "squares":
        return squares(model, x, noise.engine, noise.max_examples, noise.conv)
    if name == "factors":
        layers = layerwise_layers(model, x, engine="layerwise")
        return KroneckerFactors(layers, factored_places(model), noise.damping, noise.max_examples)
    return {"weighted": Weighted, "split": Split, "gradient": Gradient}[name]()
