"""Batch normalisation whose statistics are those of small "ghost" batches."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_noisylb")
class GhostBatchNormalization(keras.layers.Layer):
    """Batch normalisation over ghost batches (Hoffer et al. 2017).

    In training the batch of B examples is cut into G = max(B // ghost_batch_size, 1) ghosts of
    consecutive examples (sizes differ by one at most), and each is normalised by its own mean and
    biased variance. The moving statistics are updated as if the ghosts had come one after the
    other. In inference, or with `trainable=False`, it is ordinary batch normalisation by the moving
    statistics. Statistics are float32 (float64 for float64 inputs) whatever the compute dtype.

    Args:
        ghost_batch_size: number of examples in a ghost, in the paper's runs the small batch M_S.
        axis: the feature axis, not the batch axis.
        momentum: of the moving statistics, for each ghost.
        epsilon: added to the variance.
        center: whether to add a trained `beta`.
        scale: whether to multiply by a trained `gamma`.
        beta_initializer: initializer of `beta`.
        gamma_initializer: initializer of `gamma`.
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor of rank 2 or more, examples first.
        training: boolean.

    Raises:
        ValueError: if `ghost_batch_size` is not a positive integer or `axis` is the batch axis.

    Example:

    >>> layer = GhostBatchNormalization(ghost_batch_size=32)
    >>> layer(keras.random.normal((128, 8, 8, 3)), training=True).shape
    TensorShape([128, 8, 8, 3])
    """

    def __init__(
        self,
        ghost_batch_size,
        axis=-1,
        momentum=0.9,
        epsilon=1e-3,
        center=True,
        scale=True,
        beta_initializer="zeros",
        gamma_initializer="ones",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not isinstance(ghost_batch_size, int) or ghost_batch_size < 1:
            raise ValueError(
                "`ghost_batch_size` must be a positive integer, the number of examples that are "
                f"normalised together. Received: ghost_batch_size={ghost_batch_size!r}"
            )
        if axis == 0:
            raise ValueError("`axis` must be a feature axis. Received: axis=0, the batch axis")
        self.ghost_batch_size = ghost_batch_size
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        self.beta_initializer = keras.initializers.get(beta_initializer)
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.supports_masking = True

    def build(self, input_shape):
        features = input_shape[self.axis]
        if features is None:
            raise ValueError(
                f"Axis {self.axis} of the inputs holds the features and must have a known size. "
                f"Received: input_shape={input_shape}"
            )
        shape = (features,)
        self.gamma = self.beta = None
        if self.scale:
            self.gamma = self.add_weight(shape, self.gamma_initializer, name="gamma")
        if self.center:
            self.beta = self.add_weight(shape, self.beta_initializer, name="beta")
        # The mean over replicas keeps their statistics equal.
        moving = {"trainable": False, "aggregation": "mean", "autocast": False}
        self.moving_mean = self.add_weight(shape, "zeros", name="moving_mean", **moving)
        self.moving_variance = self.add_weight(shape, "ones", name="moving_variance", **moving)
        self.input_spec = keras.layers.InputSpec(
            ndim=len(input_shape), axes={self.axis % len(input_shape): features}
        )

    def _as_statistics(self, x):
        dtype = keras.backend.standardize_dtype(x.dtype)
        return ops.cast(x, "float64" if dtype == "float64" else "float32")

    def _per_example_mean(self, x):
        feature_axis = self.axis % len(x.shape)
        axes = [axis for axis in range(1, len(x.shape)) if axis != feature_axis]
        return ops.mean(x, axis=axes) if axes else x

    def _ghosts(self, x):
        """The ghost of each example, shape (B,), and the number of examples of each, (G,)."""
        batch = ops.shape(x)[0]
        count = ops.maximum(batch // self.ghost_batch_size, 1)
        index = ops.arange(batch) * count // ops.maximum(batch, 1)
        ones = ops.ones_like(index)
        return index, ops.segment_sum(ones, index, num_segments=count), count

    def _ghost_mean(self, per_example, index, sizes, count):
        total = ops.segment_sum(per_example, index, num_segments=count, sorted=True)
        return ops.divide_no_nan(total, ops.cast(sizes, total.dtype)[:, None])

    def _broadcast(self, per_example, x):
        """(B, C) or (C,) to the shape that broadcasts against `x`."""
        shape = [1] * len(x.shape)
        shape[self.axis] = per_example.shape[-1]
        if len(per_example.shape) == 2:
            shape[0] = -1
        return ops.reshape(per_example, shape)

    def _statistics(self, x):
        x = self._as_statistics(x)
        index, sizes, count = self._ghosts(x)
        mean = self._ghost_mean(self._per_example_mean(x), index, sizes, count)
        # The mean first, so that a large mean does not cancel the digits of the variance.
        deviation = x - self._broadcast(ops.take(mean, index, axis=0), x)
        squares = self._per_example_mean(ops.square(deviation))
        variance = self._ghost_mean(squares, index, sizes, count)
        return mean, variance, index, count

    def ghost_statistics(self, x):
        """Mean and biased variance of the ghost that each example belongs to.

        Args:
            x: inputs.

        Returns:
            Tuple `(mean, variance)`, each of shape (B, C).
        """
        mean, variance, index, _ = self._statistics(x)
        return ops.take(mean, index, axis=0), ops.take(variance, index, axis=0)

    def normalize(self, x, mean, variance):
        """Normalise `x`, before `gamma` and `beta`.

        Args:
            x: inputs.
            mean: means of shape (B, C) or (C,).
            variance: variances of the same shape.

        Returns:
            Tensor of the shape of `x`, in the dtype of the statistics.
        """
        inverse = ops.rsqrt(variance + self.epsilon)
        shift = self._broadcast(-mean * inverse, x)
        return self._as_statistics(x) * self._broadcast(inverse, x) + shift

    def scale_and_shift(self, normalized):
        """Multiply by `gamma`, add `beta` and return in the compute dtype."""
        if self.gamma is not None:
            normalized *= self._broadcast(ops.cast(self.gamma, normalized.dtype), normalized)
        if self.beta is not None:
            normalized += self._broadcast(ops.cast(self.beta, normalized.dtype), normalized)
        return ops.cast(normalized, self.compute_dtype)

    def call(self, inputs, training=None):
        if not (training and self.trainable):
            mean, variance = (
                self._as_statistics(ops.convert_to_tensor(v))
                for v in (self.moving_mean, self.moving_variance)
            )
            return self.scale_and_shift(self.normalize(inputs, mean, variance))
        mean, variance, index, count = self._statistics(inputs)
        self._update_moving(mean, variance, count, ops.shape(inputs)[0])
        mean, variance = ops.take(mean, index, axis=0), ops.take(variance, index, axis=0)
        return self.scale_and_shift(self.normalize(inputs, mean, variance))

    def _update_moving(self, mean, variance, count, batch):
        """One update for each ghost in turn: m^G μ + Σ_i (1 - m) m^(G-1-i) μ_i."""
        dtype = mean.dtype
        momentum = ops.cast(self.momentum, dtype)
        later = ops.cast(count - 1 - ops.arange(count), dtype)
        weights = (1 - momentum) * momentum**later
        keep = momentum ** ops.cast(count, dtype)
        seen = ops.cast(batch > 0, dtype)  # an empty batch leaves the statistics as they are
        for moving, values in ((self.moving_mean, mean), (self.moving_variance, variance)):
            old = ops.cast(moving.value, dtype)
            new = keep * old + ops.sum(weights[:, None] * values, axis=0)
            moving.assign(ops.cast(old + seen * (new - old), moving.dtype))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "ghost_batch_size": self.ghost_batch_size,
            "axis": self.axis,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
            "beta_initializer": keras.initializers.serialize(self.beta_initializer),
            "gamma_initializer": keras.initializers.serialize(self.gamma_initializer),
        }


def replace_batch_norm(model, ghost_batch_size):
    """A copy of `model` with ghost batch normalisation in place of batch normalisation.

    Args:
        model: a Sequential or Functional model; nested ones are treated too.
        ghost_batch_size: number of examples that are normalised together.

    Returns:
        A new model with the same weights and layer names.

    Raises:
        ValueError: for a subclassed model, whose code decides which layers it uses, and for a
            model without batch normalisation.

    Example:

    ```python
    model = replace_batch_norm(keras.applications.ResNet50(weights=None), ghost_batch_size=64)
    ```
    """
    replaced = []

    def clone(layer):
        if not isinstance(layer, keras.layers.BatchNormalization):
            return layer.__class__.from_config(layer.get_config())
        replaced.append(layer.name)
        config = layer.get_config()
        names = ("axis", "momentum", "epsilon", "center", "scale", "name", "trainable", "dtype")
        options = {name: config[name] for name in names}
        options |= {k: config[k] for k in ("beta_initializer", "gamma_initializer")}
        return GhostBatchNormalization(ghost_batch_size, **options)

    try:
        copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    except (ValueError, NotImplementedError) as error:
        raise ValueError(
            f"{type(model).__name__} {model.name!r} cannot be copied layer by layer: {error} "
            "In a subclassed model, use GhostBatchNormalization where its code has "
            "BatchNormalization."
        ) from error
    if not replaced:
        raise ValueError(f"{model.name!r} has no BatchNormalization layer to replace.")
    copy.set_weights(model.get_weights())
    return copy
