"""What the gradient of a batch is the gradient of, in a form that every engine can evaluate."""

import dataclasses
import inspect
from collections.abc import Callable

import keras
import tensorflow as tf


def call_model(model, x, training=True):
    """Call `model` on `x`, passing `training` only to models that take it."""
    parameters = inspect.signature(model.call).parameters.values()
    takes_training = any(p.name == "training" or p.kind == p.VAR_KEYWORD for p in parameters)
    return model(x, training=training) if takes_training else model(x)


def batch_size(x):
    """Number of examples in the (nested) inputs `x`: an integer if known, else a scalar tensor."""
    first = next(leaf for leaf in keras.tree.flatten(x) if leaf is not None)
    return tf.shape(first)[0] if first.shape[0] is None else first.shape[0]


def statistics_dtype(variable):
    """The dtype in which gradients of `variable` are squared and summed."""
    return "float64" if variable.dtype == "float64" else "float32"


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss that one update descends, split into its data part and the rest.

    The per-example gradient g_i is example i's contribution to the gradient of the *data* loss,
    times M: the mean of g_i over the batch is that gradient, whatever the reduction, the sample
    weights or the masks of the loss. Regularisers and `add_loss` terms are in the gradient only.

    Args:
        model: the model; its layers may be tapped.
        total_loss: function `(x, y, y_pred, sample_weight) -> scalar`, regularisers included.
        scale: function applied to every loss before it is differentiated (loss scaling).
        extra_weight: what `total_loss` multiplies the model's own losses by: 1 / R on R replicas.
    """

    model: keras.Model
    total_loss: Callable
    scale: Callable = lambda loss: loss
    extra_weight: float = 1.0

    @property
    def variables(self):
        """The model's trainable variables: the order of every list of gradients."""
        return self.model.trainable_variables

    def evaluate(self, x, y, sample_weight):
        """Run the model in training mode.

        Args:
            x: inputs, M examples first.
            y: targets.
            sample_weight: weights, or `None`.

        Returns:
            Tuple `(y_pred, loss, data_loss, extra_loss)` of the outputs, the loss as it is
            reported, and its two parts as they are differentiated; `extra_loss` may be `None`.
        """
        y_pred = call_model(self.model, x)
        loss = self.total_loss(x, y, y_pred, sample_weight)
        if not self.model.losses:
            return y_pred, loss, self.scale(loss), None
        extra = tf.add_n([tf.reduce_sum(tf.cast(term, loss.dtype)) for term in self.model.losses])
        extra = extra * tf.cast(self.extra_weight, extra.dtype)
        return y_pred, loss, self.scale(loss - extra), self.scale(extra)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """One forward pass, with what can be differentiated out of it.

    Args:
        y_pred: the model's outputs.
        loss: the loss, as it is reported.
        gradients: function `() -> list`: the gradient of the batch loss; `None` where a variable
            has no influence on it.
        statistics: function `() -> (gradients, list)`: the same gradient and the statistic that was
            asked for, both aligned with the trainable variables.
    """

    y_pred: object
    loss: object
    gradients: Callable
    statistics: Callable


def batch_gradients(tape, objective, data_loss, extra_loss):
    """The gradient of both parts of the loss, one dense tensor (or `None`) per variable."""
    gradients = tape.gradient(data_loss, objective.variables)
    return add_extra(tape, objective, gradients, extra_loss)


def add_extra(tape, objective, gradients, extra_loss):
    """Add the gradient of the extra loss, if there is one, to `gradients`."""
    gradients = [None if g is None else tf.convert_to_tensor(g) for g in gradients]
    if extra_loss is None:
        return gradients
    extra = tape.gradient(extra_loss, objective.variables)
    pairs = zip(gradients, extra, strict=True)
    return [b if a is None else a if b is None else a + b for a, b in pairs]
