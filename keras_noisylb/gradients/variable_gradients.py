"""The per-example gradients of single variables, as what the layers' rules make them of."""

import dataclasses

import tensorflow as tf

from keras_noisylb.gradients.blocks import Shared
from keras_noisylb.gradients.rules import RULES


@dataclasses.dataclass(frozen=True)
class VariableGradients:
    """The per-example gradients of one variable in one batch.

    Args:
        layer: the layer.
        name: the layer's attribute that holds the variable.
        used: the layer's uses, `[(use, d), ...]`, as from `layerwise.Tapped`.
        block: the gradients, all uses added, in one of the forms of `blocks.py`.
    """

    layer: object
    name: str
    used: list
    block: object

    @property
    def variable(self):
        """The variable."""
        return getattr(self.layer, self.name)

    @property
    def num_examples(self):
        """M."""
        return self.used[0][1].shape[0]

    def rows(self):
        """The gradients themselves, (M, number of entries)."""
        gradients = self.block.per_example()
        return tf.reshape(gradients, (gradients.shape[0], -1))

    def parts(self, size):
        """The same for at most `size` examples at a time, in a list."""
        if self.num_examples <= size:
            return [self]
        cuts = [slice(start, start + size) for start in range(0, self.num_examples, size)]
        used = [
            [(dataclasses.replace(use, inputs=use.inputs[cut]), d[cut]) for use, d in self.used]
            for cut in cuts
        ]
        return [
            dataclasses.replace(self, used=u, block=_block(self.layer, u, self.name)) for u in used
        ]


def variable_gradients(layer, used):
    """The gradients of all variables of a layer that its rule covers.

    Args:
        layer: the layer.
        used: its uses in a batch.

    Returns:
        List of `VariableGradients`.
    """
    rule = RULES.get(layer)
    blocks = [rule.gradients(layer, use, d, "exact") for use, d in used]
    return [
        VariableGradients(layer, name, used, _added([block[name] for block in blocks]))
        for name in rule.covered(layer)
    ]


def _block(layer, used, name):
    rule = RULES.get(layer)
    return _added([rule.gradients(layer, use, d, "exact")[name] for use, d in used])


def _added(blocks):
    return blocks[0] if len(blocks) == 1 else Shared(blocks)
