"""What every diagnostic asks of its model and its loss."""

import keras
import numpy as np
import tensorflow as tf

from keras_noisylb.diagnostics.batches import EMPTY
from keras_noisylb.gradients.loss import call_model


def checked_loss(loss):
    """A loss that can be called.

    Args:
        loss: a Keras loss, its name, or a function `(y, y_pred)`.

    Returns:
        The loss.

    Raises:
        ValueError: if it is nothing of these.
    """
    loss = keras.losses.get(loss)
    if not callable(loss):
        raise ValueError(
            "`loss` must be a keras loss, its name, or a function (y, y_pred). Received: "
            f"{loss!r}. A compiled model has its own as `model.loss`."
        )
    return loss


class MeanLoss:
    """A loss as the mean over the examples of a batch, whatever its reduction.

    Args:
        loss: a Keras loss, its name, or a function `(y, y_pred)` to losses or their mean.

    Raises:
        ValueError: if `loss` is nothing of these.
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
            ValueError: if the loss gives neither one number nor numbers for each example.
        """
        if sample_weight is None:
            value = self.loss(y, y_pred)
        elif isinstance(self.loss, keras.losses.Loss):
            value = self.loss(y, y_pred, sample_weight)
        else:
            value = self._weighted(y, y_pred, sample_weight)
        examples = keras.tree.flatten(y_pred)[0].shape[0]
        # Where the number of examples is unknown, so must be the number of their losses.
        if not tf.is_tensor(value) or (value.shape.rank and value.shape[0] not in {examples, None}):
            raise ValueError(
                "`loss` must give the mean loss of a batch, a scalar tensor, or losses with the "
                f"examples first, {examples} of them. Received: {value!r}. Take its mean over the "
                "examples."
            )
        if getattr(self.loss, "reduction", None) == "sum":
            value /= tf.cast(tf.shape(keras.tree.flatten(y_pred)[0])[0], value.dtype)
        return tf.reduce_mean(value)

    def _weighted(self, y, y_pred, sample_weight):
        value = self.loss(y, y_pred)
        if not value.shape.rank:
            raise ValueError(
                "`loss` is a function that gives one number for a batch, so its examples cannot be "
                "weighted. Have it give losses with the examples first, or drop the weights. "
                f"Received: {value!r}"
            )
        weights = tf.cast(sample_weight, value.dtype)
        ones = tf.ones(value.shape.rank - weights.shape.rank, "int32")
        return value * tf.reshape(weights, tf.concat([tf.shape(weights), ones], axis=0))


def check_model(model, dataset):
    """Check a model, and build it if need be.

    Args:
        model: what should be a Keras model.
        dataset: the batches of its data, from `batched`.

    Raises:
        ValueError: if it is none, has nothing to differentiate by, or weights that are not finite.
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
            f"{model.name!r} has no trainable variables, so there is nothing to differentiate by. "
            "Set `trainable=True` on the layers that should be covered."
        )
    for variable in model.trainable_variables:
        bad = np.sum(~np.isfinite(variable.numpy()))
        if bad:
            raise ValueError(
                f"The model's weights must be finite. Received: {bad} NaN or infinite numbers in "
                f"{variable.path!r}. Load an earlier state, or train with a smaller learning rate."
            )


def check_finite(what, numbers, paths):
    """Check a result.

    Args:
        what: its name, at the start of a sentence.
        numbers: one for each variable.
        paths: the variables' paths.

    Raises:
        ValueError: if a number is NaN or infinite, naming the variable.
    """
    for number, path in zip(numbers, paths, strict=True):
        if not np.isfinite(number):
            raise ValueError(
                f"{what} is not finite: {number} at {path!r}. The loss or its gradient is not "
                "finite for some example, or overflows in the model's precision. Check the data "
                "for NaN, or compute in float32 or float64."
            )
