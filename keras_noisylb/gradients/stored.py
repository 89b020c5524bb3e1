"""A statistic that several updates use."""

import keras
from keras import ops


class StoredStatistic:
    """The last statistic that was measured, in variables.

    Args:
        shapes: as from `Statistic.stored_shapes`.
        update_every: number of updates that use it.
    """

    def __init__(self, shapes, update_every):
        self.shapes, self.update_every = shapes, update_every
        self.statistic = []
        # Each device has its own; a read gives their mean. A step communicates nothing.
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
        # The first update measures a new one.
        self.measured_at = keras.Variable(-update_every, dtype="int32", name="measured_at", **same)
        self.measured_unit = keras.Variable(1.0, dtype="float32", name="measured_unit", **same)

    @property
    def variables(self):
        """The variables that must be saved."""
        return [*self.statistic, self.measured_at, self.measured_unit]

    @property
    def value(self):
        """The statistic, nested as the noise needs it."""
        values = iter(ops.convert_to_tensor(v) for v in self.statistic)
        return _map_shapes(lambda shape: next(values), self.shapes)

    @property
    def unit(self):
        """Factor that scaled the gradients when the statistic was measured."""
        return ops.convert_to_tensor(self.measured_unit)

    def is_due(self, iterations):
        """Whether a new statistic is due after `iterations` updates; a scalar boolean tensor."""
        age = ops.cast(iterations, "int32") - self.measured_at
        # Also at age 0: every batch of an accumulated update measures its own.
        return ops.logical_or(ops.equal(age, 0), age >= self.update_every)

    def keep(self, statistic, measured, iterations, unit):
        """Store a statistic for the next updates.

        Args:
            statistic: nested as `value` is.
            measured: scalar boolean tensor, whether it was measured in this batch.
            iterations: number of updates so far.
            unit: factor that scales this batch's gradients.
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
