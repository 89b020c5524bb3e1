"""Per-example statistics from each layer's inputs and pre-activation gradients: the fast engine.

One backward pass gives the gradient at every layer's pre-activation. A rule for the layer turns it
into per-example gradients, which are squared and summed a slice at a time. The result is each
example's *contribution* to the batch gradient. With batch or ghost statistics it passes through
them, and the contributions still add up to the batch gradient (paper, A.3).
"""

import keras
import tensorflow as tf

from keras_noisylb.gradients.loss import statistics_dtype
from keras_noisylb.gradients.per_example import Squares
from keras_noisylb.gradients.statistics import Cost
from keras_noisylb.gradients.taps import intercept, record_use
from keras_noisylb.gradients.variable_gradients import variable_gradients


class Tapped:
    """A microbatch's forward pass, with a record of every covered layer's inputs.

    Args:
        objective: an `Objective`.
        layers: the layers to record, as found by `coverage`.
        batch: a `Batch`.
        draws: `Draws` for the labels.
        conv: "exact" or "uncorrelated".
    """

    def __init__(self, objective, layers, batch, draws, conv="exact"):
        self.conv = conv
        self.uses = []
        with intercept(layers, record_use(self.uses)):
            self.recorded = objective.record(batch, draws)

    def by_variable(self, loss, more_sources=(), count=None):
        """Differentiate a recorded loss.

        Args:
            loss: the loss.
            more_sources: further sources of the same backward pass.
            count: number of examples to keep, the first ones; `None` for all.

        Returns:
            Tuple of the list of `VariableGradients`, made of g_i / M, and the list of gradients of
            `more_sources`.
        """
        sources = [use.output for use in self.uses]
        found = self.recorded.tape.gradient(loss, [*sources, *more_sources])
        gradients, more = found[: len(sources)], found[len(sources) :]
        cut = None if count is None else slice(count)
        return variable_gradients(self.uses, gradients, self.conv, cut), more


class LayerwiseSquares(Squares):
    """The mean over examples of g_i², layer by layer.

    Args:
        layers: the layers to record, as found by `coverage`.
        max_examples: number of examples that are used, the first ones; `None` for all.
        conv: "exact", or "uncorrelated" for the paper's A.5.
        true_labels: whether the labels are drawn from the model.
    """

    def __init__(self, layers, max_examples=None, conv="exact", true_labels=False):
        super().__init__(max_examples, true_labels)
        self.layers, self.conv = layers, conv

    def measure(self, objective, batch, draws):
        tapped = Tapped(objective, self.layers, batch, draws, self.conv)
        recorded, variables = tapped.recorded, objective.variables
        # The sum of the per-example gradients is the gradient, so no other op need compute it.
        complete = self.max_examples is None and objective.labels is None
        count = batch.share_of(self.max_examples)
        kept = None if self.max_examples is None else count
        one_pass = objective.labels is None
        sources = variables if one_pass and not complete else ()
        by_variable, gradients = tapped.by_variable(recorded.fisher_loss, sources, kept)
        totals, squares = {}, {}
        for found in by_variable:
            total, square = found.sums(count)
            # The factor M is applied here, where it is cheap: an output's gradient is far larger.
            unit = tf.cast(batch.num_examples, square.dtype)
            totals[id(found.variable)] = tf.cast(total, found.variable.dtype)
            squares[id(found.variable)] = square * unit**2
        if complete:
            gradients = [totals.get(id(v)) for v in variables]
        elif not one_pass:
            gradients = recorded.data_gradients()
        return recorded, gradients, ([squares.get(id(v)) for v in variables], count)

    def cost_per_example(self, layer, size, positions):
        if self.conv == "uncorrelated" and hasattr(layer, "kernel_size"):
            return Cost(positions * size, "A.5 (uncorrelated positions)", False, size)
        return Cost(size if positions == 1 else 1.5 * size, "layer rule", True, size)


def per_example_gradients(objective, layers, batch):
    """The per-example gradients themselves, shape (M, *variable.shape) for each variable."""
    tapped = Tapped(objective, layers, batch, draws=None)
    found = {}
    for gradients in tapped.by_variable(tapped.recorded.fisher_loss)[0]:
        rows = gradients.block.per_example()
        found[id(gradients.variable)] = rows * tf.cast(batch.num_examples, rows.dtype)
    return [
        found.get(id(v), keras.ops.zeros((batch.num_examples, *v.shape), statistics_dtype(v)))
        for v in objective.variables
    ]
