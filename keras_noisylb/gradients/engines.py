"""Choosing the engine that obtains per-example gradients, and running it."""

import warnings
import weakref

from keras_noisylb.gradients import layerwise, vectorized
from keras_noisylb.gradients.coverage import coverage

_warned = weakref.WeakSet()


def layerwise_layers(model, x, engine, conv="exact"):
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
    reasons = "; ".join(found.obstacles)
    if engine == "layerwise" or conv == "uncorrelated":
        raise ValueError(
            f"the layerwise engine cannot treat this model: {reasons}. Use engine="
            '"vectorized_map" with conv="exact", or register a rule in '
            "keras_noisylb.gradients.RULES."
        )
    vectorized.check_supported(model)
    if model not in _warned:
        _warned.add(model)
        warnings.warn(
            f"per-example gradients come from the slow vectorized_map engine: {reasons}.",
            stacklevel=2,
        )
    return None


def squares(objective, x, y, sample_weight, engine="auto", max_examples=None, conv="exact"):
    """Run a batch and prepare the mean over examples of g_i² with the engine that fits.

    Args:
        objective: an `Objective`.
        x: inputs, M examples first.
        y: targets.
        sample_weight: weights, or `None`.
        engine: "auto", "layerwise" or "vectorized_map".
        max_examples: take the mean over the first so many examples only; `None` for all.
        conv: "exact" or "uncorrelated".

    Returns:
        A `Recorded`.
    """
    layers = layerwise_layers(objective.model, x, engine, conv)
    if layers is None:
        return vectorized.squares(objective, x, y, sample_weight, max_examples)
    return layerwise.squares(objective, layers, x, y, sample_weight, max_examples, conv)
