"""The optimizer wrapper: which noise, when, with which random numbers."""

import numbers
import random
from typing import Any, Self

import keras

from keras_noisylb.gradients.stored import StoredStatistic
from keras_noisylb.noise import Noise
from keras_noisylb.noise.base import one_of
from keras_noisylb.types import Placement, Tensor

NEVER = 2**31 - 1  # no run has so many steps: the noise never ends
CLIPPING = ("clipnorm", "global_clipnorm", "clipvalue")  # attributes of Keras' optimizers
UNKNOWN = -1  # until `fit` has computed the step count from `noise_fraction`


def _of_inner(name):
    """A property that reads and writes the attribute of the inner optimizer."""

    def read(self: Any) -> Any:
        return getattr(self.inner_optimizer, name)

    def write(self: Any, value: Any) -> None:
        # Keras' constructor sets its defaults before the inner optimizer is known.
        if hasattr(self, "inner_optimizer"):
            setattr(self.inner_optimizer, name, value)

    return property(read, write)


@keras.saving.register_keras_serializable(package="keras_noisylb")
class NoisyOptimizer(keras.optimizers.Optimizer):
    """Wraps a Keras optimizer and holds the noise that `NoisyModel` adds to each gradient.

    The noise depends on `seed` and on the step count only. The same seed gives the same noise. A
    run that was stopped and resumed has the noise of an uninterrupted run.

    Args:
        inner_optimizer: the `keras.optimizers.Optimizer` that makes the updates.
        noise: the noise to add, for example `FullFisher(128, estimator="split")`.
        noise_steps: number of updates after which the noise ends; `None` for noise that never
            ends. It can be assigned during training, unless `noise_fraction` is given.
        noise_fraction: fraction of the training with noise, from 0 to 1, for training by
            `NoisyModel.fit`. We recommend a half; the paper has a quarter (A.7). When an epoch
            starts, `fit` computes `noise_steps` from its epochs and its steps per epoch. With data
            of unknown length, the noise ends with the first epoch that starts after the fraction. A
            resumed run ends the noise at the same step as an uninterrupted one.
        placement: where the noise is added. `"gradient"`: to the gradient that `inner_optimizer`
            receives. Momentum accumulates this noise; clipping and weight decay act on it as on any
            gradient. `"update"`: the learning rate times the noise is added to the parameters
            after each update. This is equation 2 of Wen et al. 2020 for any momentum.
        seed: integer seed of the noise, of 32 bits. `None` draws a seed, which `get_config`
            returns.
        name: name of the optimizer.

    Raises:
        ValueError: if `inner_optimizer` is no Keras optimizer, or a `LossScaleOptimizer` or
            `NoisyOptimizer`; if `noise` is no noise or does not allow the placement; if
            `noise_steps` is no non-negative integer; if `noise_fraction` is outside of [0, 1]; if
            both of them are given; if `seed` is no integer of 32 bits.
        RuntimeError: for a step with `noise_fraction` before `NoisyModel.fit` has run, as in
            `train_on_batch` and custom loops.

    Example:
    ```python
    model = keras_noisylb.NoisyModel(model)
    multiplier = keras_noisylb.matched_multiplier(4096, 128, 0.1, small_learning_rate=0.01)
    model.compile(
        keras_noisylb.NoisyOptimizer(
            keras.optimizers.SGD(0.1, momentum=0.9),
            noise=keras_noisylb.FullFisher(128, estimator="split", multiplier=multiplier),
            noise_fraction=0.5,
        ),
        loss="mse",
    )
    model.fit(x, y, batch_size=4096, epochs=20)
    ```
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        noise: Noise,
        *,
        noise_steps: int | None = None,
        noise_fraction: float | None = None,
        placement: Placement = "gradient",
        seed: int | None = None,
        name: str = "noisy_optimizer",
    ) -> None:
        if isinstance(inner_optimizer, (keras.optimizers.LossScaleOptimizer, NoisyOptimizer)):
            raise ValueError(
                f"NoisyOptimizer cannot wrap a {type(inner_optimizer).__name__}. Pass the plain "
                "optimizer. To scale the loss, wrap the NoisyOptimizer: "
                "LossScaleOptimizer(NoisyOptimizer(SGD(...), ...))."
            )
        if not isinstance(inner_optimizer, keras.optimizers.Optimizer):
            raise ValueError(
                "`inner_optimizer` must be a keras.optimizers.Optimizer, such as "
                f"keras.optimizers.SGD(0.1). Received: {inner_optimizer!r}"
            )
        if not isinstance(noise, Noise):
            raise ValueError(
                "`noise` must be a noise of keras_noisylb, such as FullFisher(128, "
                f'estimator="split"). Received: {noise!r}'
            )
        check_placement(placement, noise)
        _check_fraction(noise_fraction, noise_steps)
        _check_seed(seed)
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer
        self.noise = noise
        self.placement = placement
        self.seed = random.randrange(2**31) if seed is None else seed
        self.has_statistics = False
        self.stored: StoredStatistic | None = None
        self._noise_steps = self.add_variable(
            (), dtype="int32", aggregation="only_first_replica", name="noise_steps"
        )
        self._noise_fraction: float | None = None
        self.noise_steps = noise_steps
        if noise_fraction is not None:
            self._noise_fraction = noise_fraction
            self._noise_steps.assign(UNKNOWN)

    built: bool
    weight_decay = _of_inner("weight_decay")
    clipnorm = _of_inner("clipnorm")
    clipvalue = _of_inner("clipvalue")
    global_clipnorm = _of_inner("global_clipnorm")
    use_ema = _of_inner("use_ema")
    ema_momentum = _of_inner("ema_momentum")
    ema_overwrite_frequency = _of_inner("ema_overwrite_frequency")
    loss_scale_factor = _of_inner("loss_scale_factor")
    gradient_accumulation_steps = _of_inner("gradient_accumulation_steps")

    @property
    def noise_steps(self) -> int | None:
        """Number of updates after which the noise ends, or `None` for never.

        With `noise_fraction`, it is `None` until `fit` has computed it.
        """
        steps = int(keras.ops.convert_to_numpy(self._noise_steps))
        return None if steps in (NEVER, UNKNOWN) else steps

    @noise_steps.setter
    def noise_steps(self, steps: int | None) -> None:
        if steps is not None and (int(steps) != steps or steps < 0):
            raise ValueError(
                "`noise_steps` must be a non-negative integer, or None for noise that never ends. "
                f"Received: noise_steps={steps!r}"
            )
        _check_fraction(self.noise_fraction, steps)
        self.end_noise_after(steps)

    @property
    def noise_fraction(self) -> float | None:
        """Fraction of the training with noise, or `None` where `noise_steps` says when it ends."""
        return self._noise_fraction

    def end_noise_after(self, steps: int | None) -> None:
        """Set the number of updates with noise, which `fit` computes from `noise_fraction`.

        Args:
            steps: number of updates, or `None` for never.
        """
        self._noise_steps.assign(NEVER if steps is None else int(steps))

    @property
    def noise_end_known(self) -> bool:
        """Whether it is known when the noise ends. `fit` computes it from `noise_fraction`."""
        return int(keras.ops.convert_to_numpy(self._noise_steps)) != UNKNOWN

    @property
    def noise_on(self) -> Tensor:
        """Scalar boolean tensor: whether the next batch gets noise."""
        on = keras.ops.less(keras.ops.cast(self.iterations, "int32"), self._noise_steps)
        accumulated = self.accumulated
        if self.placement == "gradient" or accumulated == 1:
            return on
        # The last of the accumulated batches updates the parameters.
        last = keras.ops.equal((self.micro_steps + 1) % accumulated, 0)
        return keras.ops.logical_and(on, last)

    @property
    def accumulated(self) -> int:
        """Number of batches whose gradients one update accumulates."""
        return self.gradient_accumulation_steps or 1

    @property
    def micro_steps(self) -> Tensor:
        """Number of batches so far; more than `iterations` if gradients are accumulated."""
        return self._iterations

    def build(self, variables: list[keras.Variable]) -> None:
        # The base class would create averages and accumulators a second time.
        if not self.built:
            self.inner_optimizer.build(variables)
            self.built = True

    def apply(self, grads: list[Tensor], trainable_variables: Any = None) -> None:
        if not self.has_statistics:
            raise RuntimeError(
                "The model adds no noise: NoisyOptimizer was compiled into a model that is not a "
                "NoisyModel. Wrap the model: keras_noisylb.NoisyModel(model).compile(...). In a "
                "custom loop use keras_noisylb.noisy_gradients and the plain optimizer."
            )
        if not self.built:
            self.build(list(trainable_variables))
        self.inner_optimizer.apply(grads, trainable_variables)
        self._iterations.assign_add(1)

    @property
    def variables(self) -> list[keras.Variable]:
        stored = [] if self.stored is None else self.stored.variables
        return [*self._variables, *stored, *self.inner_optimizer.variables]

    def set_weights(self, weights: list[Any]) -> None:
        for variable, value in zip(self.variables, weights, strict=True):
            variable.assign(value)

    def exclude_from_weight_decay(
        self, var_list: list[keras.Variable] | None = None, var_names: list[str] | None = None
    ) -> None:
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

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
            "noise_steps": self.noise_steps if self.noise_fraction is None else None,
            "noise_fraction": self.noise_fraction,
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
    """Reject an unknown placement, and a placement that the noise does not allow."""
    one_of("placement", placement, Placement)
    if placement == "update" and noise.shared:
        raise ValueError(
            f"{type(noise).__name__} multiplies the gradient, so it needs "
            f'placement="gradient". Received: placement={placement!r}'
        )


def _check_fraction(fraction, steps):
    if fraction is None:
        return
    if steps is not None:
        raise ValueError(
            "`noise_steps` and `noise_fraction` both define when the noise ends. Give one of them. "
            f"Received: noise_steps={steps!r}, noise_fraction={fraction!r}"
        )
    if not isinstance(fraction, numbers.Real) or not 0 <= fraction <= 1:
        raise ValueError(
            "`noise_fraction` must be a fraction of the training, a number from 0 to 1. Received: "
            f"noise_fraction={fraction!r}"
        )


def _check_seed(seed):
    """Raise `ValueError` if an argument `seed` is neither an integer of 32 bits nor `None`."""
    is_integer = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if seed is not None and (not is_integer or not -(2**31) <= seed < 2**31):
        raise ValueError(
            "`seed` must be an integer from -2**31 to 2**31 - 1, or None to draw one. Received: "
            f"seed={seed!r}"
        )


def find(optimizer, optimizer_class):
    """The first instance of a class among `optimizer` and its inner optimizers, or `None`."""
    while optimizer is not None and not isinstance(optimizer, optimizer_class):
        optimizer = getattr(optimizer, "inner_optimizer", None)
    return optimizer


def find_noisy(optimizer):
    """The `NoisyOptimizer` among `optimizer` and its inner optimizers, or `None`."""
    return find(optimizer, NoisyOptimizer)
