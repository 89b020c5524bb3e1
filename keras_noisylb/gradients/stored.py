"""A statistic that serves several updates."""

import keras
from keras import ops


class StoredStatistic:
    """The last statistic of the batch that was measured, kept in variables.

    Args:
        shapes: its shapes, lists and tuples nested as the statistic is, `None` where it has
            nothing.
        update_every: number of updates for which it is used.
    """

    def __init__(self, shapes, update_every):
        self.shapes, self.update_every = shapes, update_every
        self.statistic = []
        # Each device keeps its own, read as their mean: nothing is communicated in a step.
        _map_shapes(
            lambda shape: self.statistic.append(
                keras.Variable(
                    ops.zeros(shape),
                    trainable=False,
                    synchronization="on_read",
                    aggregation="mean",
                    name=f"statistic_{len(self.statistic)}",
                )
            ),
            shapes,
        )
        same = {"trainable": False, "aggregation": "only_first_replica"}
        # As if the last one were just too old.
        self.measured_at = keras.Variable(-update_every, dtype="int32", name="measured_at", **same)
        self.measured_unit = keras.Variable(1.0, dtype="float32", name="measured_unit", **same)

    @property
    def variables(self):
        """All that has to be saved."""
        return [*self.statistic, self.measured_at, self.measured_unit]

    @property
    def value(self):
        """The statistic, nested as the noise wants it."""
        values = iter(ops.convert_to_tensor(v) for v in self.statistic)
        return _map_shapes(lambda shape: next(values), self.shapes)

    @property
    def unit(self):
        """The size that a gradient of 1 has in the statistic, where losses are scaled."""
        return ops.convert_to_tensor(self.measured_unit)

    def is_due(self, iterations):
        """Whether a new statistic is measured.

        Args:
            iterations: number of updates so far.

        Returns:
            Scalar boolean tensor.
        """
        age = ops.cast(iterations, "int32") - self.measured_at
        # At age 0 because every batch of an accumulated update measures its own.
        return ops.logical_or(ops.equal(age, 0), age >= self.update_every)

    def keep(self, statistic, measured, iterations, unit):
        """Remember what the coming updates use.

        Args:
            statistic: as `value` gives it.
            measured: scalar boolean tensor, whether it is that of this batch.
            iterations: number of updates so far.
            unit: the size that a gradient of 1 has in this batch.
        """
        values = [v for v in keras.tree.flatten(statistic) if v is not None]
        for variable, value in zip(self.statistic, values, strict=True):
            variable.assign(value)
        for variable, value in ((self.measured_at, iterations), (self.measured_unit, unit)):
            variable.assign(ops.where(measured, ops.cast(value, variable.dtype), variable))


def without_gaps(statistic, like):
    """`statistic` with zeros where it is `None` and the stored one, `like`, is not.

    A variable that the loss does not depend on has no gradient, but a place in the store.
    """

    def fill(value, stored):
        missing = value is None and stored is not None
        return ops.zeros_like(stored) if missing else value

    return keras.tree.map_structure(fill, statistic, like)


def _map_shapes(function, shapes):
    """Apply a function to every shape in nested lists and tuples of shapes and `None`s."""
    if shapes is None:
        return None
    if isinstance(shapes, tuple) and all(isinstance(size, int) for size in shapes):
        return function(shapes)
    return type(shapes)(_map_shapes(function, entry) for entry in shapes)
