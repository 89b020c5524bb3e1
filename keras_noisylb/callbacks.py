"""Measures gradient and noise during training."""

import keras
from keras import ops

from keras_noisylb.optimizer import find, find_noisy
from keras_noisylb.training.model import NoisyModel
from keras_noisylb.training.strategies import on_any_device

__all__ = ["GradientNoiseMonitor"]


class GradientNoise(keras.metrics.Metric):
    """Means over the steps of an epoch, and the logs of `GradientNoiseMonitor` from them.

    Numerators and denominators are averaged separately, because the ratio of two means has much
    less bias than the mean of noisy ratios.

    Args:
        optimizer: the model's optimizer. The temperature is computed for SGD only.
    """

    MEANS = ("variance", "data", "total", "averaged", "noise", "rate")
    COUNTS = ("steps", "skipped")

    def __init__(self, optimizer=None, name="gradient_noise", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.sgd, noisy = find(optimizer, keras.optimizers.SGD), find_noisy(optimizer)
        self.in_update = noisy is not None and noisy.placement == "update"
        self.sums = {
            key: self.add_variable((), "zeros", dtype="float32", name=key)
            for key in self.MEANS + self.COUNTS
        }

    def update_state(self, variance, data, total, noise, num_examples, parts, shared):
        """Add one batch on one device.

        Args:
            variance: tr Σ of one example's gradient, scaled by `parts.unit`².
            data: |G|² of the data loss, scaled likewise.
            total: |G|² of the data loss and the regularisers, scaled likewise.
            noise: |noise|² of this part, scaled likewise.
            num_examples: number of examples of this part.
            parts: `Parts`.
            shared: whether all parts have the same noise.
        """
        unit = ops.cast(parts.unit, "float32")
        variance, data, total = (value / unit**2 for value in (variance, data, total))
        examples = ops.cast(num_examples, "float32") * parts.replicas * parts.accumulated
        # The noise of all devices is added: independent noise adds its squares. The noise of
        # accumulated batches is averaged. With placement="update" only the last batch has noise.
        noise = noise / (unit * parts.replicas) ** 2 * parts.replicas ** (2 if shared else 1)
        noise = noise / (1 if shared else parts.noisy) * (parts.accumulated // parts.noisy)
        averaged = ops.divide_no_nan(variance, examples)
        if shared:  # proportional to the gradient, whose norm is larger for a part of the batch
            part = total + ops.divide_no_nan(variance, ops.cast(num_examples, "float32"))
            noise = noise * ops.divide_no_nan(total + averaged, part)
        overflow = on_any_device(ops.logical_not(ops.isfinite(variance + data + total + noise)))
        values = {
            "variance": variance,
            "data": data,
            "total": total,
            "averaged": averaged,
            "noise": noise,
            "rate": ops.zeros(()) if self.sgd is None else self.sgd.learning_rate,
            "steps": ops.ones(()),
        }
        halves = ops.convert_to_tensor(num_examples > 1)  # two halves need two examples
        used = ops.logical_and(halves, ops.logical_not(overflow))
        for key, value in values.items():
            self.sums[key].assign_add(ops.where(used, value, 0.0))
        self.sums["skipped"].assign_add(ops.where(overflow, 1.0 / parts.replicas, 0.0))

    def result(self):
        # The means are NaN if no step was measured.
        variance, data, total, averaged, noise, rate = (
            self.sums[key] / self.sums["steps"] for key in self.MEANS
        )
        gradient = ops.maximum(total + averaged, 0.0)
        logs = {
            "gradient_norm": ops.sqrt(gradient),
            "noise_norm": ops.sqrt(noise),
            "noise_to_gradient": ops.sqrt(ops.divide_no_nan(noise, gradient)),
            "fisher_trace": variance + data,
            "gradient_noise_scale": ops.where(total <= 0, float("inf"), variance / total),
            "skipped_steps": ops.convert_to_tensor(self.sums["skipped"]),
        }
        if self.sgd is not None:
            slowness = 1 - self.sgd.momentum
            # Momentum accumulates noise of the gradient, but not noise of the parameters.
            heating = averaged + noise * (slowness**2 if self.in_update else 1)
            logs["temperature"] = rate / slowness * ops.divide_no_nan(heating, variance)
        return logs


class GradientNoiseMonitor(keras.callbacks.Callback):
    """Logs the norms of gradient and noise, the gradient noise scale and the temperature.

    Every batch is computed as two halves, which costs almost nothing. The difference of the two
    gradients gives unbiased estimates of tr Σ, the variance of one example's gradient, and of
    |G|², the squared norm of the expected gradient. The logs are means over the epoch so far. They
    appear like metrics: in the progress bar, in `History` and in TensorBoard.

    - `gradient_norm`: root mean square of the norm of the update's gradient, without noise.
    - `noise_norm`: root mean square of the norm of the noise; 0 while the noise is off.
    - `noise_to_gradient`: `noise_norm` over `gradient_norm`.
    - `fisher_trace`: tr F of the empirical Fisher: tr Σ plus |G|² of the data loss.
    - `gradient_noise_scale`: tr Σ / |G|², the "simple" noise scale of McCandlish et al. 2018
      (https://arxiv.org/abs/1812.06162). With a larger batch size, more examples help little. It
      is infinite if the estimate of |G|² is not positive.
    - `temperature`, for SGD only: as `noise_temperature`, but with the measured noise. Clipping is
      not counted: where it acts, the training is colder.
    - `skipped_steps`: number of steps in the epoch so far with a gradient that is not finite. The
      other logs leave these steps out, and are NaN if no other step remains. With "mixed_float16"
      a few are normal, because loss scaling tries a larger scale from time to time. Without loss
      scaling, the training has diverged.

    The monitor also works when the noise is off, and without a `NoisyOptimizer`: wrap the model in
    `NoisyModel` and compile it with any optimizer. Keras' BatchNormalization then normalises half
    batches.

    Raises:
        ValueError: if the model is not a `NoisyModel`.

    Example:
    ```python
    model = keras_noisylb.NoisyModel(model)
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    history = model.fit(x, y, batch_size=4096, callbacks=[GradientNoiseMonitor()]).history
    print(history["gradient_noise_scale"])
    ```
    """

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        if not isinstance(model, NoisyModel):
            raise ValueError(
                "GradientNoiseMonitor needs the training step of a NoisyModel. Wrap the model: "
                f"keras_noisylb.NoisyModel(model). Received: {type(model).__name__}"
            )
        with model.distribute_strategy.scope():
            model.monitor(GradientNoise(model.optimizer))
