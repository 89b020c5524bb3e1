"""Gram matrices g_i · g_j of one variable's per-example gradients, without storing all gradients.

A kernel's gradient is g_i = Σ_t a_it d_itᵀ, with inputs a (M, T, p) and output gradients d
(M, T, q) at T positions. K_ij = g_i · g_j is computed in the way with fewer multiplications:

- by positions, K_ij = Σ_{t,u} (a_it · a_ju) (d_it · d_ju), without per-example gradients:
  T² (p + q) multiplications per pair. With one position this is (A Aᵀ) ∘ (D Dᵀ).
- by columns, with a few columns of all examples' kernel gradients at a time: p q multiplications
  per pair and T p q per example.

All functions run eagerly and need known shapes.
"""

import math

import tensorflow as tf

from keras_noisylb.gradients.blocks import positions
from keras_noisylb.gradients.convolutions import channels_last, conv, shifted_inputs
from keras_noisylb.gradients.loss import statistics_dtype
from keras_noisylb.gradients.rules import RULES, dense, embedding
from keras_noisylb.gradients.slices import SLICE_BYTES, slice_size


def gram(left, right):
    """The scalar products of one variable's gradients between the examples of two batches.

    Args:
        left: a `VariableGradients`.
        right: the `VariableGradients` of the other batch, or `left` for products within one batch.

    Returns:
        Tensor (M, M') of g_i · g'_j.
    """
    kinds = {_kind(use.layer, name) for use, name, _ in (*left.uses, *right.uses)}
    if kinds == {(embedding, "embeddings")}:
        return _by_positions(left, right, _same_rows)
    if len(kinds) > 1 or not kinds <= _KERNELS.keys():
        return _by_examples(left, right)
    shape = left.variable.shape
    rows, columns = math.prod(shape[:-1]), shape[-1]
    num_positions = [_num_positions(side) for side in (left, right)]
    examples = min(left.num_examples, right.num_examples)
    pairwise = math.prod(num_positions) * (rows + columns)
    if pairwise <= rows * columns * (1 + sum(num_positions) / examples):
        return _by_positions(left, right, _same_features)
    return _by_columns(left, right)


def _kind(layer, name):
    """The role of a variable: the rule of its layer and its name in that layer."""
    return "grouped" if getattr(layer, "groups", 1) > 1 else (RULES.get(layer).gradients, name)


def _num_positions(side):
    return sum(math.prod(d.shape[1:-1]) for _, _, d in side.uses)


def _dense_inputs(layer, a, d):
    return [positions(tf.cast(a, d.dtype))], positions(d)


def _conv_inputs(layer, a, d):
    a, d = channels_last(layer, a, d)
    return shifted_inputs(layer, a, d), positions(d)


# Keyed by rule, not by layer, so that a custom rule registered for a layer is respected.
_KERNELS = {(dense, "kernel"): _dense_inputs, (conv, "kernel"): _conv_inputs}


def _inputs(side):
    """Pieces of a (M, T, p) along its last axis, one at a time, and d (M, T, q), for all uses."""
    use, name, _ = side.uses[0]
    inputs = _KERNELS[_kind(use.layer, name)]
    found = [inputs(*arrays) for arrays in side.inputs()]
    pieces = zip(*(pieces for pieces, _ in found), strict=True)
    return (tf.concat(piece, axis=1) for piece in pieces), tf.concat([d for _, d in found], axis=1)


def _flat(tensor):
    return tf.reshape(tensor, (-1, tensor.shape[-1]))


def _same_features(left, right):
    """a_it · a_ju as a matrix over the positions of all examples, and d of both sides."""
    (pieces, d_left), (others, d_right) = _inputs(left), _inputs(right)
    pairs = zip(pieces, others, strict=True)
    similar = sum(tf.matmul(_flat(a), _flat(b), transpose_b=True) for a, b in pairs)
    return similar, d_left, d_right


def _same_rows(left, right):
    """`_same_features` for an embedding, whose input a is a row of the identity."""
    sides = []
    for side in (left, right):
        found = [
            (tf.reshape(tf.cast(ids, "int32"), (d.shape[0], -1)), positions(d))
            for _, ids, d in side.inputs()
        ]
        sides += [tf.concat(parts, 1) for parts in zip(*found, strict=True)]
    ids, d_left, others, d_right = sides
    similar = tf.reshape(ids, (-1, 1)) == tf.reshape(others, (1, -1))
    return tf.cast(similar, d_left.dtype), d_left, d_right


def _by_positions(left, right, similarity):
    num_positions = max(_num_positions(left), _num_positions(right))
    dtype = tf.as_dtype(statistics_dtype(left.variable))
    size = max(math.isqrt(SLICE_BYTES // dtype.size) // num_positions, 1)
    return _in_blocks(left, right, size, lambda a, b: _position_sums(*similarity(a, b)))


def _position_sums(similar, d_left, d_right):
    product = similar * tf.matmul(_flat(d_left), _flat(d_right), transpose_b=True)
    shape = (*d_left.shape[:2], *d_right.shape[:2])
    return tf.reduce_sum(tf.reshape(product, shape), axis=(1, 3))


def _by_columns(left, right):
    pieces, d_left = _inputs(left)
    others, d_right = (None, None) if right is left else _inputs(right)
    total, examples = 0.0, max(left.num_examples, right.num_examples)
    for piece in pieces:
        other = None if others is None else next(others)
        size = slice_size(examples * piece.shape[-1], piece.dtype)
        for start in range(0, d_left.shape[-1], size):
            a = _outer(piece, d_left[..., start : start + size])
            b = a if other is None else _outer(other, d_right[..., start : start + size])
            total += tf.matmul(a, b, transpose_b=True)
    return total


def _outer(a, d):
    product = tf.matmul(a, d, transpose_a=True)
    return tf.reshape(product, (product.shape[0], -1))


def _by_examples(left, right):
    """For all other layers: the gradients of a few examples at a time."""

    def products(a, b):
        rows = a.rows()
        return tf.matmul(rows, rows if b is a else b.rows(), transpose_b=True)

    size = slice_size(left.variable.shape.num_elements(), statistics_dtype(left.variable))
    return _in_blocks(left, right, size, products)


def _in_blocks(left, right, size, products):
    """A matrix over pairs of examples, in blocks of at most `size` by `size` pairs."""
    columns = right.parts(size)
    rows = columns if right is left else left.parts(size)
    return tf.concat([tf.concat([products(a, b) for b in columns], 1) for a in rows], 0)
