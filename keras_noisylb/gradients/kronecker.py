"""Kronecker factors of the Fisher, layer by layer (K-FAC; paper, A.6).

A layer z = Wᵀ a has F ≈ A ⊗ G with A = E[a aᵀ] and G = E[d dᵀ], where a has a 1 for the bias and d
is the gradient at z. Over T positions (a convolution, a Dense layer on sequences, several calls of
one layer) A is a sum and G is a mean (Grosse & Martens 2016, KFC).
"""

import collections
import dataclasses
import math

import keras
import tensorflow as tf

from keras_noisylb.gradients.blocks import positions, sizes
from keras_noisylb.gradients.convolutions import channels_last, shifted_inputs
from keras_noisylb.gradients.engines import layerwise_layers
from keras_noisylb.gradients.layerwise import Tapped
from keras_noisylb.gradients.loss import statistics_dtype
from keras_noisylb.gradients.per_example import PerExample, mean_squares
from keras_noisylb.gradients.rules import covered_variables
from keras_noisylb.gradients.slices import slice_size, sum_over_slices
from keras_noisylb.gradients.statistics import STATISTICS, Cost
from keras_noisylb.gradients.taps import all_layers

FACTORED = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D)


@dataclasses.dataclass(frozen=True)
class Place:
    """The places of a factored layer's kernel and bias among the trainable variables.

    Args:
        layer: the layer.
        kernel: index of its kernel.
        bias: index of its bias, or `None`.
        shape: of the kernel.
    """

    layer: keras.layers.Layer
    kernel: int
    bias: int | None
    shape: tuple

    @property
    def sides(self):
        """Sizes of A and G."""
        return math.prod(self.shape[:-1]) + (self.bias is not None), self.shape[-1]


def factored_places(model):
    """The layers of `model` that have Kronecker factors.

    A layer that shares a variable with another one has none: A and G are those of one layer.

    Returns:
        List of `Place`, in the order of the trainable variables.
    """
    index = {id(v): k for k, v in enumerate(model.trainable_variables)}
    holders = collections.Counter(
        id(v) for layer in all_layers(model) for v in covered_variables(layer).values()
    )
    found = []
    for layer in all_layers(model):
        if type(layer) not in FACTORED or getattr(layer, "groups", 1) > 1:
            continue
        own = covered_variables(layer)
        if "kernel" in own and all(holders[id(v)] == 1 for v in own.values()):
            kernel, bias = (index[id(own[n])] if n in own else None for n in ("kernel", "bias"))
            found.append(Place(layer, kernel, bias, tuple(layer.kernel.shape)))
    return sorted(found, key=lambda place: place.kernel)


class KroneckerFactors(PerExample):
    """Roots of A and G for every factored layer, and mean g_i² for all other variables.

    The statistic is the tuple `(squares, roots)`: a list aligned with the trainable variables,
    `None` where factored, and for each place a pair of lower triangular matrices.

    Args:
        layers: the layers to record, as found by `coverage`.
        places: from `factored_places`.
        damping: fraction of its mean eigenvalue that is added to the diagonal of each factor.
        max_examples: number of examples that are used, the first ones; `None` for all.
        true_labels: whether the labels are drawn from the model.
    """

    def __init__(self, layers, places, damping, max_examples=None, true_labels=False):
        super().__init__(max_examples, true_labels)
        self.layers, self.places, self.damping = layers, places, damping

    @classmethod
    def for_noise(cls, noise, model, x):
        layers = layerwise_layers(model, x, engine="layerwise")
        places = factored_places(model)
        return cls(layers, places, noise.damping, noise.max_examples, noise.fisher == "true")

    @classmethod
    def stored_shapes(cls, noise, model):
        places = factored_places(model)
        covered = {index for place in places for index in (place.kernel, place.bias)}
        shapes = super().stored_shapes(noise, model)
        squares = [None if k in covered else shape for k, shape in enumerate(shapes)]
        return squares, [tuple((side, side) for side in place.sides) for place in places]

    def measure(self, objective, batch, draws):
        tapped = Tapped(objective, self.layers, batch, draws)
        recorded, variables = tapped.recorded, objective.variables
        count = batch.share_of(self.max_examples)
        kept = None if self.max_examples is None else count
        sources = variables if objective.labels is None else ()
        by_variable, gradients = tapped.by_variable(recorded.fisher_loss, sources, kept)
        if objective.labels is not None:
            gradients = recorded.data_gradients()
        index = {id(v): k for k, v in enumerate(variables)}
        found = {index[id(each.variable)]: each for each in by_variable}
        factors = [
            _factors(place, found[place.kernel], count, batch.num_examples)
            if place.kernel in found
            else tuple(tf.zeros((side, side)) for side in place.sides)
            for place in self.places
        ]
        covered = {index for place in self.places for index in (place.kernel, place.bias)}
        squares = [None if k in covered else tf.zeros(v.shape) for k, v in enumerate(variables)]
        for k, each in found.items():
            if k not in covered:
                _, squared = each.sums(count)
                squares[k] = squared * tf.cast(batch.num_examples, squared.dtype) ** 2
        return recorded, gradients, (squares, factors, count)

    def finish(self, sums, gradients, num_examples):
        squares, factors, count = sums
        roots = [
            tuple(damped_root(tf.math.divide_no_nan(f, tf.cast(count, f.dtype)), self.damping)
                  for f in pair)
            for pair in factors
        ]  # fmt: skip
        return mean_squares((squares, count)), roots

    def arrange(self, sample):
        found, matrices = list(sample[0]), sample[1]
        for place, matrix in zip(self.places, matrices, strict=True):
            if place.bias is not None:
                found[place.bias] = matrix[-1]
                matrix = matrix[:-1]
            found[place.kernel] = tf.reshape(matrix, place.shape)
        return found

    def cost_per_example(self, layer, size, positions):
        place = next((place for place in self.places if place.layer is layer), None)
        if place is None:
            return Cost(1.5 * size, "layer rule (diagonal)", False, size)
        rows, columns = place.sides
        numbers = rows**2 + columns**2
        method = f"Kronecker factors {rows}×{rows}, {columns}×{columns}"
        return Cost(positions * numbers, method, False, numbers)


