"""Callbacks around the noise."""

import math
from typing import Any

import keras

from keras_noisylb.optimizer import find_noisy
from keras_noisylb.updates import updates_in


class NoiseTermination(keras.callbacks.Callback):
    """Ends the noise after a fraction of training, as the paper does after a quarter (A.7).

    The step at which the noise ends is computed from the epochs and steps of `fit` when an epoch
    starts; with data of unknown length, the noise ends with the first epoch that starts after the
    fraction. A resumed run ends it at the same step as an uninterrupted one.

    Args:
        fraction: between 0 (no noise) and 1 (noise throughout).

    Raises:
        ValueError: if `fraction` is not in [0, 1], or the model's optimizer is not a
            `NoisyOptimizer`.

    Example:
    ```python
    model.fit(x, y, epochs=20, callbacks=[keras_noisylb.NoiseTermination(fraction=0.25)])
    ```
    """

    def __init__(self, fraction: float = 0.25) -> None:
        super().__init__()
        if not 0 <= fraction <= 1:
            raise ValueError(
                f"`fraction` must be a part of training, from 0 to 1. Received: fraction={fraction}"
            )
        self.fraction = fraction

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._ended = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        noisy = find_noisy(self.model.optimizer)
        if noisy is None:
            raise ValueError(
                "NoiseTermination needs a model compiled with a NoisyOptimizer. "
                f"Received: {self.model.optimizer!r}"
            )
        epochs, steps = self.params["epochs"], self.params.get("steps")
        if steps is not None:
            # Anew in every epoch, from counts alone: a BatchChange changes the number of steps.
            batches = int(keras.ops.convert_to_numpy(noisy.inner_optimizer._iterations))
            end = batches - epoch * steps + updates_in(self.fraction, epochs * steps)
            noisy.noise_steps = max(math.ceil(end / noisy.accumulated), 0)
        elif epoch >= updates_in(self.fraction, epochs) and not self._ended:
            noisy.noise_steps = int(keras.ops.convert_to_numpy(noisy.iterations))
            self._ended = True
