"""Checks the arguments of a search and prepares those of each training."""

import copy
import itertools
import math
import os

import keras
import keras_tuner


def refuse(x, callbacks, fit_args):
    """Reject arguments that would silently change the search.

    Args:
        x: as in `NoisyHyperModel.fit`.
        callbacks: as in `NoisyHyperModel.fit`.
        fit_args: the other arguments of `NoisyHyperModel.fit`.

    Raises:
        FatalValueError: if there is such an argument. This type ends the search; KerasTuner treats
            other errors as a failed trial.
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
                "NoisyHyperModel sets loss, metrics and seeds, and its optimizer is SGD with "
                f"noise. Received by the tuner: {', '.join(names)}. Leave them out."
            )
    if "batch_size" in fit_args:
        raise keras_tuner.errors.FatalValueError(
            "The batch size is part of the search space. Received: "
            f"search(batch_size={fit_args['batch_size']}). Use "
            "NoisyHyperModel(large_batch_size=...)."
        )
    if fit_args.get("validation_data") is None and not fit_args.get("validation_split"):
        raise keras_tuner.errors.FatalValueError(
            "A trial needs held-out data for its score: pass validation_split, or validation_data "
            "taken from the training set, not from the test set."
        )
    if not callable(x) and not all(hasattr(a, "shape") for a in keras.tree.flatten(x)):
        raise keras_tuner.errors.FatalValueError(
            "`x` must be arrays, or a function from the batch size to the data, such as "
            f"lambda batch_size: data.batches(x, y, batch_size). Received: {type(x).__name__}"
        )


def data_of(x, y, batch_size, validation_split):
    """The data of one training.

    Args:
        x: arrays, or a function of the batch size.
        y: labels, if `x` is arrays.
        batch_size: number of examples in a batch.
        validation_split: fraction of the arrays that `fit` holds out.

    Returns:
        The arguments of `fit`, the number of training examples (`None` if unknown), and the number
        of updates per epoch.
    """
    if callable(x):
        data = x(batch_size)
        return {"x": data}, None, len(data)
    num_examples = math.floor(len(keras.tree.flatten(x)[0]) * (1.0 - validation_split))
    return {"x": x, "y": y, "batch_size": batch_size}, num_examples, -(-num_examples // batch_size)


def callbacks_of_seeds(callbacks, seeds):
    """One list of callbacks for each seed. User callbacks are copied, because they may have state.

    Args:
        callbacks: the user's callbacks, then those that KerasTuner appends.
        seeds: the seeds.

    Returns:
        Lists of callbacks. KerasTuner's own callbacks are shared by all of them.
    """

    def is_hparams(callback):  # writes the hyperparameters for TensorBoard, needed once
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
