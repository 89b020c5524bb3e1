"""Training with noise: `NoisyModel` for `fit`, `noisy_gradients` for custom loops."""

import keras
import tensorflow as tf

from keras_noisylb.gradients import engines, objective
from keras_noisylb.gradients.objective import Objective, batch_size, call_model
from keras_noisylb.noise import noise_scale
from keras_noisylb.optimizer import find_noisy


def _record(target, noise, x, y, sample_weight):
    return engines.squares(
        target,
        x,
        y,
        sample_weight,
        engine=noise.engine,
        max_examples=noise.max_examples,
        conv=noise.conv,
    )


def _normal(seed):
    """A source of standard normal tensors; every call folds a new number into `seed`."""
    calls = iter(range(2**31))

    def normal(shape, dtype):
        return tf.random.stateless_normal(shape, tf.random.fold_in(seed, next(calls)), dtype=dtype)

    return normal


def noisy_gradients(model, loss, x, y, noise, seed, sample_weight=None):
    """The gradient of a large batch and one sample of its noise, for custom training loops.

    Args:
        model: a Keras model; it runs in training mode.
        loss: a Keras loss, its name, or a function `(y, y_pred) -> scalar`.
        x: inputs, M_L examples first.
        y: targets.
        noise: the noise, for example `DiagonalFisher(small_batch_size=128)`.
        seed: integer, or scalar integer tensor such as `optimizer.iterations`: the same seed gives
            the same noise, so take another one at every step.
        sample_weight: weights of the examples, or `None`.

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
    gradients, statistic = _record(objective(model, loss), noise, x, y, sample_weight).statistics()
    scale = noise_scale(batch_size(x), noise.small_batch_size)
    sample = noise.sample(statistic, scale, _normal(tf.stack([tf.cast(seed, "int32"), 0])))
    return gradients, sample


@keras.saving.register_keras_serializable(package="keras_noisylb")
class NoisyModel(keras.Model):
    """Wraps a Keras model so that `fit` adds the noise of a `NoisyOptimizer` to its gradients.

    Everything else is as in `keras.Model`: any loss, metric, callback and form of data. With
    another optimizer, or once the noise has ended, it trains as the plain model does.

    Args:
        model: the `keras.Model` to train. Its weights are shared, not copied.

    Call arguments:
        inputs: the model's inputs.
        training: boolean, as in the model.

    Raises:
        ValueError: if `model` is not a Keras model, or (in `fit`) if the batch size is not larger
            than the noise's `small_batch_size`, so that there would be no noise at all.

    Example:
    ```python
    model = keras_noisylb.NoisyModel(keras_noisylb.models.LeNet(ghost_batch_size=64))
    ```
    """

    def __init__(self, model, **kwargs):
        if not isinstance(model, keras.Model):
            raise ValueError(f"`model` must be a keras.Model. Received: {model!r}")
        super().__init__(**kwargs)
        self.model = model
        self.built = model.built

    def build(self, input_shape):
        if not self.model.built:
            self.model.build(input_shape)
        self.built = True

    def call(self, inputs, training=None):
        return call_model(self.model, inputs, training)

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        **kwargs,
    ):
        noisy = find_noisy(self.optimizer)
        if noisy is not None:
            check = _BatchSizeCheck(noisy)
            if isinstance(callbacks, keras.callbacks.CallbackList):
                callbacks.append(check)
            else:
                callbacks = [*keras.tree.flatten(callbacks or []), check]
            if all(hasattr(leaf, "shape") for leaf in keras.tree.flatten(x)):
                check.check(batch_size or 32)
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)

    def train_step(self, data):
        noisy = find_noisy(self.optimizer)
        if noisy is None:
            return super().train_step(data)
        noisy.has_statistics = True
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
        target = Objective(
            self,
            lambda x, y, y_pred, sample_weight: self.compute_loss(
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
            ),
            scale=self.optimizer.scale_loss,
            extra_weight=1 / num_replicas,
        )
        recorded = _record(target, noisy.noise, x, y, sample_weight)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(recorded.loss * num_replicas, sample_weight=batch_size(x))
        gradients = self._noisy_gradients(noisy, recorded, batch_size(x), num_replicas)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return self.compute_metrics(x, y, recorded.y_pred, sample_weight=sample_weight)

    def _noisy_gradients(self, noisy, recorded, num_examples, num_replicas):
        """The gradient of this replica, with its share of the noise while the noise is on."""
        # The inner optimizer sums over replicas (the loss holds their 1 / R) and averages over
        # accumulated batches. Independent noise for each part, √parts as large, adds up to the
        # noise of the whole large batch.
        accumulated = noisy.inner_optimizer.gradient_accumulation_steps or 1
        parts = num_replicas * accumulated
        absent = []

        def present(gradients):
            absent[:] = [g is None for g in gradients]
            return [g for g in gradients if g is not None]

        def with_noise():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            seed = tf.stack([noisy.seed, tf.cast(noisy.micro_steps, "int32")])
            normal = _normal(tf.random.fold_in(seed, replica))
            gradients, statistic = recorded.statistics()
            scale = noise_scale(parts * num_examples, noisy.noise.small_batch_size)
            noise = noisy.noise.sample(statistic, scale * parts**0.5, normal)
            return present([
                g if g is None or n is None else g + tf.cast(n, g.dtype)
                for g, n in zip(gradients, noise, strict=True)
            ])

        # Only backward passes are inside: a branch may hold no assignment and no collective.
        found = iter(tf.cond(noisy.noise_on, with_noise, lambda: present(recorded.gradients())))
        return [None if missing else next(found) for missing in absent]

    def get_config(self):
        return {
            **super().get_config(),
            "model": keras.saving.serialize_keras_object(self.model),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        config["model"] = keras.saving.deserialize_keras_object(
            config["model"], custom_objects=custom_objects
        )
        return cls(**config)


class _BatchSizeCheck(keras.callbacks.Callback):
    """Refuses a nominal batch size that leaves no noise; looks at the first batch of the data."""

    def __init__(self, noisy):
        super().__init__()
        self.noisy = noisy

    def check(self, batch_size):
        accumulated = self.noisy.inner_optimizer.gradient_accumulation_steps or 1
        small = self.noisy.noise.small_batch_size
        if batch_size * accumulated <= small:
            raise ValueError(
                "The noise imitates a small batch by a large one, so the batch size of one update "
                f"must be larger than `small_batch_size`. Received: batch size {batch_size} "
                f"(times {accumulated} accumulated), small_batch_size={small}. Raise the "
                "batch size or lower small_batch_size."
            )

    def on_train_begin(self, logs=None):
        self.first = True

    def on_train_batch_end(self, batch, logs=None):
        if self.first:
            self.first = False
            loss = next(metric for metric in self.model.metrics if metric.name == "loss")
            seen = int(keras.ops.convert_to_numpy(loss.count))
            self.check(-(-seen // self.model.steps_per_execution))
