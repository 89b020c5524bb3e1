"""The loss of a batch, in the form that every statistic differentiates."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, get_args

import keras
import tensorflow as tf

from keras_noisylb.gradients.batch import Batch
from keras_noisylb.gradients.scope import Scope
from keras_noisylb.types import AddLossReduction, Nested, Sampler, Tensor


def call_model(model, x, training=True):
    """Call `model` on `x`, passing `training` only to models that take it."""
    parameters = inspect.signature(model.call).parameters.values()
    takes_training = any(p.name == "training" or p.kind == p.VAR_KEYWORD for p in parameters)
    return model(x, training=training) if takes_training else model(x)


def statistics_dtype(variable):
    """The dtype in which gradients of `variable` are squared and summed."""
    return "float64" if variable.dtype == "float64" else "float32"


def check_trained(variables):
    """Raise `ValueError` for a variable whose next value Keras takes from its gradient."""
    for v in variables:
        if v.overwrite_with_gradient:
            raise ValueError(
                f"Keras overwrites the trainable variable {v.path!r} by the value that a step "
                "returns as its gradient (so for the scales of float8 layers). Such a value cannot "
                "get noise, and cannot be squared or averaged. Train the model without noise and "
                'not in a NoisyModel, or with dtype="mixed_bfloat16" instead of float8.'
            )


def check_add_loss_reduction(value):
    """Raise `ValueError` if `add_loss_reduction` has none of its allowed values."""
    if value is not None and value not in get_args(AddLossReduction):
        raise ValueError(
            '`add_loss_reduction` must be "mean" or "sum", the reduction over the examples in the '
            f"`add_loss` terms of layers, or None. Received: add_loss_reduction={value!r}"
        )


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss that an update minimises, split into the data loss and the model's own losses.

    The per-example gradient g_i is example i's contribution to the gradient of the *data* loss,
    times M. The mean of g_i over the batch is that gradient, for any reduction, sample weights or
    masks of the loss. Regularisers and `add_loss` terms are part of the gradient only.

    Args:
        model: the model.
        total_loss: function `(x, y, y_pred, sample_weight) -> scalar`, with regularisers.
        scale: function that is applied to every loss before it is differentiated (loss scaling).
        extra_weight: factor of the model's own losses in `total_loss`: 1 / R on R replicas.
        labels: function `(y, y_pred, draws) -> y` that draws the labels of the Fisher from the
            model's predictive distribution; `None` for those of the data.
        add_loss_reduction: reduction over the examples in the layers' `add_loss` terms, "mean" or
            "sum"; `None` if it is not known, which is an error where a batch has several
            microbatches.
    """

    model: keras.Model
    total_loss: Callable[..., Tensor]
    scale: Callable[[Tensor], Tensor] = lambda loss: loss
    extra_weight: float = 1.0
    labels: Sampler | None = None
    add_loss_reduction: AddLossReduction | None = None

    @property
    def variables(self) -> list[keras.Variable]:
        """The model's trainable variables: the order of every list of gradients."""
        return self.model.trainable_variables

    def own_losses(self, losses: list[Tensor]) -> Tensor | None:
        """The part of the total loss that `losses`, some of the model's own, make; or `None`."""
        if not losses:
            return None
        dtype = keras.config.floatx()
        total = tf.add_n([tf.cast(tf.reduce_sum(term), dtype) for term in losses])
        return total * self.extra_weight

    def parts(self, batch: Batch, y: Nested, y_pred: Nested) -> tuple[Tensor, Tensor | None]:
        """The loss of the whole batch, differentiable at the microbatch's outputs only.

        Args:
            batch: a `Batch`.
            y: targets of the whole batch.
            y_pred: outputs for the microbatch.

        Returns:
            Tuple of the data loss and the regularisers' loss, which may be `None`.
        """
        whole = batch.placed(y_pred)
        if batch.masks is not None:
            with_masks(whole, batch.masks.of_batch(y_pred))
        regularised = [(v, v.value) for v in self.variables if v.regularizer is not None]
        # The scope keeps the loss from updating its metrics, which `reported_loss` does.
        with keras.StatelessScope(state_mapping=regularised):
            loss = self.total_loss(batch.x, y, whole, batch.sample_weight)
            regularisers = self.own_losses(self.model.losses)
        if regularisers is not None:
            loss = loss - tf.cast(regularisers, loss.dtype)
        return loss, regularisers

    def _microbatch_losses(self, batch, regularisers, scope):
        """The microbatch's part of the model's own losses, or `None` if there are none."""
        means, sums = [regularisers, self.own_losses(scope.activity_losses)], []
        added = self.own_losses(scope.added_losses)
        if added is not None and batch.start is not None and self.add_loss_reduction is None:
            raise ValueError(
                "The batch is computed in microbatches, and what layers add by `add_loss` may be a "
                "mean or a sum over the examples. Received: "
                f"{len(scope.added_losses)} such term(s), add_loss_reduction=None. "
                'Pass add_loss_reduction="mean" (right also for terms '
                'that do not depend on the examples) or "sum"; where they are neither, compute the '
                'batch at once: no num_microbatches, no estimator="split", no GradientNoiseMonitor.'
            )
        (sums if self.add_loss_reduction == "sum" else means).append(added)
        means = [term for term in means if term is not None]
        # Once for the whole batch, whatever the number of microbatches.
        parts = [term * batch.share(term.dtype) for term in means]
        parts += [term for term in sums if term is not None]
        return tf.add_n(parts) if parts else None

    def reported_loss(self, batch: Batch, y_pred: Nested, extra_loss: Tensor | None) -> Tensor:
        """The loss of the whole batch; updates the metrics of the loss.

        Args:
            batch: a `Batch`, whole.
            y_pred: outputs.
            extra_loss: the model's own losses as `record` collected them, or `None`.

        Returns:
            Scalar.
        """
        loss = self.total_loss(batch.x, batch.y, y_pred, batch.sample_weight)
        # The total loss has the regularisers, but not what layers added inside of the step.
        found = self.own_losses(self.model.losses)
        if found is not None:
            loss = loss - tf.cast(found, loss.dtype)
        return loss if extra_loss is None else loss + tf.cast(extra_loss, loss.dtype)

    def record(self, batch: Batch, draws: Any) -> "Recorded":
        """Run the model in training mode on the microbatch's rows.

        Args:
            batch: a `Batch`.
            draws: `Draws` for the labels.

        Returns:
            A `Recorded`.

        Raises:
            ValueError: if the model assigns a trainable variable, if Keras overwrites one, or if
                the microbatch's part of the model's own losses is not known.
        """
        check_trained(self.variables)
        with tf.GradientTape(persistent=True) as tape:
            scope = Scope(batch.state, collect_losses=True)
            with scope, scope.telling_losses_apart(self.model):
                y_pred = call_model(self.model, batch.rows(batch.x))
            loss, regularisers = self.parts(batch, batch.y, y_pred)
            data = fisher = self.scale(loss)
            if self.labels is not None:
                rows = keras.tree.map_structure(tf.stop_gradient, y_pred)
                sampled = self.labels(batch.rows(batch.y), rows, draws.fold_in(batch.first_row))
                loss, _ = self.parts(batch, batch.placed(sampled, batch.y), y_pred)
                fisher = self.scale(loss)
            extra = self._microbatch_losses(batch, regularisers, scope)
            scaled = None if extra is None else self.scale(extra)
        trained = {id(v) for v in self.variables}
        for v in scope.written:
            if id(v) in trained:
                raise ValueError(
                    f"the model assigns its trainable variable {v.path!r} while it is called (as "
                    "SpectralNormalization does), so the gradient is not that of the new value. "
                    "Train such a model without noise and not in a NoisyModel."
                )
        state = [(v, scope.get_current_value(v)) for v in scope.written]
        return Recorded(self, batch, tape, y_pred, data, fisher, extra, scaled, state)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """One forward pass, and the losses that can be differentiated.

    Args:
        objective: the `Objective`.
        batch: the `Batch`.
        tape: the persistent tape.
        y_pred: the model's outputs for the microbatch.
        data_loss: the scaled data loss, with the labels of the data.
        fisher_loss: the scaled data loss, with the labels of the Fisher.
        extra_loss: the microbatch's part of the model's own losses, as reported, or `None`.
        scaled_extra_loss: the same, scaled, to be differentiated.
        state: list of `(state variable, new value)`, of those that were assigned.
    """

    objective: Objective
    batch: Batch
    tape: tf.GradientTape
    y_pred: Nested
    data_loss: Tensor
    fisher_loss: Tensor
    extra_loss: Tensor | None
    scaled_extra_loss: Tensor | None
    state: list[tuple[keras.Variable, Tensor]]

    def data_gradients(self) -> list[Tensor | None]:
        """The microbatch's part of the data loss' gradient; `None` where a variable has none."""
        gradients = self.tape.gradient(self.data_loss, self.objective.variables)
        return [None if g is None else tf.convert_to_tensor(g) for g in gradients]

    def output_gradients(self, loss: Tensor) -> list[Tensor]:
        """The gradient of a recorded loss at the (flat) outputs."""
        outputs = keras.tree.flatten(self.y_pred)
        zero = tf.UnconnectedGradients.ZERO
        return self.tape.gradient(loss, outputs, unconnected_gradients=zero)

    def with_extra(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """`gradients` and those of the model's own losses."""
        if self.scaled_extra_loss is None:
            return gradients
        extra = self.tape.gradient(self.scaled_extra_loss, self.objective.variables)
        pairs = zip(gradients, extra, strict=True)
        return [
            a if b is None else tf.convert_to_tensor(b) if a is None else a + b for a, b in pairs
        ]


def mask_of(y_pred):
    """The mask that Keras has attached to an output, or `None`."""
    return getattr(y_pred, "_keras_mask", None)


def with_masks(y_pred, masks):
    """Attach masks, or `None`, to outputs, as Keras does."""
    for output, mask in zip(keras.tree.flatten(y_pred), keras.tree.flatten(masks), strict=True):
        if mask is not None:
            output._keras_mask = mask
    return y_pred
