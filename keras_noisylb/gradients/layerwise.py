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
from keras_noisylb.gradients.chunks import chunk_size, sum_over_chunks
from keras_noisylb.gradients.objective import (
    Recorded,
    add_extra,
    batch_gradients,
    batch_size,
    statistics_dtype,
)
from keras_noisylb.gradients.rules import RULES
from keras_noisylb.gradients.taps import intercept, record_use


class Tapped:
    """A batch that went through the model with every covered layer's inputs recorded.

    Args:
        objective: an `Objective`.
        layers: the layers to record, as found by `coverage`.
        x: inputs.
        y: targets.
        sample_weight: weights, or `None`.
        conv: "exact" or "uncorrelated".
    """

    def __init__(self, objective, layers, x, y, sample_weight, conv):
        self.objective, self.conv = objective, conv
        self.num_examples = batch_size(x)
        self.uses = []
        with intercept(layers, record_use(self.uses)):
            self.tape = tf.GradientTape(persistent=True)
            with self.tape:
                y_pred, loss, data_loss, extra_loss = objective.evaluate(x, y, sample_weight)
        self.y_pred, self.loss = y_pred, loss
        self.data_loss, self.extra_loss = data_loss, extra_loss

    def by_layer(self, more_sources=()):
        """Differentiate the data loss.

        Args:
            more_sources: further sources of the same backward pass.

        Returns:
            Tuple of the list of `(layer, [(use, d), ...])`, d being M times the gradient at the
            use's pre-activation, and the list of gradients of `more_sources`.
        """
        sources = [use.output for use in self.uses]
        found = self.tape.gradient(self.data_loss, [*sources, *more_sources])
        layers = {}
        for use, d in zip(self.uses, found, strict=False):
            if d is None:  # an output that the loss does not look at
                continue
            dtype = statistics_dtype(use.layer.trainable_variables[0])
            d = tf.cast(d, dtype) * tf.cast(self.num_examples, dtype)
            layers.setdefault(id(use.layer), (use.layer, []))[1].append((use, d))
        return list(layers.values()), found[len(sources) :]

    def block(self, layer, used, name):
        """The block of one variable of `layer`, all its uses added."""
        gradients = RULES.get(layer).gradients
        blocks = [gradients(layer, use, d, self.conv)[name] for use, d in used]
        return blocks[0] if len(blocks) == 1 else Shared(blocks)

    def sums(self, layer, used, name, variable, num_examples):
        """Σ g_i and Σ g_i² over `num_examples` examples, for one variable."""
        block = self.block(layer, used, name)
        if block.compact:
            return block.sums()
        dtype = statistics_dtype(variable)

        def chunk_sums(slices, keep):
            mask = tf.cast(keep, dtype)
            chunk = []
            for k, (use, d) in enumerate(used):
                inputs, d = slices[2 * k], slices[2 * k + 1]
                d = d * tf.reshape(mask, (-1, *[1] * (len(d.shape) - 1)))
                chunk.append((dataclasses.replace(use, inputs=inputs), d))
            return self.block(layer, chunk, name).sums()

        return sum_over_chunks(
            chunk_sums,
            [array for use, d in used for array in (use.inputs, d)],
            num_examples,
            chunk_size(variable.shape.num_elements(), dtype),
            [(variable.shape, dtype)] * 2,
        )


def first_examples(layers, count):
    """Keep the first `count` examples of what `Tapped.by_layer` returned."""
    return [
        (layer, [(dataclasses.replace(u, inputs=u.inputs[:count]), d[:count]) for u, d in used])
        for layer, used in layers
    ]


def squares(objective, layers, x, y, sample_weight, max_examples=None, conv="exact"):
    """Run a batch and prepare the mean over its examples of g_i², per coordinate.

    Args:
        objective: an `Objective`.
        layers: the layers to record, as found by `coverage`.
        x: inputs, M examples first.
        y: targets.
        sample_weight: weights, or `None`.
        max_examples: take the mean over the first so many examples only; `None` for all.
        conv: "exact", or "uncorrelated" for the paper's A.5.

    Returns:
        A `Recorded`.
    """
    tapped = Tapped(objective, layers, x, y, sample_weight, conv)
    variables = objective.variables

    def statistics():
        count = tapped.num_examples
        by_layer, gradients = tapped.by_layer(() if max_examples is None else variables)
        if max_examples is not None:
            count = tf.minimum(count, max_examples)
            by_layer = first_examples(by_layer, count)
        totals, square_totals = {}, {}
        for layer, used in by_layer:
            for name, variable in RULES.get(layer).covered(layer).items():
                sums = tapped.sums(layer, used, name, variable, count)
                totals[id(variable)], square_totals[id(variable)] = sums
        if max_examples is None:
            # The sum of the per-example gradients is the gradient: the ordinary op need not run.
            gradients = [_mean(totals.get(id(v)), count, v.dtype) for v in variables]
        gradients = add_extra(tapped.tape, objective, gradients, tapped.extra_loss)
        means = [_mean(square_totals.get(id(v)), count) for v in variables]
        return gradients, means

    return Recorded(
        tapped.y_pred,
        tapped.loss,
        lambda: batch_gradients(tapped.tape, objective, tapped.data_loss, tapped.extra_loss),
        statistics,
    )


def _mean(total, count, dtype=None):
    if total is None:
        return None
    mean = tf.math.divide_no_nan(total, tf.cast(count, total.dtype))
    return mean if dtype is None else tf.cast(mean, dtype)


def per_example_gradients(objective, layers, x, y, sample_weight):
    """The per-example gradients themselves, shape (M, *variable.shape) for each variable."""
    tapped = Tapped(objective, layers, x, y, sample_weight, conv="exact")
    found = {}
    for layer, used in tapped.by_layer()[0]:
        for name, variable in RULES.get(layer).covered(layer).items():
            found[id(variable)] = tapped.block(layer, used, name).per_example()
    return [
        found.get(id(v), keras.ops.zeros((tapped.num_examples, *v.shape), statistics_dtype(v)))
        for v in objective.variables
    ]
