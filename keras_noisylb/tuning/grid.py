"""KerasTuner's grid search with a fix for interrupted searches."""

import functools

import keras_tuner


class GridSearch(keras_tuner.GridSearch):
    """`keras_tuner.GridSearch` that can resume an interrupted search.

    KerasTuner 1.4 saves the trials, but not the order in which its oracle visits the grid. A
    resumed `keras_tuner.GridSearch` therefore fails with a `KeyError`
    (https://github.com/keras-team/keras-tuner/issues/1055). This class restores the order from the
    trials. It works for every hypermodel. The arguments are those of `keras_tuner.GridSearch`.

    Example:
    ```python
    tuner = GridSearch(hypermodel, objective="val_accuracy", directory="results")
    tuner.search(x, y, epochs=10, validation_split=0.2)  # the same two lines resume the search
    ```
    """

    def reload(self) -> None:
        """Load the finished trials; the tuner calls it on creation."""
        super().reload()
        oracle = self.oracle
        # This state has no public name: it is neither saved nor an argument.
        compare = functools.cmp_to_key(oracle._compare)
        started = [oracle.trials[name] for name in oracle.start_order]
        for trial in sorted(started, key=lambda trial: compare(trial.hyperparameters.values)):
            oracle._ordered_ids.insert(trial.trial_id)
        oracle._populate_next = [*oracle.start_order[:1], *oracle.end_order]
