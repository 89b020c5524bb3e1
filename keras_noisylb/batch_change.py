"""The regime of a batch size that grows during training."""

import dataclasses
from numbers import Integral
from typing import Any

import keras

from keras_noisylb.types import Nested


@dataclasses.dataclass(frozen=True)
class BatchChange:
    """Trains with a small batch for the first epochs and with a large one for the rest.

    The paper compares its noise with this regime, small batches for the first 50 epochs (Wen et
    al. 2020, A.8; after Smith et al. 2017, who raise the batch size where others lower the learning
    rate). It is one training to the optimizer, whose state and step count go on, and to the
    callbacks, which see one beginning, epochs in order, and one end.

    Args:
        small_batch_size: batch size before `change_epoch`.
        large_batch_size: batch size from `change_epoch` on.
        change_epoch: number of the first epoch, counted from 0, with the large batch.

    Raises:
        ValueError: for batch sizes that are not positive integers or do not grow, or a
            `change_epoch` that is not a non-negative integer.

    Example:
    ```python
    regime = BatchChange(128, 4096, change_epoch=50)
    rate = WarmupStepDecay(0.1, decay_steps=[regime.updates(len(x), e) for e in (100, 150)])
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), loss="mse")
    history = regime.fit(model, x, y, epochs=200)
    ```
    """

    small_batch_size: int
    large_batch_size: int
    change_epoch: int

    def __post_init__(self):
        values = dataclasses.astuple(self)
        integers = all(isinstance(value, Integral) for value in values)
        if not integers or not 0 < self.small_batch_size < self.large_batch_size:
            raise ValueError(
                "The batch sizes must be positive integers, the small one less than the large "
                f"one, and `change_epoch` an integer. Received: {self}"
            )
        if self.change_epoch < 0:
            raise ValueError(
                "`change_epoch` counts epochs from 0, so it must not be negative. Received: "
                f"change_epoch={self.change_epoch}"
            )

    def updates(self, num_examples: int, epoch: int) -> int:
        """Number of steps of the optimizer before an epoch begins, for schedules in steps.

        Args:
            num_examples: number of training examples, those of a validation split left out. An
                incomplete last batch counts.
            epoch: number of epochs done.

        Returns:
            Integer.
        """
        small_epochs = min(epoch, self.change_epoch)
        small_steps = -(-num_examples // self.small_batch_size)
        large_steps = -(-num_examples // self.large_batch_size)
        return small_epochs * small_steps + (epoch - small_epochs) * large_steps

    def fit(
        self,
        model: keras.Model,
        x: Any,
        y: Nested = None,
        *,
        epochs: int,
        initial_epoch: int = 0,
        verbose: str | int = "auto",
        callbacks: list[keras.callbacks.Callback] | None = None,
        **fit_arguments: Any,
    ) -> keras.callbacks.History:
        """Train `model`, as `model.fit` does but for the batch size.

        Args:
            model: a compiled Keras model.
            x: arrays or tensors, or a function `batch_size -> data` that makes a `tf.data.Dataset`
                or `keras.utils.PyDataset` of that batch size, called when the batch size changes.
            y: targets; `None` where `x` is a function.
            epochs: number of the epoch at which training ends, both parts together.
            initial_epoch: epoch at which to start, in either part.
            verbose: as in `keras.Model.fit`.
            callbacks: as in `keras.Model.fit`. `params["epochs"]` is that of the whole training,
                `params["steps"]` that of each part.
            **fit_arguments: further arguments of `keras.Model.fit`, the same in both parts.

        Returns:
            A `keras.callbacks.History` of the whole training.

        Raises:
            ValueError: for a `batch_size`, a `change_epoch` beyond `epochs`, or data whose batch
                size is fixed already.
        """
        self._check(x, y, epochs, fit_arguments)
        training = _OneTraining(callbacks, epochs, verbose)
        parts = [
            (self.small_batch_size, initial_epoch, self.change_epoch),
            (self.large_batch_size, max(initial_epoch, self.change_epoch), epochs),
        ]
        parts = [part for part in parts if part[1] < part[2]] or parts[1:]
        for batch_size, start, end in parts:
            if callable(x):
                data = {"x": x(batch_size)}
            else:
                data = {"x": x, "y": y, "batch_size": batch_size}
            model.fit(
                **data,
                epochs=end,
                initial_epoch=start,
                verbose=0,
                callbacks=[training],
                **fit_arguments,
            )
            if model.stop_training or end == epochs:
                break
            training.go_on()
        training.end()
        return model.history

    def _check(self, x, y, epochs, fit_arguments):
        if self.change_epoch > epochs:
            raise ValueError(
                "`change_epoch` must not lie beyond the last epoch. Received: "
                f"change_epoch={self.change_epoch}, epochs={epochs}"
            )
        if "batch_size" in fit_arguments:
            raise ValueError(
                "The batch sizes are those of the BatchChange, so `batch_size` must not be given. "
                f"Received: batch_size={fit_arguments['batch_size']} with {self}"
            )
        if callable(x):
            if y is not None:
                raise ValueError(
                    "Where `x` is a function, the data that it returns holds the targets and `y` "
                    f"must be None. Received: y of type {type(y).__name__}"
                )
        elif not all(hasattr(leaf, "shape") for leaf in keras.tree.flatten(x)):
            raise ValueError(
                "`x` must be arrays or tensors, or a function that makes data of a batch size, "
                "such as lambda batch_size: dataset.batch(batch_size). Received: x of type "
                f"{type(x).__name__}"
            )


class _OneTraining(keras.callbacks.CallbackList):
    """Hands the callbacks several calls of `fit` as one training."""

    def __init__(self, callbacks, epochs, verbose):
        callbacks = keras.tree.flatten(callbacks or [])
        self.whole = {"epochs": epochs, "verbose": verbose}
        self.begun = False
        super().__init__(callbacks, add_history=True, add_progbar=verbose != 0)
        self.history = next(c for c in self.callbacks if isinstance(c, keras.callbacks.History))

    def set_params(self, params):
        self.part_epochs = params.get("epochs")
        if params:
            # In place: Keras hands the same dictionary to the callbacks that `model.fit` adds.
            params.update(self.whole)
        super().set_params(params)

    def on_train_begin(self, logs=None):
        if not self.begun:
            self.begun = True
            super().on_train_begin(logs)
        self._keep_weights()

    def on_epoch_begin(self, epoch, logs=None):
        self.model.history = self.history  # each `fit` puts a history of its own there
        super().on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if epoch + 1 == self.part_epochs:
            self._keep_weights()

    def on_train_end(self, logs=None):
        self.last_logs = logs

    def _keep_weights(self):
        if self.part_epochs < self.whole["epochs"]:
            self.weights = self.model.get_weights()

    def go_on(self):
        """Undo what ends a training: `use_ema` puts averages in place of the weights."""
        self.model.set_weights(self.weights)
        # BackupAndRestore leaves here the epoch to resume from, which every later `fit` obeys.
        if (self.model._initial_epoch or 0) < self.part_epochs:
            self.model._initial_epoch = None

    def end(self):
        """What the end of the last part is to the callbacks."""
        self.model.history = self.history
        super().on_train_end(self.last_logs)
