"""Training with a batch size that grows at one epoch."""

import dataclasses
from numbers import Integral
from typing import Any

import keras

from keras_noisylb.types import Nested


@dataclasses.dataclass(frozen=True)
class BatchChange:
    """Trains with a small batch for the first epochs and with a large batch for the rest.

    Wen et al. 2020 (A.8) compare their noise with this regime, with small batches for 50 epochs.
    Smith et al. 2017 proposed to increase the batch size instead of decaying the learning rate. The
    optimizer keeps its state and step count. The callbacks see one training: one beginning, the
    epochs in order, one end.

    Args:
        small_batch_size: batch size before `change_epoch`.
        large_batch_size: batch size from `change_epoch` on.
        change_epoch: number of the first epoch with the large batch, counted from 0.

    Raises:
        ValueError: if the batch sizes are no positive integers, if the small one is not less than
            the large one, or if `change_epoch` is no non-negative integer.

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
                f"one, and `change_epoch` must be an integer. Received: {self}"
            )
        if self.change_epoch < 0:
            raise ValueError(
                "`change_epoch` counts epochs from 0, so it must not be negative. Received: "
                f"change_epoch={self.change_epoch}"
            )

    def updates(self, num_examples: int, epoch: int) -> int:
        """Number of updates before an epoch starts, for schedules that count updates.

        An incomplete last batch counts as an update.

        Args:
            num_examples: number of training examples, without those of a validation split.
            epoch: number of the epoch, counted from 0.

        Returns:
            An integer.
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
        """Train `model` as `model.fit` does, but with two batch sizes.

        Args:
            model: a compiled Keras model.
            x: arrays or tensors, or a function `batch_size -> data` that returns a
                `tf.data.Dataset` or `keras.utils.PyDataset` of that batch size. The function is
                called once for each batch size.
            y: targets; `None` if `x` is a function.
            epochs: number of epochs of the whole training.
            initial_epoch: number of the first epoch, counted from 0, to resume a training.
            verbose: as in `keras.Model.fit`.
            callbacks: as in `keras.Model.fit`. `params["epochs"]` counts the whole training;
                `params["steps"]` is that of the current batch size.
            **fit_arguments: other arguments of `keras.Model.fit`, used for both batch sizes.

        Returns:
            A `keras.callbacks.History` of the whole training.

        Raises:
            ValueError: if `batch_size` is given, if `change_epoch` is larger than `epochs`, or if
                the data has a fixed batch size.
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
                "`change_epoch` must not be larger than `epochs`. Received: "
                f"change_epoch={self.change_epoch}, epochs={epochs}"
            )
        if "batch_size" in fit_arguments:
            raise ValueError(
                "BatchChange defines the batch sizes, so `batch_size` must not be given. "
                f"Received: batch_size={fit_arguments['batch_size']} with {self}"
            )
        if callable(x):
            if y is not None:
                raise ValueError(
                    "If `x` is a function, the data that it returns holds the targets, and `y` "
                    f"must be None. Received: y of type {type(y).__name__}"
                )
        elif not all(hasattr(leaf, "shape") for leaf in keras.tree.flatten(x)):
            raise ValueError(
                "`x` must be arrays or tensors, or a function from a batch size to data, such as "
                "lambda batch_size: dataset.batch(batch_size). Received: x of type "
                f"{type(x).__name__}"
            )


class _OneTraining(keras.callbacks.CallbackList):
    """Shows several calls of `fit` to the callbacks as one training."""

    def __init__(self, callbacks, epochs, verbose):
        callbacks = keras.tree.flatten(callbacks or [])
        self.whole = {"epochs": epochs, "verbose": verbose}
        self.begun = False
        super().__init__(callbacks, add_history=True, add_progbar=verbose != 0)
        self.history = next(c for c in self.callbacks if isinstance(c, keras.callbacks.History))

    def set_params(self, params):
        self.part_epochs = params.get("epochs")
        if params:
            # In place, because the callbacks that `model.fit` adds share this dictionary.
            params.update(self.whole)
        super().set_params(params)

    def on_train_begin(self, logs=None):
        if not self.begun:
            self.begun = True
            super().on_train_begin(logs)
        self._keep_weights()

    def on_epoch_begin(self, epoch, logs=None):
        self.model.history = self.history  # every `fit` sets a new history
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
        """Prepare the next call of `fit`."""
        # At the end of `fit`, `use_ema` replaces the weights by their averages.
        self.model.set_weights(self.weights)
        # BackupAndRestore stores the epoch to resume from here, and every later `fit` starts there.
        if (self.model._initial_epoch or 0) < self.part_epochs:
            self.model._initial_epoch = None

    def end(self):
        """Tell the callbacks that the training has ended."""
        self.model.history = self.history
        super().on_train_end(self.last_logs)
