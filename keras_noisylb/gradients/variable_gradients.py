"""The per-example gradients of single variables, as the layers' rules give them."""

import dataclasses

import tensorflow as tf

from keras_noisylb.gradients.blocks import added
from keras_noisylb.gradients.loss import statistics_dtype
from keras_noisylb.gradients.rules import RULES, covered_variables
from keras_noisylb.gradients.slices import slice_size, sum_over_slices


@dataclasses.dataclass(frozen=True)
class VariableGradients:
    """The per-example gradients of one variable in one batch.

    Args:
        variable: the variable.
        uses: list of `(use, name, d)`, one for each call of each layer that holds the variable:
            the `Use`, the layer's attribute that is the variable, and the gradient at the use's
            pre-activation.
        blocks: the gradients that each use gives, in one of the forms of `blocks.py`.
        cut: the slice of the examples in use; `None` for all.
    """

    variable: object
    uses: list
    blocks: list
    cut: slice | None = None

    @property
    def num_examples(self):
        """M, before any cut."""
        return self.uses[0][-1].shape[0]

    @property
    def block(self):
        """The gradients, all uses added."""
        block = added(self.blocks)
        return block if self.cut is None else block.rows(self.cut)

    def inputs(self):
        """For every use, the layer, its inputs and d."""
        for use, _, d in self.uses:
            whole = use.inputs, d
            yield use.layer, *(whole if self.cut is None else (array[self.cut] for array in whole))

    def sums(self, num_examples):
        """Σ g_i / M and Σ g_i² / M² over the `num_examples` examples in use."""
        block, dtype = self.block, statistics_dtype(self.variable)
        if block.compact:
            # The data may come without their shape, but the noise is drawn in that of the variable.
            return [tf.ensure_shape(total, self.variable.shape) for total in block.sums()]
        return sum_over_slices(
            lambda arrays, keep: block.of(arrays).sums(keep),
            list(block.arrays),
            num_examples,
            slice_size(self.variable.shape.num_elements(), dtype),
            [(self.variable.shape, dtype)] * 2,
        )

    def rows(self):
        """The gradients themselves, (M, number of entries)."""
        gradients = self.block.per_example()
        return tf.reshape(gradients, (gradients.shape[0], -1))

    def parts(self, size):
        """The same for at most `size` examples at a time, in a list."""
        starts = range(0, self.num_examples, size)
        return [dataclasses.replace(self, cut=slice(start, start + size)) for start in starts]


def variable_gradients(uses, gradients, conv="exact", cut=None):
    """The gradients of all variables that the layers' rules cover.

    Args:
        uses: every `Use` of every layer in a batch.
        gradients: for each use, the gradient at its pre-activation, or `None` if the loss does not
            depend on it.
        conv: "exact" or "uncorrelated".
        cut: the slice of the examples in use; `None` for all.

    Returns:
        List of `VariableGradients`.
    """
    found = {}
    for use, d in zip(uses, gradients, strict=True):
        if d is None:
            continue
        covered = covered_variables(use.layer)
        d = tf.cast(tf.convert_to_tensor(d), statistics_dtype(next(iter(covered.values()))))
        blocks = RULES.get(use.layer).gradients(use.layer, use, d, conv)
        for name, variable in covered.items():
            # By variable, not by layer: several layers may hold the same one.
            _, uses_of, blocks_of = found.setdefault(id(variable), (variable, [], []))
            uses_of.append((use, name, d))
            blocks_of.append(blocks[name])
    return [VariableGradients(*parts, cut) for parts in found.values()]