STATISTICS.register("factors", KroneckerFactors)


def _factors(place, kernel, count, unit):
    """Sums over examples of Σ_t a aᵀ and of the mean over t of d dᵀ, with `unit` times d."""
    inputs = list(kernel.inputs())
    dtype = statistics_dtype(place.layer.kernel)
    rows, columns = place.sides
    num_positions = sum(_num_positions(d, place.layer) for _, _, d in inputs)
    total_a, total_g = tf.zeros((rows, rows), dtype), tf.zeros((columns, columns), dtype)
    for layer, a, d in inputs:

        def slice_sums(slices, keep, layer=layer):
            a, d = slices
            a, d = _patches(layer, a, d)
            if place.bias is not None:
                a = tf.concat([a, tf.ones_like(a[..., :1])], axis=-1)
            mask = tf.cast(keep, dtype)[:, None, None]
            return [
                tf.tensordot(a * mask, a, axes=((0, 1), (0, 1))),
                tf.tensordot(d * mask, d, axes=((0, 1), (0, 1))),
            ]

        positions_here = _num_positions(d, layer)
        known = positions_here if isinstance(positions_here, int) else 1
        sums = sum_over_slices(
            slice_sums,
            [a, d],
            count,
            slice_size(rows * known, dtype),
            [((rows, rows), dtype), ((columns, columns), dtype)],
        )
        total_a, total_g = total_a + sums[0], total_g + sums[1]
    return total_a, total_g * tf.cast(unit, dtype) ** 2 / tf.cast(num_positions, dtype)


def _num_positions(d, layer):
    first = getattr(layer, "data_format", None) == "channels_first"
    return math.prod(sizes(d)[2:] if first else sizes(d)[1:-1])


def _patches(layer, a, d):
    """The kernel's inputs at each position, (M, T, rows), and the gradients there, (M, T, o)."""
    if isinstance(layer, keras.layers.Dense):
        return positions(tf.cast(a, d.dtype)), positions(d)
    a, d = channels_last(layer, a, d)
    return tf.concat(list(shifted_inputs(layer, a, d)), axis=-1), positions(d)


def damped_root(matrix, damping):
    """A lower triangular L with L Lᵀ = matrix + damping · (its mean eigenvalue) · I.

    Args:
        matrix: symmetric, positive semidefinite.
        damping: positive number.

    Returns:
        Tensor of the same shape, full of NaN where `matrix` is not finite.
    """
    side = matrix.shape[-1]
    mean = tf.linalg.trace(matrix) / side
    finite = tf.math.is_finite(tf.reduce_sum(matrix))
    eye = tf.eye(side, dtype=matrix.dtype)
    # The smallest term keeps the root of a zero matrix defined; it is far below rounding.
    damped = matrix + (damping * mean + 1e-30) * eye
    root = tf.linalg.cholesky(tf.where(finite, damped, eye))
    return tf.where(finite, root, tf.constant(float("nan"), matrix.dtype))
