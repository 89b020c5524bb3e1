"""The hypermodel that KerasTuner builds and trains in every trial."""

import gc
from collections.abc import Callable, Sequence
from typing import Any

import keras
import keras_tuner

from keras_noisylb.optimizer import NoisyOptimizer
from keras_noisylb.training.model import NoisyModel
from keras_noisylb.tuning.arguments import callbacks_of_seeds, data_of, refuse
from keras_noisylb.tuning.space import (
    NONE,
    Part,
    check,
    check_finite,
    choose,
    learning_rate_of,
    noise_of,
)
from keras_noisylb.types import Loss


class NoisyHyperModel(keras_tuner.HyperModel):
    """Search space of training with noise, for any model and every KerasTuner tuner.

    A trial trains `NoisyModel(builder(hp))` with SGD, `WarmupStepDecay` and the noise of the trial;
    without noise it trains the model itself. Warm-up, decays and the end of the noise scale with
    the trial's number of epochs.

    Each dimension of the space, from `noise` on, is a fixed value, a list or tuple of choices, or a
    function of `hp` such as `lambda hp: hp.Float("momentum", 0.5, 0.99)`. An argument of a noise is
    a dimension only in trials with a noise that has this argument. `builder` can read the values:
    `hp.get("large_batch_size")`.

    Every trial trains once per seed. A seed determines initial weights, order of the data and
    noise. The trial's score is the mean over seeds; `results` returns the single scores and their
    standard deviation.

    Args:
        builder: function `hp -> keras.Model`, not compiled (or a `NoisyModel`, to set its
            `num_microbatches`).
        loss: the loss, as in `compile`.
        metrics: the metrics, as in `compile`.
        seeds: distinct non-negative integers.
        noise: "none", "full-split" (recommended), "diagonal", "trace", "full", "kronecker",
            "isotropic" or "multiplicative". A function of `hp` must register it under the name
            "noise". Custom noises, or noises with other arguments, are a dictionary from names to
            functions `hp -> Noise`; it may contain `"none": None`. Of the noise dimensions below,
            only `noise_fraction` applies to them.
        estimator: "per_example", "weighted" or "split"; for "diagonal" and "trace".
        small_batch_size: M_S, for the Fisher noises.
        multiplier: λ, for the Fisher noises.
        sigma: σ, for "isotropic" and "multiplicative".
        noise_fraction: fraction of training after which the noise ends.
        large_batch_size: M_L, the batch size of `fit`.
        learning_rate: learning rate after warm-up.
        warmup_fraction: fraction of training in which the learning rate rises linearly.
        decay_factor: factor of the learning rate at 1/2 and again at 3/4 of training.
        momentum: momentum of SGD.
        global_clipnorm: norm to which SGD clips the whole gradient, with its noise; 0 for no
            clipping.

    Raises:
        ValueError: if `seeds` is empty or has duplicates.

    Example:
    ```python
    hypermodel = NoisyHyperModel(
        lambda hp: keras_noisylb.models.LeNet(ghost_batch_size=32),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        seeds=(0, 1, 2),
        large_batch_size=1024,
        learning_rate=lambda hp: hp.Float("learning_rate", 0.05, 0.5, sampling="log"),
    )
    tuner = keras_tuner.RandomSearch(hypermodel, objective="val_accuracy", max_trials=20)
    tuner.search(x, y, epochs=10, validation_split=0.2)
    ```
    """

    def __init__(
        self,
        builder: Callable[[keras_tuner.HyperParameters], keras.Model],
        loss: Loss,
        *,
        metrics: Sequence[Any] = ("accuracy",),
        seeds: Sequence[int] = (0,),
        noise: Part = ("full-split", "diagonal", "trace", "none"),
        estimator: Part = ("split", "per_example"),
        small_batch_size: Part = (32, 64, 128),
        multiplier: Part = (1.0, 0.3),
        sigma: Part = (0.1, 0.01),
        noise_fraction: Part = (0.5, 0.25, 1.0),
        large_batch_size: Part = (256, 512, 1024),
        learning_rate: Part = lambda hp: hp.Float("learning_rate", 0.01, 1.0, sampling="log"),
        warmup_fraction: Part = (0.05, 0.0, 0.2),
        decay_factor: Part = 0.1,
        momentum: Part = (0.9, 0.0),
        global_clipnorm: Part = 0.0,
    ) -> None:
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"`seeds` must be one or more distinct integers. Received: {seeds}")
        super().__init__()
        self.builder = builder
        self.loss = loss
        self.metrics = metrics
        self.seeds = tuple(seeds)
        self.space = {
            "noise": noise,
            "estimator": estimator,
            "small_batch_size": small_batch_size,
            "multiplier": multiplier,
            "sigma": sigma,
            "noise_fraction": noise_fraction,
            "large_batch_size": large_batch_size,
            "learning_rate": learning_rate,
            "warmup_fraction": warmup_fraction,
            "decay_factor": decay_factor,
            "momentum": momentum,
            "global_clipnorm": global_clipnorm,
        }

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """A compiled model with the initial weights of the first seed; `fit` adds the schedule.

        Args:
            hp: the hyperparameters of a trial.
        """
        chosen = choose(self.space, hp)
        model = self._model(hp, chosen, self.seeds[0])
        self._compile(model, chosen, chosen["learning_rate"], self.seeds[0])
        return model

    def fit(
        self,
        hp: keras_tuner.HyperParameters,
        model: keras.Model,
        x: Any,
        y: Any = None,
        *,
        epochs: int = 1,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        initial_epoch: int = 0,
        **kwargs: Any,
    ) -> list[keras.callbacks.History]:
        """Train once per seed; `Tuner.search` calls it with its own arguments.

        Every training starts at epoch 0. Hyperband resumes longer trials from the checkpoint of a
        shorter one; here a new model is trained instead. A schedule over 9 epochs cannot continue a
        schedule over 3 epochs, which has already decayed the rate and ended the noise.

        Args:
            hp: the hyperparameters of the trial.
            model: from `build`. It is trained with the first seed if `initial_epoch` is 0.
            x: training inputs as arrays, or a function of the batch size that returns data of known
                length, such as `lambda batch_size: data.batches(x, y, batch_size)`.
            y: labels, if `x` is arrays.
            epochs: length of the training. Warm-up, decays and the end of the noise scale with it.
            callbacks: the user's callbacks, copied for each seed, and KerasTuner's.
            initial_epoch: the starting epoch that Hyperband passes.
            **kwargs: other arguments of `fit`: `validation_data` from the training set, or
                `validation_split`.

        Returns:
            One `History` per seed. It has each metric twice: under its own name, which KerasTuner
            averages over seeds, and with `_seed_N` appended, which KerasTuner stores in the trial.

        Raises:
            FatalValueError: for arguments that would change the search; it ends the search.
            FatalRuntimeError: for an `OSError` such as that of a full disk; it ends the search,
                which repeats the trial when it is continued.
            FailedTrialError: if the trial's values do not fit together, or if a training diverges.
                The score of a diverged training, even at an earlier epoch, would be meaningless.
        """
        refuse(x, callbacks, kwargs)
        chosen = choose(self.space, hp)
        lists = callbacks_of_seeds(callbacks, self.seeds)
        histories = []
        # The given model is trained last: until then it holds neither momentum nor a traced step.
        for number in reversed(range(len(self.seeds))):
            data, num_examples, steps = data_of(
                x, y, chosen["large_batch_size"], kwargs.get("validation_split") or 0.0
            )
            check(chosen, num_examples)
            history = self._train(
                hp,
                chosen,
                self.seeds[number],
                model if number == 0 and not initial_epoch else None,
                strategy=model.distribute_strategy,
                updates=epochs * steps,
                epochs=epochs,
                callbacks=lists.pop(),  # removed from the list: callbacks keep their model alive
                **data,
                **kwargs,
            )
            histories.append(history)
        return histories

    def _train(self, hp, chosen, seed, model, strategy, updates, callbacks, **fit_args):
        if model is None:
            keras.utils.clear_session()
            gc.collect()
            with strategy.scope():
                model = self._model(hp, chosen, seed)
        with strategy.scope():
            self._compile(model, chosen, learning_rate_of(chosen, updates), seed)
        keras.utils.set_random_seed(seed)
        try:
            history = model.fit(callbacks=callbacks, **fit_args)
        except OSError as error:  # KerasTuner's checkpoint, say: no property of the trial's values
            raise keras_tuner.errors.FatalRuntimeError(f"the search ends: {error}") from error
        history.set_model(None)  # otherwise the models of all seeds live until the trial ends
        check_finite(history.history["loss"], seed)
        history.history |= {f"{name}_seed_{seed}": v for name, v in history.history.items()}
        return history

    def _model(self, hp, chosen, seed):
        keras.utils.set_random_seed(seed)
        model = self.builder(hp)
        as_it_is = isinstance(model, NoisyModel) or chosen["noise"] == NONE
        return model if as_it_is else NoisyModel(model)

    def _compile(self, model, chosen, learning_rate, seed):
        optimizer = keras.optimizers.SGD(
            learning_rate,
            momentum=chosen["momentum"],
            global_clipnorm=chosen["global_clipnorm"] or None,
        )
        noise = noise_of(chosen)
        if noise is not None:
            optimizer = NoisyOptimizer(
                optimizer, noise, noise_fraction=chosen["noise_fraction"], seed=seed
            )
        # A metric has state, so each model needs its own copy.
        metrics = [
            type(m).from_config(m.get_config()) if isinstance(m, keras.Metric) else m
            for m in self.metrics
        ]
        model.compile(optimizer, loss=self.loss, metrics=metrics)
