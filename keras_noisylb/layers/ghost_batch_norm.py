"""Batch normalisation with the statistics of small "ghost" batches."""

import numbers
from typing import Any

import keras
from keras import ops

from keras_noisylb.layers.ghosts import Ghosts
from keras_noisylb.types import Tensor

Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable(package="keras_noisylb")
class GhostBatchNormalization(keras.layers.Layer):
    """Batch normalisation over ghost batches (Hoffer et al. 2017, https://arxiv.org/abs/1705.08741).

    In training, a batch of B examples is divided into G = max(B // ghost_batch_size, 1) ghost
    batches of consecutive examples. Example i belongs to ghost batch i * G // B, so sizes differ by
    at most one. Each ghost batch is normalised with its own mean and biased variance, taken over
    its examples and all axes except the feature axis. The moving statistics are updated as if
    `keras.layers.BatchNormalization` had processed the ghost batches in sequence. In inference, or
    with `trainable=False`, the layer is ordinary batch normalisation with the moving statistics.
    Statistics are float32 (float64 for float64 inputs) for every compute dtype. Under a
    distribution strategy all replicas hold the same moving statistics.

    In training the output is `scale_and_shift(normalize(x, *ghost_statistics(x)))`.

    Args:
        ghost_batch_size: number of examples in a ghost batch; in the paper's runs the small batch
            M_S.
        axis: the feature axis, not the batch axis.
        momentum: momentum of the moving statistics, applied once per ghost batch.
        epsilon: constant added to the variance.
        center: whether to add a trainable `beta`.
        scale: whether to multiply by a trainable `gamma`.
        beta_initializer: initializer of `beta`.
        gamma_initializer: initializer of `gamma`.
        moving_mean_initializer: initializer of the moving mean.
        moving_variance_initializer: initializer of the moving variance.
        beta_regularizer: regularizer of `beta`.
        gamma_regularizer: regularizer of `gamma`.
        beta_constraint: constraint on `beta`.
        gamma_constraint: constraint on `gamma`.
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor of rank 2 or more, examples first.
        training: boolean.
        mask: passed on in inference; an error in training.

    Returns:
        Tensor of the shape of `inputs`.

    Raises:
        ValueError: if `ghost_batch_size` is not a positive integer, if `axis` is the batch axis, if
            the size of the feature axis is unknown, or if the inputs have a mask in training.

    Example:
    >>> layer = GhostBatchNormalization(ghost_batch_size=32)
    >>> layer(keras.random.normal((128, 8, 8, 3)), training=True).shape
    TensorShape([128, 8, 8, 3])
    """

    def __init__(
        self,
        ghost_batch_size: int,
        *,
        axis: int = -1,
        momentum: float = 0.9,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: str | keras.initializers.Initializer = "zeros",
        gamma_initializer: str | keras.initializers.Initializer = "ones",
        moving_mean_initializer: str | keras.initializers.Initializer = "zeros",
        moving_variance_initializer: str | keras.initializers.Initializer = "ones",
        beta_regularizer: str | keras.regularizers.Regularizer | None = None,
        gamma_regularizer: str | keras.regularizers.Regularizer | None = None,
        beta_constraint: str | keras.constraints.Constraint | None = None,
        gamma_constraint: str | keras.constraints.Constraint | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check(ghost_batch_size, axis)
        self.ghost_batch_size = int(ghost_batch_size)
        self.axis = int(axis)
        self.momentum = momentum
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        self.beta_initializer = keras.initializers.get(beta_initializer)
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.moving_mean_initializer = keras.initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = keras.initializers.get(moving_variance_initializer)
        self.beta_regularizer = keras.regularizers.get(beta_regularizer)
        self.gamma_regularizer = keras.regularizers.get(gamma_regularizer)
        self.beta_constraint = keras.constraints.get(beta_constraint)
        self.gamma_constraint = keras.constraints.get(gamma_constraint)
        self.gamma = self.beta = None
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        """Create the weights for the features on `axis` of `input_shape`."""
        self.compute_output_shape(input_shape)
        features = input_shape[self.axis]
        if features is None:
            raise ValueError(
                f"Axis {self.axis} of the inputs holds the features and must have a known size. "
                f"Received: input_shape={input_shape}"
            )

        def add(name, **options):
            initializer = getattr(self, f"{name}_initializer")
            return self.add_weight((features,), initializer, name=name, autocast=False, **options)

        def add_trained(name):
            regularizer = getattr(self, f"{name}_regularizer")
            constraint = getattr(self, f"{name}_constraint")
            return add(name, regularizer=regularizer, constraint=constraint)

        # The order of Keras, so that the weights of a BatchNormalization can be copied.
        self.gamma = add_trained("gamma") if self.scale else None
        self.beta = add_trained("beta") if self.center else None
        # The mean over the replicas keeps the replicas equal.
        self.moving_mean = add("moving_mean", trainable=False, aggregation="mean")
        self.moving_variance = add("moving_variance", trainable=False, aggregation="mean")
        self.input_spec = keras.layers.InputSpec(ndim=len(input_shape), axes={self.axis: features})

    def ghost_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of each example's ghost batch.

        Args:
            x: inputs, B examples.

        Returns:
            Tuple `(mean, variance)`, each of shape (B, C), float32 (float64 for float64 inputs).
        """
        ghosts, _, mean, variance = self._moments(_as_statistics(x))
        return ghosts.spread(mean), ghosts.spread(variance)

    def normalize(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Normalise `x`, before `gamma` and `beta`.

        Args:
            x: inputs, B examples.
            mean: means of shape (B, C) or (C,).
            variance: variances of the same shape.

        Returns:
            Tensor of the shape of `x`, in the dtype of the statistics.
        """
        deviation = self._deviation(_as_statistics(x), mean)
        return deviation * self._broadcast(ops.rsqrt(variance + self.epsilon), x)

    def scale_and_shift(self, normalized: Tensor) -> Tensor:
        """Multiply by `gamma` and add `beta`.

        Args:
            normalized: output of `normalize`, of the shape of the inputs.

        Returns:
            Tensor of the same shape, in the compute dtype.
        """
        if self.gamma is not None:
            gamma = ops.cast(self.gamma, normalized.dtype)
            normalized = normalized * self._broadcast(gamma, normalized)
        return self._shift(normalized)

    def call(
        self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Normalise a batch; see the class for the arguments."""
        x = _as_statistics(inputs)
        in_ghosts = training and self.trainable
        if in_ghosts and mask is not None:
            raise ValueError(
                f"The inputs of {self.name!r} must not have a mask in training: ghost statistics "
                f"take all positions. Received: mask of shape {tuple(mask.shape)}. Drop the mask "
                "before this layer, or use keras.layers.BatchNormalization."
            )
        if in_ghosts:
            ghosts, deviation, mean, variance = self._moments(x)
            self._update_moving_statistics(ghosts, mean, variance)
            scale = self._scale(variance)
            if len(x.shape) == 2:
                scaled = ghosts.multiply(deviation, scale)
            else:
                scaled = deviation * self._broadcast(ghosts.spread(scale), x)
        else:
            deviation = self._deviation(x, ops.cast(self.moving_mean, x.dtype))
            scale = self._scale(ops.cast(self.moving_variance, x.dtype))
            scaled = deviation * self._broadcast(scale, x)
        return self._shift(scaled)

    def _moments(self, x):
        """The ghost batches, the deviations from their means, and means and variances (G, C)."""
        feature_axis = self.axis % len(x.shape)
        axes = [axis for axis in range(1, len(x.shape)) if axis != feature_axis]
        ghosts = Ghosts(ops.shape(x)[0], self.ghost_batch_size, large=not axes)

        def mean_over_ghosts(values):
            return ghosts.mean(ops.mean(values, axis=axes) if axes else values)

        mean = mean_over_ghosts(x)
        # Subtract the mean before squaring: a large mean would cancel digits of the variance.
        deviation = self._deviation(x, ghosts.spread(mean)) if axes else ghosts.add(x, -mean)
        return ghosts, deviation, mean, mean_over_ghosts(ops.square(deviation))

    def _deviation(self, x, mean):
        # Negates the small array: the gradient of `x - mean` would negate an array as large as x.
        return x + self._broadcast(-mean, x)

    def _scale(self, variance):
        inverse = ops.rsqrt(variance + self.epsilon)
        return inverse if self.gamma is None else inverse * ops.cast(self.gamma, variance.dtype)

    def _shift(self, x):
        if self.beta is not None:
            x = x + self._broadcast(ops.cast(self.beta, x.dtype), x)
        return ops.cast(x, self.compute_dtype)

    def _update_moving_statistics(self, ghosts, mean, variance):
        """One update per ghost batch, in sequence: m^G μ + Σ_i (1 - m) m^(G-1-i) μ_i."""
        momentum = ops.convert_to_tensor(self.momentum, mean.dtype)
        later = ops.cast(ghosts.count - 1 - ops.arange(ghosts.count), mean.dtype)
        # A replica without examples of the last batch has an empty ghost batch: weight 0.
        weights = (1 - momentum) * momentum**later * ops.cast(ghosts.sizes > 0, mean.dtype)
        for moving, values in ((self.moving_mean, mean), (self.moving_variance, variance)):
            update = ops.sum(weights[:, None] * values, axis=0)
            old = ops.cast(moving, mean.dtype) * (1 - ops.sum(weights))
            moving.assign(ops.cast(old + update, moving.dtype))

    def _broadcast(self, values, x):
        """Reshape (B, C) or (C,) so that it broadcasts against `x`."""
        shape = [1] * len(x.shape)
        shape[self.axis] = values.shape[-1]
        if len(values.shape) == 2:
            shape[0] = -1
        return ops.reshape(values, shape)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """The shape of the inputs."""
        rank = len(input_shape)
        if not -rank < self.axis < rank:
            raise ValueError(
                f"`axis` must be a feature axis of the inputs, after the batch axis. Received: "
                f"axis={self.axis}, input_shape={input_shape}"
            )
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        config = super().get_config()
        for name in ("ghost_batch_size", "axis", "momentum", "epsilon", "center", "scale"):
            config[name] = getattr(self, name)
        for name in ("beta", "gamma", "moving_mean", "moving_variance"):
            initializer = getattr(self, f"{name}_initializer")
            config[f"{name}_initializer"] = keras.initializers.serialize(initializer)
        for name in ("beta", "gamma"):
            regularizer = getattr(self, f"{name}_regularizer")
            constraint = getattr(self, f"{name}_constraint")
            config[f"{name}_regularizer"] = keras.regularizers.serialize(regularizer)
            config[f"{name}_constraint"] = keras.constraints.serialize(constraint)
        return config


def _check(ghost_batch_size, axis):
    is_integer = isinstance(ghost_batch_size, numbers.Integral)
    if not is_integer or isinstance(ghost_batch_size, bool) or ghost_batch_size < 1:
        raise ValueError(
            "`ghost_batch_size` must be a positive integer, the number of examples in a ghost "
            f"batch. Received: ghost_batch_size={ghost_batch_size!r}"
        )
    if not isinstance(axis, numbers.Integral) or axis == 0:
        raise ValueError(
            "`axis` must be an integer: the feature axis (-1, or 1 for channels first), not the "
            f"batch axis 0. Received: axis={axis!r}"
        )


def _as_statistics(x):
    """`x` as float64 if it is float64, otherwise as float32."""
    dtype = keras.backend.standardize_dtype(x.dtype)
    return ops.cast(x, "float64" if dtype == "float64" else "float32")
