"""The model whose `fit` trains with noise."""

import dataclasses
import warnings
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from keras_noisylb.gradients.batch import Batch
from keras_noisylb.gradients.labels import labels_for
from keras_noisylb.gradients.loss import Objective, call_model, check_add_loss_reduction
from keras_noisylb.gradients.statistics import STATISTICS
from keras_noisylb.gradients.stored import StoredStatistic
from keras_noisylb.noise.base import positive_integer
from keras_noisylb.optimizer import find, find_noisy
from keras_noisylb.training.batch_check import BatchSizeCheck, LargestBatch
from keras_noisylb.training.exchange import of_chief
from keras_noisylb.training.multi_worker import MultiWorkerModel, averaged_by_keras
from keras_noisylb.training.noise_end import NoiseEnd, check_noise_end
from keras_noisylb.training.parameter_noise import ParameterNoise
from keras_noisylb.training.randomness import Draws, seed_states
from keras_noisylb.training.state import build_state
from keras_noisylb.training.step import Parts, Step
from keras_noisylb.training.strategies import check_strategy, on_any_device
from keras_noisylb.training.worker_callbacks import for_workers
from keras_noisylb.types import AddLossReduction, Nested, Tensor


@keras.saving.register_keras_serializable(package="keras_noisylb")
class NoisyModel(MultiWorkerModel):
    """Wraps a Keras model so that `fit` adds the noise of a `NoisyOptimizer` to its gradients.

    Losses, metrics, callbacks and data are as in `keras.Model`. When the noise has ended, and with
    any other optimizer, the model trains like the plain model. A warning says so for another
    optimizer.

    Args:
        model: the `keras.Model` to train. Its weights are shared, not copied. The model must not
            override methods of training or evaluation, such as `train_step` or `compute_loss`.
        num_microbatches: number of microbatches that each batch is cut into. They are computed one
            after the other, so a large batch needs the memory of one microbatch. Ghost batches are
            not cut. The gradient is that of the whole batch if the loss is a sum over examples.
            `None` does not cut batches.
        add_loss_reduction: how the losses that layers add by `add_loss` reduce the examples of a
            batch: `"mean"`, also for losses that do not depend on the examples, or `"sum"`. It is
            required if a model with such losses cuts batches: for `num_microbatches`,
            `estimator="split"` or `GradientNoiseMonitor`. Regularisers do not require it.

    Call arguments:
        inputs: the model's inputs.
        training: boolean, as in the model.

    Raises:
        ValueError: if `model` is no Keras model, is a `NoisyModel`, or overrides methods of
            training or evaluation; if `add_loss_reduction` is wrong, or missing in `fit`; if the
            batch size is not larger than the `small_batch_size` of the noise; if a batch has fewer
            ghost batches than microbatches; if `fit` comes before `compile`; if `save` gets a path
            to an HDF5 file, from which the model could not be loaded.

    Example:
    ```python
    model = keras_noisylb.NoisyModel(keras_noisylb.models.LeNet(ghost_batch_size=64))
    ```
    """

    jit_compile: bool  # a property of Keras

    def __init__(
        self,
        model: keras.Model,
        num_microbatches: int | None = None,
        *,
        add_loss_reduction: AddLossReduction | None = None,
        **kwargs: Any,
    ) -> None:
        _check_model(model)
        if num_microbatches is not None:
            positive_integer("num_microbatches", num_microbatches, "or None to cut no batches")
        check_add_loss_reduction(add_loss_reduction)
        super().__init__(**kwargs)
        self.model = model
        self.num_microbatches = num_microbatches
        self.add_loss_reduction = add_loss_reduction
        self.built = model.built
        self._monitors: list[keras.metrics.Metric] = []
        self._evaluates = False
        self._warned = False
        self._compiles_each_device = False

    def call(self, inputs: Nested, training: bool | None = None) -> Nested:
        return call_model(self.model, inputs, training)

    @property
    def output_names(self) -> list[str]:
        """Names of the model's outputs, which `compile` uses to assign losses and metrics."""
        return self.model.output_names

    def compile(self, *args: Any, **kwargs: Any) -> None:
        super().compile(*args, **kwargs)
        # The __setattr__ of Keras would add it to the metrics of the model.
        object.__setattr__(self, "_largest_batch", LargestBatch())
        noisy = find_noisy(self.optimizer)
        if self.optimizer is not None:
            inner = self.optimizer
            while hasattr(inner, "inner_optimizer"):
                inner = inner.inner_optimizer
            check_strategy(self, inner)
        several_devices = self.distribute_strategy.num_replicas_in_sync > 1
        # Keras would compile the step of all devices as one program.
        self._compiles_each_device = several_devices and self.jit_compile is True
        if self._compiles_each_device:
            self.jit_compile = False
        if noisy is not None:
            noisy.seed = of_chief(self.distribute_strategy, noisy.seed)
        if noisy is not None and noisy.noise.update_every > 1:
            if not self.built:
                raise ValueError(
                    f"A noise with update_every={noisy.noise.update_every} stores a statistic "
                    "with the shapes of the model's layers. Build the model before it is compiled: "
                    "give it an Input layer, or call it on a batch of inputs."
                )
            shapes = STATISTICS.stored_shapes(noisy.noise, self)
            # An optimizer that is compiled again keeps its stored statistic.
            if noisy.stored is None or noisy.stored.shapes != shapes:
                noisy.stored = StoredStatistic(shapes, noisy.noise.update_every)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        # Keras requires this method because `compile` is overridden.
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
        if not self.compiled:
            raise ValueError(
                "`fit` expects a compiled model. Received: a NoisyModel that is not compiled. Call "
                "model.compile(keras_noisylb.NoisyOptimizer(optimizer, noise), loss) before."
            )
        noisy = find_noisy(self.optimizer)
        arrays = all(hasattr(leaf, "shape") for leaf in keras.tree.flatten(x))
        callbacks = for_workers(
            keras.tree.flatten(callbacks or []),
            self.distribute_strategy,
            shuffled=arrays and kwargs.get("shuffle", True),
        )
        if noisy is not None or self.num_microbatches:
            check = BatchSizeCheck(noisy, self, self._largest_batch)
            ends = [] if noisy is None else [NoiseEnd(noisy)]
            callbacks = [*callbacks, check, *ends]
            if arrays:
                check.check(batch_size or 32)
            build_state(self, x, y)
        try:
            return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)
        finally:
            self.monitor(None)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        self._evaluates = True
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._evaluates = False

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        # Evaluation has no gradients to measure.
        return super().metrics + ([] if self._evaluates else self._monitors)

    def monitor(self, metric: keras.metrics.Metric | None) -> None:
        """Measure moments of the per-example gradients until the end of the next `fit`.

        Args:
            metric: the metric that receives them; `None` ends the measurement.
        """
        monitors = [] if metric is None else [metric]
        if self._monitors != monitors:
            # Without the __setattr__ of Keras, as in `compile`.
            object.__setattr__(self, "_monitors", monitors)
            self.train_function = None  # Keras traces the step again

    @averaged_by_keras
    def train_step(self, data: Nested) -> dict[str, Tensor]:
        noisy = find_noisy(self.optimizer)
        if noisy is None and not self.num_microbatches and not self._monitors:
            self._warn_of_plain_training()
            if not self._compiles_each_device:
                return super().train_step(data)
        # Eager `train_on_batch` passes NumPy arrays unconverted.
        data = keras.tree.map_structure(
            lambda a: tf.convert_to_tensor(a) if isinstance(a, np.ndarray) else a, data
        )
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if not self.built:
            self(x)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        target = Objective(
            self,
            lambda x, y, y_pred, sample_weight: self.compute_loss(
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
            ),
            scale=self.optimizer.scale_loss,
            extra_weight=1 / replicas,
            labels=None if noisy is None else labels_for(noisy.noise, self, self.loss),
            add_loss_reduction=self.add_loss_reduction,
        )
        batch = Batch(x, y, sample_weight)
        self._largest_batch.update_state(batch.num_examples)
        if not self.trainable_variables:
            return super().train_step(data)  # as in Keras: a warning, and no update
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

    def _warn_of_plain_training(self):
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"A NoisyModel with the optimizer {type(self.optimizer).__name__} trains without "
                "noise. To train with noise, compile it with "
                "keras_noisylb.NoisyOptimizer(optimizer, noise). To train without noise, train the "
                "wrapped model.",
                stacklevel=2,
            )

    def _outcome(self, noisy, target, batch, parts):
        options = {
            "num_microbatches": self.num_microbatches or 1,
            "monitored": bool(self._monitors),
        }
        run = Step.compiled if self._compiles_each_device else Step.run
        if noisy is None:
            return run(Step(target, batch, None, parts, None, None, **options), None, None)
        check_noise_end(noisy)
        noisy.has_statistics = True
        draws = Draws(tf.stack([noisy.seed, tf.cast(noisy.micro_steps, "int32")]))
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        own_draws = draws.fold_in(replica)
        if noisy.noise.shared:  # the same numbers for all batches and devices of one update
            draws = Draws(tf.stack([noisy.seed, tf.cast(noisy.iterations, "int32")])).fold_in(-1)
        else:
            draws = own_draws
        noise_on, stored = noisy.noise_on, noisy.stored
        step = Step(
            target,
            batch,
            noisy.noise,
            parts,
            own_draws,
            draws,
            separate=noisy.placement == "update",
            **options,
        )
        if stored is None:
            return run(step, noise_on, tf.constant(True))
        is_due = stored.is_due(noisy.iterations)
        step = dataclasses.replace(step, stored=stored.value, stored_unit=stored.unit)
        outcome = run(step, noise_on, is_due)
        measured = tf.logical_and(noise_on, is_due)
        stored.keep(outcome.stored, measured, noisy.iterations, parts.unit)
        return outcome

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(
                "A NoisyModel cannot be loaded from HDF5. Expected: a path that ends with .keras. "
                f"Received: filepath={str(filepath)!r}. For the weights alone use `save_weights`."
            )
        super().save(filepath, *args, **kwargs)

    def export(self, *args: Any, **kwargs: Any) -> None:
        # The inputs of the wrapped model are known even if the wrapper was never called.
        self.model.export(*args, **kwargs)

    def save_own_variables(self, store: dict[str, Any]) -> None:
        super().save_own_variables(store)
        # A resumed run needs the states of random layers such as Dropout. Keras does not save them.
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
            "add_loss_reduction": self.add_loss_reduction,
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


