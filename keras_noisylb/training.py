"""Training with noise: `NoisyModel` for `fit`, `noisy_gradients` for custom loops."""

import dataclasses
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from keras_noisylb.batch_check import BatchSizeCheck, LargestBatch
from keras_noisylb.draws import Draws
from keras_noisylb.gradients import objective
from keras_noisylb.gradients.batch import Batch
from keras_noisylb.gradients.kronecker import stored_like
from keras_noisylb.gradients.labels import label_sampler
from keras_noisylb.gradients.objective import Objective, call_model
from keras_noisylb.noise import Noise
from keras_noisylb.noise.base import positive_integer
from keras_noisylb.optimizer import find, find_noisy
from keras_noisylb.placement import ParameterNoise
from keras_noisylb.seeds import seed_states
from keras_noisylb.step import Parts, Step
from keras_noisylb.strategies import check_strategy
from keras_noisylb.types import Loss, Nested, Tensor


def _labels(noise, loss):
    if noise is None or noise.fisher != "true":
        return None
    return noise.sampler or label_sampler(loss)


def noisy_gradients(
    model: keras.Model,
    loss: Loss,
    x: Nested,
    y: Nested,
    noise: Noise,
    seed: int | Tensor,
    sample_weight: Nested = None,
    num_microbatches: int = 1,
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradient of a large batch and one sample of its noise, for custom training loops.

    The model runs in training mode, and its moving statistics are updated.

    Args:
        model: a Keras model.
        loss: a Keras loss, its name, or a function `(y, y_pred) -> scalar`.
        x: inputs, M_L examples first.
        y: targets.
        noise: the noise, for example `DiagonalFisher(small_batch_size=128)`.
        seed: integer, or scalar integer tensor such as `optimizer.iterations`: the same seed gives
            the same noise, so take another one at every step.
        sample_weight: weights of the examples, or `None`.
        num_microbatches: number of chunks in which the batch is computed, one after the other.

    Returns:
        Tuple `(gradients, noise)` of lists aligned with `model.trainable_variables`, `None` where a
        variable has no gradient. The update descends along their sum.

    Raises:
        ValueError: if the noise cannot be computed for the model.

    Example:
    ```python
    gradients, noise = noisy_gradients(
        model, loss, x, y, noise=DiagonalFisher(64), seed=optimizer.iterations
    )
    optimizer.apply(
        [g + n for g, n in zip(gradients, noise)], model.trainable_variables
    )
    ```
    """
    x, y, sample_weight = keras.tree.map_structure(
        lambda a: None if a is None else keras.ops.convert_to_tensor(a), (x, y, sample_weight)
    )
    if not model.built:
        model(x)
    target = objective(model, loss, _labels(noise, loss))
    draws = Draws(tf.stack([tf.cast(seed, "int32"), 0]))
    batch = Batch(x, y, sample_weight)
    step = Step(
        target, batch, noise, Parts(), draws, draws, num_chunks=num_microbatches, separate=True
    )
    outcome = step.run(tf.constant(True), tf.constant(True))
    for variable, value in outcome.state:
        variable.assign(value)
    return outcome.gradients, outcome.noise


@keras.saving.register_keras_serializable(package="keras_noisylb")
class NoisyModel(keras.Model):
    """Wraps a Keras model so that `fit` adds the noise of a `NoisyOptimizer` to its gradients.

    Everything else is as in `keras.Model`: any loss, metric, callback and form of data. With
    another optimizer, or once the noise has ended, it trains as the plain model does.

    Args:
        model: the `keras.Model` to train. Its weights are shared, not copied.
        num_microbatches: number of chunks in which each batch is computed, one after the other, so
            that a large batch needs the memory of one chunk. Ghost batches are kept whole, and the
            gradient is that of the whole batch for every loss that is a sum over examples. `None`
            computes the batch at once.

    Call arguments:
        inputs: the model's inputs.
        training: boolean, as in the model.

    Raises:
        ValueError: if `model` is not a Keras model, or (in `fit`) if the batch size is not larger
            than the noise's `small_batch_size`, so that there would be no noise at all, or has
            fewer ghost batches than microbatches.

    Example:
    ```python
    model = keras_noisylb.NoisyModel(keras_noisylb.models.LeNet(ghost_batch_size=64))
    ```
    """

    def __init__(
        self, model: keras.Model, num_microbatches: int | None = None, **kwargs: Any
    ) -> None:
        if not isinstance(model, keras.Model):
            raise ValueError(f"`model` must be a keras.Model. Received: {model!r}")
        if num_microbatches is not None:
            positive_integer("num_microbatches", num_microbatches, "or None to use no chunks")
        super().__init__(**kwargs)
        self.model = model
        self.num_microbatches = num_microbatches
        self.built = model.built
        self._monitors: list[keras.metrics.Metric] = []
        self._evaluates = False

    def call(self, inputs: Nested, training: bool | None = None) -> Nested:
        return call_model(self.model, inputs, training)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        super().compile(*args, **kwargs)
        # Keras' own __setattr__ would make it one of the model's metrics.
        object.__setattr__(self, "_largest_batch", LargestBatch())
        noisy = find_noisy(self.optimizer)
        if self.optimizer is not None:
            inner = self.optimizer
            while hasattr(inner, "inner_optimizer"):
                inner = inner.inner_optimizer
            check_strategy(self, inner)
        if noisy is not None and noisy.noise.update_every > 1:
            if not self.built:
                raise ValueError(
                    f"A noise with update_every={noisy.noise.update_every} keeps factors of the "
                    "size of the model's layers. Build the model (give it an Input layer, or call "
                    "it on a batch of inputs) before it is compiled."
                )
            noisy.store(stored_like(self))

    def compile_from_config(self, config: dict[str, Any]) -> None:
        # Keras wants this beside a `compile` of our own.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def fit(
        self,
        x: Any = None,
        y: Nested = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: list[keras.callbacks.Callback] | None = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        noisy = find_noisy(self.optimizer)
        if noisy is not None or self.num_microbatches:
            check = BatchSizeCheck(noisy, self, self._largest_batch)
            callbacks = [*keras.tree.flatten(callbacks or []), check]
            if all(hasattr(leaf, "shape") for leaf in keras.tree.flatten(x)):
                check.check(batch_size or 32)
                self._build_state(x, y)
            elif isinstance(x, keras.utils.PyDataset):
                self._build_state(*keras.utils.unpack_x_y_sample_weight(x[0])[:2])
        try:
            return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)
        finally:
            self.monitor(None)

    def _build_state(self, x, y):
        # Keras would build metrics and optimizer while it traces the first step and then trace it
        # once more, which takes long for a step with noise. Under a strategy it builds them first
        # by itself.
        if tf.distribute.has_strategy() or y is None:
            return
        x, y = keras.tree.map_structure(lambda a: keras.ops.convert_to_tensor(a[:1]), (x, y))
        y_pred = self(x)
        self.compute_loss(x=x, y=y, y_pred=y_pred)
        self.compute_metrics(x, y, y_pred)
        self.reset_metrics()
        self.optimizer.build(self.trainable_variables)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        self._evaluates = True
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._evaluates = False

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        # What is measured of gradients has no meaning in evaluation.
        return super().metrics + ([] if self._evaluates else self._monitors)

    def monitor(self, metric: keras.metrics.Metric | None) -> None:
        """Measure moments of the per-example gradients until the end of the next `fit`.

        Args:
            metric: what they are handed to, or `None` to measure them no more.
        """
        monitors = [] if metric is None else [metric]
        if self._monitors != monitors:
            # Not by Keras' own __setattr__, as in `compile`.
            object.__setattr__(self, "_monitors", monitors)
            self.train_function = None  # Keras traces the step anew

    def train_step(self, data: Nested) -> dict[str, Tensor]:
        noisy = find_noisy(self.optimizer)
        if noisy is None and not self.num_microbatches and not self._monitors:
            return super().train_step(data)
        # `train_on_batch` hands on arrays as they are where it runs eagerly.
        data = keras.tree.map_structure(
            lambda a: tf.convert_to_tensor(a) if isinstance(a, np.ndarray) else a, data
        )
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        target = Objective(
            self,
            lambda x, y, y_pred, sample_weight: self.compute_loss(
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
            ),
            scale=self.optimizer.scale_loss,
            extra_weight=1 / replicas,
            labels=None if noisy is None else _labels(noisy.noise, self.loss),
        )
        batch = Batch(x, y, sample_weight)
        self._largest_batch.update_state(batch.num_examples)
        scale = tf.convert_to_tensor(self.optimizer.scale_loss(1.0))
        parts = Parts(replicas, unit=scale / replicas)
        if noisy is not None:
            accumulated = noisy.accumulated
            noisy_parts = 1 if noisy.placement == "update" else accumulated
            parts = dataclasses.replace(parts, accumulated=accumulated, noisy=noisy_parts)
        outcome = self._outcome(noisy, target, batch, parts)
        for variable, value in outcome.state:
            variable.assign(value)
        for metric in self._monitors:
            shared = noisy is not None and noisy.noise.shared
            metric.update_state(*outcome.moments, batch.num_examples, parts, shared)
        loss = target.reported_loss(batch, outcome.y_pred, outcome.extra_loss)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss * replicas, sample_weight=batch.num_examples)
        added = outcome.noise and ParameterNoise(noisy, outcome.noise, scale)
        gradients = outcome.gradients
        if replicas > 1 and find(self.optimizer, keras.optimizers.LossScaleOptimizer):
            gradients = _overflow_everywhere(gradients)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        if added:
            added.add(self.trainable_variables)
        return self.compute_metrics(x, y, outcome.y_pred, sample_weight=sample_weight)

    def _outcome(self, noisy, target, batch, parts):
        chunks, monitored = self.num_microbatches or 1, bool(self._monitors)
        if noisy is None:
            return Step(target, batch, None, parts, None, None, chunks, monitored=monitored).run(
                None, None
            )
        noisy.has_statistics = True
        draws = Draws(tf.stack([noisy.seed, tf.cast(noisy.micro_steps, "int32")]))
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        own_draws = draws.fold_in(replica)
        if noisy.noise.shared:  # the same numbers for every batch and device of an update
            draws = Draws(tf.stack([noisy.seed, tf.cast(noisy.iterations, "int32")])).fold_in(-1)
        else:
            draws = own_draws
        outcome = Step(
            target,
            batch,
            noisy.noise,
            parts,
            own_draws,
            draws,
            chunks,
            separate=noisy.placement == "update",
            monitored=monitored,
            stored=noisy.stored,
        ).run(noisy.noise_on, noisy.is_fresh)
        noisy.keep(outcome.stored)
        return outcome

    def save_own_variables(self, store: dict[str, Any]) -> None:
        super().save_own_variables(store)
        # Keras saves no states of random layers such as Dropout, but a resumed run needs them.
        for number, state in enumerate(seed_states(self)):
            store[f"seed_state_{number}"] = state

    def load_own_variables(self, store: dict[str, Any]) -> None:
        found = dict(store)
        for number, state in enumerate(seed_states(self)):
            if (key := f"seed_state_{number}") in found:
                state.assign(found.pop(key))
        super().load_own_variables(found)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "model": keras.saving.serialize_keras_object(self.model),
            "num_microbatches": self.num_microbatches,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Self:
        config = dict(config)
        config["model"] = keras.saving.deserialize_keras_object(
            config["model"], custom_objects=custom_objects
        )
        return cls(**config)


def _overflow_everywhere(gradients):
    """Gradients that are not finite on this device, if they are not finite on any.

    Keras looks at the first device only when it decides whether to skip an update.
    """
    known = [tf.reduce_all(tf.math.is_finite(g)) for g in gradients if g is not None]
    overflow = tf.cast(tf.logical_not(tf.reduce_all(tf.stack(known))), "float32")
    context = tf.distribute.get_replica_context()
    number = context.all_reduce(tf.distribute.ReduceOp.SUM, overflow)
    poison = tf.where(number > 0, float("nan"), 0.0)
    return [None if g is None else g + tf.cast(poison, g.dtype) for g in gradients]
