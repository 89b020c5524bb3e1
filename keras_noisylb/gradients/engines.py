"""The choice of the engine that computes per-example gradients."""

from keras_noisylb.gradients import vectorized
from keras_noisylb.gradients.coverage import coverage
from keras_noisylb.gradients.layerwise import LayerwiseSquares
from keras_noisylb.gradients.statistics import STATISTICS, Statistic


def choose(model, x, engine="auto", conv="exact"):
    """Choose the engine.

    Args:
        model: the model.
        x: its inputs.
        engine: "auto", "layerwise" or "vectorized_map".
        conv: "exact" or "uncorrelated".

    Returns:
        Tuple of the layers that the layerwise engine records, or `None` for the vectorized_map
        engine, and the reasons why the layerwise engine cannot be used.

    Raises:
        ValueError: if no engine, or not the one that was asked for, can treat the model.
    """
    if engine == "vectorized_map":
        return None, ()
    found = coverage(model, x)
    if not found.obstacles:
        return found.layers, ()
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
            "no engine for per-example gradients can treat this model. layerwise: "
            f"{reasons}. vectorized_map: {obstacle} Otherwise use, in a noise, "
            f"{vectorized.ANY_MODEL}."
        )
    return None, found.obstacles


def layerwise_layers(model, x, engine="auto", conv="exact"):
    """The layers that the layerwise engine records, or `None` for the other one; see `choose`.

    Warns once for a model if the other one replaces it.
    """
    layers, reasons = choose(model, x, engine, conv)
    if reasons:
        vectorized.warn_of_fallback(model, reasons)
    return layers


def squares(model, x, engine="auto", max_examples=None, conv="exact", true_labels=False):
    """The statistic "mean over examples of g_i²", with the engine that fits.

    Args:
        model: the model.
        x: its inputs.
        engine: "auto", "layerwise" or "vectorized_map".
        max_examples: number of examples that are used, the first ones; `None` for all.
        conv: "exact" or "uncorrelated".
        true_labels: whether the labels are drawn from the model.

    Returns:
        A `LayerwiseSquares` or a `VectorizedSquares`.

    Raises:
        ValueError: if no engine, or not the one that was asked for, can treat the model.
    """
    layers, reasons = choose(model, x, engine, conv)
    if layers is not None:
        return LayerwiseSquares(layers, max_examples, conv, true_labels)
    vectorized.check_supported(model, x)
    return vectorized.VectorizedSquares(max_examples, true_labels, reasons)


class MeanSquares(Statistic):
    """The mean over examples of g_i²: a `LayerwiseSquares` or a `VectorizedSquares`."""

    @classmethod
    def for_noise(cls, noise, model, x):
        true_labels = noise.fisher == "true"
        return squares(model, x, noise.engine, noise.max_examples, noise.conv, true_labels)


STATISTICS.register("squares", MeanSquares)
