"""What an update computes of its batch beside the gradient, and the registry of such statistics."""

import dataclasses
from typing import Any

import keras

from keras_noisylb.gradients.batch import Batch
from keras_noisylb.gradients.loss import Objective, Recorded
from keras_noisylb.types import Nested, Scalar, Tensor


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a statistic costs at one layer: one row of `report`.

    Args:
        multiplications: number of multiplications per example of the batch, beyond those of the
            plain step.
        method: a few words that say how the statistic of this layer is computed.
        exact: whether the statistic is exactly what the noise is defined by.
        numbers: how many numbers of the statistic belong to this layer.
    """

    multiplications: float
    method: str
    exact: bool
    numbers: int


class Statistic:
    """Base class: what an update computes of its batch beside the gradient.

    A statistic is a sum over examples and a function of that sum, so that a batch can be computed
    one microbatch after another. A noise turns it into one sample. `STATISTICS` makes it for a
    noise, `NoisyModel` computes it, and `report` asks for its `cost` and its `notes`.

    Attributes:
        num_microbatches: the fewest microbatches that the batch is cut into, where its ghost
            batches allow that; 1 for a statistic that needs no cut.
        readable_memory: whether the graph of a step shows the memory that the statistic needs.
    """

    num_microbatches: int = 1
    readable_memory: bool = True

    @classmethod
    def for_noise(cls, noise: Any, model: keras.Model, x: Nested) -> "Statistic":
        """Make the statistic for a noise. By default the class takes no arguments.

        Args:
            noise: the noise, whose attributes are the options of the statistic.
            model: a built Keras model.
            x: its (nested) inputs, or their `tf.TensorSpec`s: only shapes and dtypes count.

        Returns:
            A `Statistic`.

        Raises:
            ValueError: if the statistic cannot be computed for the model.
        """
        return cls()

    @classmethod
    def stored_shapes(cls, noise: Any, model: keras.Model) -> Nested:
        """Shapes of the statistic, for a noise with `update_every` above 1.

        By default they are those of the trainable variables.

        Args:
            noise: the noise.
            model: a built Keras model.

        Returns:
            Tuples of integers in lists and tuples nested as the statistic is; `None` where the
            statistic is always `None`.
        """
        return [tuple(v.shape) for v in model.trainable_variables]

    def measure(
        self, objective: Objective, batch: Batch, draws: Any
    ) -> tuple[Recorded, list[Tensor | None], Nested]:
        """Run one microbatch forward and backward.

        Args:
            objective: what is differentiated; `objective.record(batch, draws)` runs the model.
            batch: the batch, and which of its rows are the microbatch.
            draws: source of random numbers; the same for every microbatch.

        Returns:
            Tuple `(recorded, gradients, sums)`: what `objective.record` returned, the microbatch's
            part of the gradient of the data loss, and nested tensors (or `None`), which are added
            up over the microbatches.
        """
        raise NotImplementedError

    def finish(self, sums: Nested, gradients: list[Tensor | None], num_examples: Scalar) -> Nested:
        """Compute the statistic from the sums.

        Args:
            sums: of all microbatches.
            gradients: the gradient of the batch, aligned with the trainable variables.
            num_examples: M.

        Returns:
            Nested tensors (or `None`): what the noise's `sample` receives.
        """
        raise NotImplementedError

    def arrange(self, sample: Nested) -> list[Tensor | None]:
        """Bring the noise's sample into a list aligned with the trainable variables."""
        return sample

    def cost(self, layer: keras.layers.Layer, size: int, positions: int, batch_size: int) -> Cost:
        """What the statistic costs at one layer, for `report`.

        Args:
            layer: the layer.
            size: number of entries of its trainable variables.
            positions: how often one example uses each of them. The plain step has
                3 · positions · size multiplications per example.
            batch_size: M.

        Returns:
            A `Cost`.
        """
        raise NotImplementedError

    def notes(self, model: keras.Model, batch_size: int) -> list[str]:
        """Sentences on the statistic that `report` prints below its table; none by default."""
        return []


class Statistics:
    """Statistics by the name that a noise's attribute `statistic` has."""

    def __init__(self) -> None:
        self._statistics: dict[str, type[Statistic]] = {}

    def register(self, name: str, statistic: type[Statistic]) -> None:
        """Use the class `statistic` for noises whose `statistic` is `name`."""
        self._statistics[name] = statistic

    def get(self, name: str) -> type[Statistic]:
        """The class that is registered under `name`; raises `ValueError` if there is none."""
        if name not in self._statistics:
            raise ValueError(
                f"A noise's `statistic` must be one of {', '.join(map(repr, self._statistics))}. "
                f"Received: statistic={name!r}. Register your own by "
                f"keras_noisylb.gradients.STATISTICS.register({name!r}, its class)."
            )
        return self._statistics[name]

    def make(self, noise: Any, model: keras.Model, x: Nested) -> Statistic:
        """The statistic of a noise for a model; see `Statistic.for_noise`."""
        return self.get(noise.statistic).for_noise(noise, model, x)

    def stored_shapes(self, noise: Any, model: keras.Model) -> Nested:
        """The shapes of a noise's statistic for a model; see `Statistic.stored_shapes`."""
        return self.get(noise.statistic).stored_shapes(noise, model)


STATISTICS = Statistics()


class PlainStep(Statistic):
    """No statistic: nothing but the gradient is computed."""

    def measure(self, objective, batch, draws):
        recorded = objective.record(batch, draws)
        return recorded, recorded.data_gradients(), ()

    def finish(self, sums, gradients, num_examples):
        return None


class Gradient(PlainStep):
    """The gradient itself, for noises that multiply it or only need its shape."""

    def finish(self, sums, gradients, num_examples):
        return gradients

    def cost(self, layer, size, positions, batch_size):
        return Cost(0, "its gradient", True, 0)


STATISTICS.register("gradient", Gradient)


def where_known(gradients, statistic):
    """`statistic`, aligned with `gradients`, without the variables that have no gradient."""
    return [None if g is None else s for g, s in zip(gradients, statistic, strict=True)]
