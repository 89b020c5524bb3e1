"""Keras' `fit`, `evaluate` and `predict` under MultiWorkerMirroredStrategy.

Keras 3.15 fails there in two places, which docs/upstream/multi_worker.md reports.
"""

import functools
from typing import Any

import keras
import tensorflow as tf

from keras_noisylb.training.workers import lost_workers_named, several_workers
from keras_noisylb.types import Nested, Tensor


def averaged_by_keras(step):
    """Make a step's logs such that Keras can average them over the workers.

    Keras averages them along their first axis, which scalars do not have.

    Args:
        step: a method `(model, data) -> logs`.
    """

    @functools.wraps(step)
    def with_axis(model, data):
        logs = step(model, data)
        if not several_workers(model.distribute_strategy):
            return logs
        return keras.tree.map_structure(lambda value: tf.expand_dims(value, 0), logs)

    return with_axis


class MultiWorkerModel(keras.Model):
    """A model that also trains and evaluates under MultiWorkerMirroredStrategy."""

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras averages the first batch over devices to learn its shapes, which fails on what
        # the iterator gives for one device, and where devices have unequal numbers of examples.
        # The part of the first device has the shapes too.
        strategy = self.distribute_strategy
        several = strategy.num_replicas_in_sync > 1 or several_workers(strategy)
        if iterator is not None and several:
            _, _, batches = next(iter(iterator))
            data_batch = keras.tree.map_structure(
                lambda value: strategy.experimental_local_results(value)[0], next(batches)
            )
            iterator = None
        super()._maybe_symbolic_build(iterator, data_batch)

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        with lost_workers_named(self.distribute_strategy):
            return super().fit(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with lost_workers_named(self.distribute_strategy):
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        with lost_workers_named(self.distribute_strategy):
            return super().predict(*args, **kwargs)

    @averaged_by_keras
    def test_step(self, data: Nested) -> dict[str, Tensor]:
        return super().test_step(data)
