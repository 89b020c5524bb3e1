"""Checks of model and loss that all diagnostics share."""

import keras
import numpy as np
import tensorflow as tf

from keras_noisylb.diagnostics.batches import EMPTY
from keras_noisylb.gradients.loss import call_model


def checked_loss(loss):
    """The loss as a callable.

    Args:
        loss: a Keras loss, its name, or a function `(y, y_pred)`.

    Returns:
        The loss.

    Raises:
        ValueError: if `loss` is none of these.
    """
    loss = keras.losses.get(loss)
    if not callable(loss):
        raise ValueError(
            "`loss` must be a keras loss, its name, or a function (y, y_pred). Received: "
            f"{loss!r}. The loss of a compiled model is `model.loss`."
        )
    return loss


class MeanLoss:
    """The mean of a loss over the examples of a batch, for every reduction of the loss.

    Args:
        loss: a Keras loss, its name, or a function `(y, y_pred)` that returns losses or their mean.

    Raises:
        ValueError: if `loss` is none of these.
    """

    def __init__(self, loss):
        self.loss = checked_loss(loss)

    def __call__(self, y, y_pred, sample_weight=None):
        """The mean loss, a scalar.

        Args:
            y: targets.
            y_pred: outputs.
            sample_weight: weights of the examples, or `None`.

        Raises:
            ValueError: if the loss returns neither one number nor numbers for each example.
        """
        if sample_weight is None:
            value = self.loss(y, y_pred)
        elif isinstance(self.loss, keras.losses.Loss):
            value = self.loss(y, y_pred, sample_weight)
        else:
            value = self._weighted(y, y_pred, sample_weight)
        examples = keras.tree.flatten(y_pred)[0].shape[0]
        # If the number of examples is unknown, the number of losses must be unknown too.
        if not tf.is_tensor(value) or (value.shape.rank and value.shape[0] not in {examples, None}):
            raise ValueError(
                "`loss` must return the mean loss of a batch (a scalar tensor), or losses with the "
                f"{examples} examples on the first axis. Received: {value!r}. Return the mean over "
                "the examples."
            )
        if getattr(self.loss, "reduction", None) == "sum":
            value /= tf.cast(tf.shape(keras.tree.flatten(y_pred)[0])[0], value.dtype)
        return tf.reduce_mean(value)

    def _weighted(self, y, y_pred, sample_weight):
        value = self.loss(y, y_pred)
        if not value.shape.rank:
            raise ValueError(
                "Sample weights need a `loss` with one value per example, on the first axis. "
                f"Received: one number for the batch, {value!r}. Return one loss per example, or "
                "drop the weights."
            )
        weights = tf.cast(sample_weight, value.dtype)
        ones = tf.ones(value.shape.rank - weights.shape.rank, "int32")
        return value * tf.reshape(weights, tf.concat([tf.shape(weights), ones], axis=0))


def check_model(model, dataset):
    """Check a model, and build it if necessary.

    Args:
        model: a Keras model.
        dataset: the batches of its data, from `batched`.

    Raises:
        ValueError: if `model` is not a Keras model, has no trainable variables, or has weights that
            are not finite.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a keras.Model. Received: {model!r}")
    if not model.built:
        batch = next(iter(dataset), None)
        if batch is None:
            raise ValueError(EMPTY)
        call_model(model, batch[0], training=False)
    if not model.trainable_variables:
        raise ValueError(
            f"{model.name!r} has no trainable variables, so there is no gradient. Set "
            "`trainable=True` on the layers to differentiate."
        )
    for variable in model.trainable_variables:
        bad = np.sum(~np.isfinite(variable.numpy()))
        if bad:
            raise ValueError(
                f"The model's weights must be finite. Received: {bad} NaN or infinite numbers in "
                f"{variable.path!r}. Load an earlier state, or train with a smaller learning rate."
            )


def check_finite(what, numbers, paths):
    """Check that results are finite.

    Args:
        what: name of the result, as the subject of a sentence.
        numbers: one number for each variable.
        paths: the variables' paths.

    Raises:
        ValueError: if a number is NaN or infinite; the message names the variable.
    """
    for number, path in zip(numbers, paths, strict=True):
        if not np.isfinite(number):
            raise ValueError(
                f"{what} is not finite: {number} at {path!r}. The loss or its gradient is not "
                "finite for some example, or overflows in the model's precision. Check the data "
                "for NaN, or compute in float32 or float64."
            )
