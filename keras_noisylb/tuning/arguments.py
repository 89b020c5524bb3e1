"""The arguments of a search: refused, or made into those of each training."""

import copy
import itertools
import math
import os

import keras
import keras_tuner


def refuse(x, callbacks, fit_args):
    """End a search that would silently be another one than it says.

    Args:
        x: as `NoisyHyperModel.fit` takes it.
        callbacks: the same.
        fit_args: its other arguments.

    Raises:
        FatalValueError: the one that KerasTuner does not take for a failed trial.
    """
    tuner = next((c.tuner for c in callbacks if hasattr(c, "tuner")), None)
    if tuner is not None:
        refused = {
            "optimizer": tuner.optimizer,
            "loss": tuner.loss,
            "metrics": tuner.metrics,
            "executions_per_trial": tuner.executions_per_trial > 1,
        }
        if names := [name for name, value in refused.items() if value]:
            raise keras_tuner.errors.FatalValueError(
                "NoisyHyperModel has `loss`, `metrics` and `seeds` of its own, and its optimizer "
                f"is SGD with noise. Received by the tuner: {', '.join(names)}. Leave them out."
            )
    if "batch_size" in fit_args:
        raise keras_tuner.errors.FatalValueError(
            "The batch size is part of the space: NoisyHyperModel(large_batch_size=...). Received: "
            f"search(batch_size={fit_args['batch_size']})"
        )
    if fit_args.get("validation_data") is None and not fit_args.get("validation_split"):
        raise keras_tuner.errors.FatalValueError(
            "A trial is scored on data that it was not trained on: pass validation_data, taken "
            "from the training set and not from the test set, or validation_split."
        )
    if not callable(x) and not all(hasattr(a, "shape") for a in keras.tree.flatten(x)):
        raise keras_tuner.errors.FatalValueError(
            "`x` must be arrays, or a function that makes the data for a batch size, such as "
            f"lambda batch_size: data.batches(x, y, batch_size). Received: {type(x).__name__}"
        )


def data_of(x, y, batch_size, validation_split):
    """The data of one training.

    Args:
        x: arrays, or a function of the batch size.
        y: labels, for arrays.
        batch_size: examples in a batch.
        validation_split: part of the arrays that `fit` holds out.

    Returns:
        The arguments of `fit`, the number of training examples (`None` if unknown), and that of
        updates in an epoch.
    """
    if callable(x):
        data = x(batch_size)
        return {"x": data}, None, len(data)
    num_examples = math.floor(len(keras.tree.flatten(x)[0]) * (1.0 - validation_split))
    return {"x": x, "y": y, "batch_size": batch_size}, num_examples, -(-num_examples // batch_size)


def callbacks_of_seeds(callbacks, seeds):
    """One list of callbacks for each seed, with copies of the user's: they may have a state.

    Args:
        callbacks: the user's, then those that KerasTuner appends.
        seeds: the seeds.

    Returns:
        Lists; KerasTuner's own callbacks are in all of them.
    """

    def is_hparams(callback):  # notes the hyperparameters for TensorBoard, once
        return type(callback).__module__.startswith("tensorboard")

    own = list(itertools.takewhile(lambda c: not (hasattr(c, "tuner") or is_hparams(c)), callbacks))
    tuners = callbacks[len(own) :]
    lists = [[*own, *tuners]]
    for seed in seeds[1:]:
        copies = copy.deepcopy(own)
        for callback in copies:
            if isinstance(callback, keras.callbacks.TensorBoard):
                callback.log_dir = os.path.join(callback.log_dir, f"seed_{seed}")
        lists.append([*copies, *(c for c in tuners if not is_hparams(c))])
    return lists
