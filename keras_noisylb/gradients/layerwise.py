"""Per-example statistics from each layer's inputs and pre-activation gradients: the fast engine.

One backward pass gives the gradient at every layer's pre-activation; a rule for the layer turns it
into per-example gradients, which are summed and squared a chunk at a time. What is computed is each
example's *contribution* to the batch gradient: with batch or ghost statistics it runs through them,
and the contributions still add up to the batch gradient (paper, A.3).
"""

import dataclasses

import keras
import tensorflow as tf

from keras_noisylb.gradients.blocks import Shared
from keras_noisylb.gradients.chunks import chunk_size, mean_squares, sum_over_chunks
from keras_noisylb.gradients.objective import statistics_dtype
from keras_noisylb.gradients.rules import RULES
from keras_noisylb.gradients.statistic import Statistic
from keras_noisylb.gradients.taps import intercept, record_use


class Tapped:
    """A chunk that went through the model with every covered layer's inputs recorded.

    Args:
        objective: an `Objective`.
        layers: the layers to record, as found by `coverage`.
        batch: a `Batch`.
        draws: `Draws` for the labels.
        conv: "exact" or "uncorrelated".
    """

    def __init__(self, objective, layers, batch, draws, conv="exact"):
        self.conv = conv
        self.batch = batch
        self.uses = []
        with intercept(layers, record_use(self.uses)):
            self.recorded = objective.record(batch, draws)

    def by_layer(self, loss, more_sources=(), count=None):
        """Differentiate a loss.

        Args:
            loss: the recorded loss.
            more_sources: further sources of the same backward pass.
            count: keep the first so many examples only; `None` for all.

        Returns:
            Tuple of the list of `(layer, [(use, d), ...])`, d being the gradient at the use's
            pre-activation, which makes of the rules' blocks g_i / M, and the list of gradients of
            `more_sources`.
        """
        sources = [use.output for use in self.uses]
        found = self.recorded.tape.gradient(loss, [*sources, *more_sources])
        layers = {}
        for use, d in zip(self.uses, found, strict=False):
            if d is None:  # an output that the loss does not look at
                continue
            d = tf.convert_to_tensor(d)
            if count is not None:
                use, d = dataclasses.replace(use, inputs=use.inputs[:count]), d[:count]
            dtype = statistics_dtype(use.layer.trainable_variables[0])
            d = tf.cast(d, dtype)
            layers.setdefault(id(use.layer), (use.layer, []))[1].append((use, d))
        return list(layers.values()), found[len(sources) :]

    def block(self, layer, used, name):
        """The block of one variable of `layer`, all its uses added."""
        gradients = RULES.get(layer).gradients
        blocks = [gradients(layer, use, d, self.conv)[name] for use, d in used]
        return blocks[0] if len(blocks) == 1 else Shared(blocks)

    def sums(self, layer, used, name, variable, num_examples):
        """Σ g_i / M and Σ g_i² / M² over `num_examples` examples, for one variable."""
        block = self.block(layer, used, name)
        if block.compact:
            return block.sums()
        dtype = statistics_dtype(variable)

        def chunk_sums(slices, keep):
            chunk = [
                (dataclasses.replace(use, inputs=slices[2 * k]), slices[2 * k + 1])
                for k, (use, _) in enumerate(used)
            ]
            return self.block(layer, chunk, name).sums(keep)

        return sum_over_chunks(
            chunk_sums,
            [array for use, d in used for array in (use.inputs, d)],
            num_examples,
            chunk_size(variable.shape.num_elements(), dtype),
            [(variable.shape, dtype)] * 2,
        )


class LayerwiseSquares(Statistic):
    """The mean over examples of g_i², layer by layer.

    Args:
        layers: the layers to record, as found by `coverage`.
        max_examples: take the mean over the first so many examples only; `None` for all.
        conv: "exact", or "uncorrelated" for the paper's A.5.
    """

    def __init__(self, layers, max_examples=None, conv="exact"):
        self.layers, self.max_examples, self.conv = layers, max_examples, conv

    def measure(self, objective, batch, draws):
        tapped = Tapped(objective, self.layers, batch, draws, self.conv)
        recorded, variables = tapped.recorded, objective.variables
        # The sum of the per-example gradients is the gradient: the ordinary op need not run.
        complete = self.max_examples is None and objective.labels is None
        count = batch.share_of(self.max_examples)
        kept = None if self.max_examples is None else count
        one_pass = objective.labels is None
        sources = variables if one_pass and not complete else ()
        by_layer, gradients = tapped.by_layer(recorded.fisher_loss, sources, kept)
        totals, squares = {}, {}
        for layer, used in by_layer:
            for name, variable in RULES.get(layer).covered(layer).items():
                total, square = tapped.sums(layer, used, name, variable, count)
                # M is multiplied here, where it is cheap: an output's gradient is far larger.
                unit = tf.cast(batch.num_examples, square.dtype)
                totals[id(variable)] = tf.cast(total, variable.dtype)
                squares[id(variable)] = square * unit**2
        if complete:
            gradients = [totals.get(id(v)) for v in variables]
        elif not one_pass:
            gradients = recorded.data_gradients()
        return recorded, gradients, ([squares.get(id(v)) for v in variables], count)

    def finish(self, sums, gradients, num_examples):
        return mean_squares(sums)


def per_example_gradients(objective, layers, batch):
    """The per-example gradients themselves, shape (M, *variable.shape) for each variable."""
    tapped = Tapped(objective, layers, batch, draws=None)
    found = {}
    for layer, used in tapped.by_layer(tapped.recorded.fisher_loss)[0]:
        for name, variable in RULES.get(layer).covered(layer).items():
            block = tapped.block(layer, used, name).per_example()
            found[id(variable)] = block * tf.cast(batch.num_examples, block.dtype)
    return [
        found.get(id(v), keras.ops.zeros((batch.num_examples, *v.shape), statistics_dtype(v)))
        for v in objective.variables
    ]
