"""The optimizer wrapper: which noise, when, and with which random numbers."""

import random
from typing import Any, Self

import keras

from keras_noisylb.noise import Noise
from keras_noisylb.noise.base import one_of
from keras_noisylb.types import Nested, Placement, Tensor

NEVER = 2**31 - 1  # a step count that no run reaches: the noise stays on


@keras.saving.register_keras_serializable(package="keras_noisylb")
class NoisyOptimizer(keras.optimizers.Optimizer):
    """Wraps a Keras optimizer and says what noise `NoisyModel` adds to each gradient.

    The noise is drawn from `seed` and the step count alone: the same seed gives the same noise,
    also in a run that was stopped and resumed.

    Args:
        inner_optimizer: the `keras.optimizers.Optimizer` that makes the updates.
        noise: the noise to add, for example `DiagonalFisher(small_batch_size=128)`.
        noise_steps: number of updates after which the noise ends; `None` for never. Can be
            assigned during training.
        placement: where the noise enters. `"gradient"`: the gradient that `inner_optimizer` gets,
            so that momentum accumulates it, and clipping and weight decay act on it as on any
            gradient. `"update"`: the learning rate times the noise is added to the parameters
            after each update, equation 2 of Wen et al. 2020 to the letter whatever the momentum.
        seed: integer; `None` draws one, which `get_config` then holds.
        name: name of the optimizer.

    Raises:
        ValueError: for an optimizer that is not Keras' or scales the loss, something that is not a
            noise, or a number of steps that is not a non-negative integer.

    Example:
    ```python
    model = keras_noisylb.NoisyModel(model)
    model.compile(
        keras_noisylb.NoisyOptimizer(
            keras.optimizers.SGD(0.1, momentum=0.9),
            noise=keras_noisylb.DiagonalFisher(small_batch_size=128),
        ),
        loss="mse",
    )
    model.fit(x, y, batch_size=4096)
    ```
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        noise: Noise,
        noise_steps: int | None = None,
        placement: Placement = "gradient",
        seed: int | None = None,
        name: str = "noisy_optimizer",
    ) -> None:
        if isinstance(inner_optimizer, (keras.optimizers.LossScaleOptimizer, NoisyOptimizer)):
            raise ValueError(
                f"NoisyOptimizer cannot wrap a {type(inner_optimizer).__name__}. Pass the plain "
                "optimizer; to scale the loss, wrap it all: "
                "LossScaleOptimizer(NoisyOptimizer(SGD(...), ...))."
            )
        if not isinstance(inner_optimizer, keras.optimizers.Optimizer):
            raise ValueError(
                "`inner_optimizer` must be a keras.optimizers.Optimizer, such as "
                f"keras.optimizers.SGD(0.1). Received: {inner_optimizer!r}"
            )
        if not isinstance(noise, Noise):
            raise ValueError(
                "`noise` must be a noise of keras_noisylb, such as DiagonalFisher("
                f"small_batch_size=128). Received: {noise!r}"
            )
        check_placement(placement, noise)
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer
        self.noise = noise
        self.placement = placement
        self.seed = random.randrange(2**31) if seed is None else seed
        self.has_statistics = False
        self._stored: Any = None
        self._stored_shapes: Any = None
        self._noise_steps = self.add_variable(
            (), dtype="int32", aggregation="only_first_replica", name="noise_steps"
        )
        self.noise_steps = noise_steps

    @property
    def noise_steps(self) -> int | None:
        """Number of updates after which the noise ends, or `None` for never."""
        steps = int(keras.ops.convert_to_numpy(self._noise_steps))
        return None if steps == NEVER else steps

    @noise_steps.setter
    def noise_steps(self, steps: int | None) -> None:
        if steps is not None and (int(steps) != steps or steps < 0):
            raise ValueError(
                "`noise_steps` must be a non-negative integer, or None for noise that never ends. "
                f"Received: noise_steps={steps!r}"
            )
        self._noise_steps.assign(NEVER if steps is None else int(steps))

    @property
    def noise_on(self) -> Tensor:
        """Scalar boolean tensor: whether the coming batch gets noise."""
        on = keras.ops.less(keras.ops.cast(self.iterations, "int32"), self._noise_steps)
        accumulated = self.accumulated
        if self.placement == "gradient" or accumulated == 1:
            return on
        # The parameters move once for all accumulated batches, with the last one.
        last = keras.ops.equal((self.micro_steps + 1) % accumulated, 0)
        return keras.ops.logical_and(on, last)

    @property
    def is_fresh(self) -> Tensor:
        """Scalar boolean tensor: whether the coming batch makes a new statistic for its noise."""
        return keras.ops.equal(self.iterations % self.noise.update_every, 0)

    @property
    def accumulated(self) -> int:
        """Number of batches that one update accumulates."""
        return self.inner_optimizer.gradient_accumulation_steps or 1

    @property
    def stored(self) -> Nested:
        """The statistic of an earlier update, nested as the noise wants it, or `None`."""
        if self._stored is None:
            return None
        values = iter(keras.ops.convert_to_tensor(v) for v in self._stored)
        return _map_shapes(lambda shape: next(values), self._stored_shapes)

    def store(self, shapes: Any) -> None:
        """Keep room for a statistic that serves several updates.

        Args:
            shapes: its shapes, lists and tuples nested as the statistic is, `None` where it has
                nothing.
        """
        if self._stored is not None and shapes == self._stored_shapes:
            return  # compiled once more: Keras would save the old variables beside new ones
        self._stored_shapes, self._stored = shapes, []
        # Each device keeps its own, read as their mean: nothing is communicated in a step.
        _map_shapes(
            lambda shape: self._stored.append(
                keras.Variable(
                    keras.ops.zeros(shape),
                    trainable=False,
                    synchronization="on_read",
                    aggregation="mean",
                    name=f"statistic_{len(self._stored)}",
                )
            ),
            shapes,
        )

    def keep(self, statistic: Nested) -> None:
        """Remember a statistic, if there is room for one.

        Args:
            statistic: as `stored` gives it.
        """
        if self._stored is None:
            return
        values = [v for v in keras.tree.flatten(statistic) if v is not None]
        for variable, value in zip(self._stored, values, strict=True):
            variable.assign(value)

    @property
    def micro_steps(self) -> Tensor:
        """Number of batches seen, which exceeds `iterations` where gradients are accumulated."""
        return self._iterations

    def build(self, variables: list[keras.Variable]) -> None:
        if self.built:
            return
        self.inner_optimizer.build(variables)
        super().build(variables)

    def apply(self, grads: list[Tensor], trainable_variables: Any = None) -> None:
        if not self.has_statistics:
            raise RuntimeError(
                "NoisyOptimizer was compiled into a model that does not give it gradient "
                "statistics, so it would train without the noise. Wrap the model: "
                "keras_noisylb.NoisyModel(model).compile(...). In a custom loop use "
                "keras_noisylb.noisy_gradients and the plain optimizer."
            )
        if not self.built:
            self.build(list(trainable_variables))
        self.inner_optimizer.apply(grads, trainable_variables)
        self._iterations.assign_add(1)

    @property
    def variables(self) -> list[keras.Variable]:
        return [*self._variables, *self.inner_optimizer.variables]

    @property
    def learning_rate(self) -> Tensor:
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self) -> keras.Variable:
        return self.inner_optimizer.iterations

    def scale_loss(self, loss: Tensor) -> Tensor:
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list: list[keras.Variable]) -> None:
        self.inner_optimizer.finalize_variable_values(var_list)

    def get_config(self) -> dict[str, Any]:
        return {
            "inner_optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "noise": keras.saving.serialize_keras_object(self.noise),
            "noise_steps": self.noise_steps,
            "placement": self.placement,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Self:
        config = dict(config)
        for name in ("inner_optimizer", "noise"):
            config[name] = keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
        return cls(**config)


def check_placement(placement, noise):
    """Check that a noise can be placed where it shall be.

    Args:
        placement: as `NoisyOptimizer` takes it.
        noise: the noise.

    Raises:
        ValueError: if it cannot.
    """
    one_of("placement", placement, Placement)
    if placement == "update" and noise.shared:
        raise ValueError(
            f"{type(noise).__name__} multiplies the gradient, so its place is "
            f'placement="gradient". Received: placement={placement!r}'
        )


def _map_shapes(function, shapes):
    """Apply a function to every shape in nested lists and tuples of shapes and `None`s."""
    if shapes is None:
        return None
    if isinstance(shapes, tuple) and all(isinstance(size, int) for size in shapes):
        return function(shapes)
    return type(shapes)(_map_shapes(function, entry) for entry in shapes)


def find(optimizer, optimizer_class):
    """The first of a class among `optimizer` and those that it wraps, or `None`."""
    while optimizer is not None and not isinstance(optimizer, optimizer_class):
        optimizer = getattr(optimizer, "inner_optimizer", None)
    return optimizer


def find_noisy(optimizer):
    """The `NoisyOptimizer` in `optimizer` or among those that it wraps, or `None`."""
    return find(optimizer, NoisyOptimizer)
