"""Per-example gradient statistics of any Keras model."""

import keras
import tensorflow as tf

# Importing these modules registers their statistics.
from keras_noisylb.gradients import kronecker, layerwise, vectorized, vectors  # noqa: F401
from keras_noisylb.gradients.accumulate import compute
from keras_noisylb.gradients.batch import Batch
from keras_noisylb.gradients.engines import layerwise_layers, squares
from keras_noisylb.gradients.loss import Objective, check_add_loss_reduction
from keras_noisylb.gradients.rules import RULES, LayerRule
from keras_noisylb.gradients.statistics import STATISTICS, Cost, Statistic
from keras_noisylb.types import AddLossReduction, Conv, Engine, Loss, Nested, Sampler, Tensor

__all__ = [
    "RULES",
    "STATISTICS",
    "Cost",
    "LayerRule",
    "Statistic",
    "diagonal_fisher",
    "objective",
    "per_example_gradients",
]


def objective(
    model: keras.Model,
    loss: Loss,
    labels: Sampler | None = None,
    *,
    add_loss_reduction: AddLossReduction | None = None,
) -> Objective:
    """The objective of a model and a Keras loss.

    Args:
        model: a Keras model, built or not.
        loss: function `(y, y_pred) -> mean loss of the batch`, a `keras.losses.Loss` or its name.
        labels: function `(y, y_pred, draws) -> y` for the true Fisher, or `None`.
        add_loss_reduction: reduction over the examples in `add_loss` terms, "mean" or "sum", or
            `None`.

    Returns:
        An `Objective`.

    Raises:
        ValueError: if `model` is not a Keras model, `loss` cannot be called, or
            `add_loss_reduction` has another value.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a keras.Model. Received: {model!r}")
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if not callable(loss):
        raise ValueError(
            "`loss` must be a keras loss, its name, or a function (y, y_pred) -> scalar. "
            f"Received: {loss!r}"
        )

    def total_loss(x, y, y_pred, sample_weight):
        value = loss(y, y_pred) if sample_weight is None else loss(y, y_pred, sample_weight)
        value = tf.reduce_mean(value)  # functions such as keras.losses.mse give one per example
        return tf.add_n([value, *(tf.cast(tf.reduce_sum(e), value.dtype) for e in model.losses)])

    check_add_loss_reduction(add_loss_reduction)
    return Objective(model, total_loss, labels=labels, add_loss_reduction=add_loss_reduction)


def _prepare(model, loss, x, y, sample_weight):
    x, y, sample_weight = keras.tree.map_structure(
        lambda a: None if a is None else keras.ops.convert_to_tensor(a), (x, y, sample_weight)
    )
    target = objective(model, loss)
    if not model.built:
        model(x)
    return target, x, y, sample_weight


def per_example_gradients(
    model: keras.Model,
    loss: Loss,
    x: Nested,
    y: Nested,
    *,
    sample_weight: Nested = None,
    engine: Engine = "auto",
) -> list[Tensor]:
    """The gradient of each example's loss.

    g_i is example i's contribution to the gradient of the batch loss, times M, so that the mean
    over examples is that gradient. Regularisers and `add_loss` terms are left out. The model runs
    in training mode. In a model with batch or ghost statistics, the layerwise engine differentiates
    through the statistics, and the vectorized_map engine keeps them fixed.

    Args:
        model: a Keras model.
        loss: a Keras loss, its name, or a function `(y, y_pred) -> scalar`.
        x: inputs, M examples first; nested for models with several inputs.
        y: targets.
        sample_weight: weights of the examples, or `None`.
        engine: `"auto"`, `"layerwise"` or `"vectorized_map"`.

    Returns:
        List of tensors (M, *variable.shape), aligned with `model.trainable_variables`, in float32
        (float64 for variables in float64).

    Raises:
        ValueError: if no engine, or not the engine asked for, can treat the model.

    Example:
    ```python
    gradients = keras_noisylb.gradients.per_example_gradients(model, "mse", x, y)
    norms = sum(keras.ops.sum(g**2, axis=tuple(range(1, g.ndim))) for g in gradients)
    ```
    """
    target, x, y, sample_weight = _prepare(model, loss, x, y, sample_weight)
    layers = layerwise_layers(model, x, engine)
    batch = Batch(x, y, sample_weight)
    if layers is None:
        return vectorized.per_example_gradients(target, batch)
    return layerwise.per_example_gradients(target, layers, batch)


def diagonal_fisher(
    model: keras.Model,
    loss: Loss,
    x: Nested,
    y: Nested,
    *,
    sample_weight: Nested = None,
    engine: Engine = "auto",
    max_examples: int | None = None,
    conv: Conv = "exact",
) -> list[Tensor]:
    """The diagonal of the empirical Fisher: the mean over examples of g_i², per coordinate.

    See `per_example_gradients` for g_i. Per-example gradients are computed in slices, so memory is
    that of one training step and some tens of MiB.

    Args:
        model: a Keras model.
        loss: a Keras loss, its name, or a function `(y, y_pred) -> scalar`.
        x: inputs, M examples first.
        y: targets.
        sample_weight: weights of the examples, or `None`.
        engine: `"auto"`, `"layerwise"` or `"vectorized_map"`.
        max_examples: number of examples that are used, the first ones; `None` for all.
        conv: `"exact"`, or `"uncorrelated"` for the formula of the paper's A.5.

    Returns:
        List of tensors of the variables' shapes, aligned with `model.trainable_variables`.

    Raises:
        ValueError: if no engine, or not the engine asked for, can treat the model.

    Example:
    ```python
    fisher = keras_noisylb.gradients.diagonal_fisher(model, "mse", x, y)
    trace = sum(keras.ops.sum(f) for f in fisher)
    ```
    """
    target, x, y, sample_weight = _prepare(model, loss, x, y, sample_weight)
    statistic = squares(model, x, engine, max_examples, conv)
    means = compute(target, Batch(x, y, sample_weight), statistic, draws=None).statistic
    pairs = zip(means, model.trainable_variables, strict=True)
    return [tf.zeros(v.shape) if f is None else f for f, v in pairs]
