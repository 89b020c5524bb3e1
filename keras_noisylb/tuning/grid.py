"""KerasTuner's grid search, mended so that an interrupted one goes on."""

import functools

import keras_tuner


class GridSearch(keras_tuner.GridSearch):
    """`keras_tuner.GridSearch` that can be interrupted and created again.

    KerasTuner 1.4 keeps the trials, but not the order in which its oracle walks through the grid,
    so that its own search ends in a `KeyError` where it should go on
    (https://github.com/keras-team/keras-tuner/issues/1055). Here the order is found again from
    the trials. For searches over anything, not only over a `NoisyHyperModel`. The arguments are
    those of `keras_tuner.GridSearch`.

    Example:
    ```python
    tuner = GridSearch(hypermodel, objective="val_accuracy", directory="results")
    tuner.search(x, y, epochs=10, validation_split=0.2)  # the same two lines once more go on
    ```
    """

    def reload(self) -> None:
        """Load what the search has found so far; the tuner calls it when it is created."""
        super().reload()
        oracle = self.oracle
        # No public name reaches this state: it is neither saved nor an argument.
        compare = functools.cmp_to_key(oracle._compare)
        started = [oracle.trials[name] for name in oracle.start_order]
        for trial in sorted(started, key=lambda trial: compare(trial.hyperparameters.values)):
            oracle._ordered_ids.insert(trial.trial_id)
        oracle._populate_next = [*oracle.start_order[:1], *oracle.end_order]