# Methods of training and evaluation that a model can override.
_STEPS = ("train_step", "test_step", "compute_loss", "compute_metrics", "get_metrics_result")


def _check_model(model):
    """Reject what is no Keras model, and models whose own training methods would not run."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a keras.Model. Received: {model!r}")
    if isinstance(model, NoisyModel):
        raise ValueError(f"`model` is already a NoisyModel. Use it directly. Received: {model!r}")
    replaced = [
        name
        for name in _STEPS
        if name in vars(model) or getattr(type(model), name) is not getattr(keras.Model, name)
    ]
    if replaced:
        raise ValueError(
            "NoisyModel has its own methods of training and evaluation, so those of the wrapped "
            f"model would not run. Received: {type(model).__name__}, which overrides "
            f"{', '.join(replaced)}. Pass the loss and the metrics to `compile`, and other losses "
            "to `add_loss`. Or override `compute_loss` and `compute_metrics` in a subclass of "
            "NoisyModel. Or keep the model's `train_step` and call keras_noisylb.noisy_gradients "
            "in it."
        )


def _overflow_everywhere(gradients):
    """Make gradients NaN on every device if they are not finite on one device.

    To decide whether to skip an update, Keras looks at the first device only.
    """
    known = [tf.reduce_all(tf.math.is_finite(g)) for g in gradients if g is not None]
    overflow = on_any_device(tf.logical_not(tf.reduce_all(tf.stack(known))))
    poison = tf.where(overflow, float("nan"), 0.0)
    return [None if g is None else g + tf.cast(poison, g.dtype) for g in gradients]
