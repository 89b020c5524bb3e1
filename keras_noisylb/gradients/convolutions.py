"""Rules for convolutions: g_i = Σ_t a_it d_itᵀ over output positions t, for each kernel position.

`conv="exact"` squares that sum; `conv="uncorrelated"` is the formula printed in the paper's A.5,
E[Σ_t (a_it²)(d_it²)ᵀ], which drops the products between different positions.
"""

import functools
import itertools
import math

import keras
import tensorflow as tf

from keras_noisylb.gradients.blocks import Pieces, Uncorrelated, positions, sizes


def conv(layer, use, d, conv):
    """Conv1D and Conv2D: any stride, padding, dilation and number of groups."""
    return _one_kernel(layer, keras.ops.conv, _kernel_pieces, use, d, conv)


def depthwise_conv(layer, use, d, conv):
    """DepthwiseConv2D."""
    return _one_kernel(layer, keras.ops.depthwise_conv, _depthwise_pieces, use, d, conv)


def _one_kernel(layer, operation, pieces, use, d, conv):
    kernel = tf.cast(layer.kernel, d.dtype)
    if conv == "uncorrelated":
        a, last = channels_last(layer, use.inputs, d)
        block = _uncorrelated(layer, operation, kernel, a, last)
    else:
        block = _exact(layer, kernel, functools.partial(pieces, layer, kernel), use, d)
    return {"kernel": block, "bias": _bias(layer, d)}


def separable_conv(layer, use, d, conv):
    """SeparableConv2D: the tensor between its two convolutions is computed again."""
    depthwise = tf.cast(layer.depthwise_kernel, d.dtype)
    pointwise = tf.cast(layer.pointwise_kernel, d.dtype)

    def between(a):
        return _convolve(layer, keras.ops.depthwise_conv, a, depthwise)

    def d_between(d):
        return tf.einsum("m...o,co->m...c", d, pointwise[0, 0])

    if conv == "uncorrelated":
        a, last = channels_last(layer, use.inputs, d)
        first = _uncorrelated(layer, keras.ops.depthwise_conv, depthwise, a, d_between(last))
        second = Uncorrelated(_pointwise_gradient, between(a), last)
    else:
        first = _exact(
            layer,
            depthwise,
            lambda a, d: _depthwise_pieces(layer, depthwise, a, d_between(d)),
            use,
            d,
        )
        second = _exact(
            layer,
            pointwise,
            lambda a, d: [tf.matmul(positions(between(a)), positions(d), transpose_a=True)],
            use,
            d,
        )
    return {"depthwise_kernel": first, "pointwise_kernel": second, "bias": _bias(layer, d)}


def _exact(layer, kernel, pieces, use, d):
    """The block of a kernel whose `pieces(a, d)` are made of arrays with the channels last."""

    def make_pieces(a, d):
        return pieces(*channels_last(layer, a, d))

    return Pieces(make_pieces, use.inputs, d, join=_join(kernel))


def _bias(layer, d):
    rank = len(d.shape)
    first = layer.data_format == "channels_first"
    axes = list(range(2, rank) if first else range(1, rank - 1))
    return Pieces(lambda d: [tf.reduce_sum(d, axis=axes)], d, compact=True)


def channels_last(layer, a, d):
    """Inputs and gradients of a layer with the channels as last axis, in the gradients' dtype."""
    a = tf.cast(a, d.dtype)
    if layer.data_format == "channels_first":
        return tf.einsum("mc...->m...c", a), tf.einsum("mc...->m...c", d)
    return a, d


def _causal_padding(layer):
    return (layer.kernel_size[0] - 1) * layer.dilation_rate[0], 0


def shifted_inputs(layer, a, d):
    """For every kernel position, its inputs (M, T, c) at the T output positions.

    One matrix product per kernel position was the fastest way on CPU, and needs no copy of all
    patches.
    """
    outputs = sizes(d)[1:-1]
    paddings = _paddings(layer, sizes(a)[1:-1], outputs)
    a = tf.pad(a, [(0, 0), *paddings, (0, 0)])
    for shift in _shifts(layer):
        window = [
            slice(start, start + (size - 1) * stride + 1, stride)
            for start, size, stride in zip(shift, outputs, layer.strides, strict=True)
        ]
        yield positions(a[(slice(None), *window)])


def _paddings(layer, inputs, outputs):
    """Zeros before and after the inputs, for each axis."""
    if layer.padding == "valid":
        return [(0, 0)] * len(inputs)
    if layer.padding == "causal":
        return [_causal_padding(layer)]
    paddings = []
    for axis, (size, out) in enumerate(zip(inputs, outputs, strict=True)):
        span = (layer.kernel_size[axis] - 1) * layer.dilation_rate[axis]
        needed = (out - 1) * layer.strides[axis] + span + 1 - size
        needed = max(needed, 0) if isinstance(needed, int) else tf.maximum(needed, 0)
        paddings.append((needed // 2, needed - needed // 2))
    return paddings


def _shifts(layer):
    """Distances of every kernel position from the first one."""
    axes = zip(layer.kernel_size, layer.dilation_rate, strict=True)
    return itertools.product(*(range(0, size * rate, rate) for size, rate in axes))


def _products(layer, a, d):
    """Σ_t a_it d_itᵀ (M, c, o) for every kernel position."""
    lattice = _lattice(layer, a, d)
    if lattice is None:
        gradient = positions(d)
        return [tf.matmul(s, gradient, transpose_a=True) for s in shifted_inputs(layer, a, d)]
    # Inputs and gradients on one lattice, with the zeros of the padding between its rows. A shift
    # is then the same distance everywhere, and a window of all inputs needs no copy.
    shape, before = lattice
    length, (examples, *outputs, filters) = math.prod(shape), sizes(d)
    margins = [size - known for size, known in zip(shape, sizes(a)[1:-1], strict=True)]
    a = tf.pad(a, [(0, 1), *((margin, 0) for margin in margins), (0, 0)])
    leading = [margin - b for margin, b in zip(margins, before, strict=True)]
    trailing = [s - o - b for s, o, b in zip(shape, outputs, leading, strict=True)]
    d = tf.pad(d, [(0, 0), *zip(leading, trailing, strict=True), (0, 0)])
    d = tf.reshape(d, (examples, length, filters))
    a = tf.reshape(a, (-1, a.shape[-1]))
    products = []
    for shift in _shifts(layer):
        start = 0
        for distance, size in zip(shift, shape, strict=True):
            start = start * size + distance
        window = tf.reshape(a[start : start + examples * length], (-1, length, a.shape[-1]))
        products.append(tf.matmul(window, d, transpose_a=True))
    return products


def _lattice(layer, a, d):
    """The shape of the lattice of `_products` and its leading zeros, or `None` if it is slower.

    The zeros may add a fifth to the positions, and a window must begin at an aligned address.
    """
    inputs, outputs = a.shape[1:-1], d.shape[1:-1]
    if None in (*inputs, *outputs) or set(layer.strides) != {1} or a.shape[-1] % 16:
        return None
    paddings = _paddings(layer, inputs, outputs)
    shape = [size + max(pair) for size, pair in zip(inputs, paddings, strict=True)]
    if math.prod(shape) > 1.2 * math.prod(outputs):
        return None
    return shape, [before for before, _ in paddings]


def _kernel_pieces(layer, kernel, a, d):
    """Pieces (M, c / groups, o) of an ordinary or grouped convolution's kernel gradient."""
    channels, filters = kernel.shape[-2:]
    groups = a.shape[-1] // channels
    if groups == 1:
        return _products(layer, a, d)
    gradient = positions(d)
    pieces = []
    for shifted in shifted_inputs(layer, a, d):
        shape = (*sizes(shifted)[:2], groups)
        piece = tf.einsum(
            "mtgc,mtgo->mcgo",
            tf.reshape(shifted, (*shape, channels)),
            tf.reshape(gradient, (*shape, filters // groups)),
        )
        pieces.append(tf.reshape(piece, (-1, channels, filters)))
    return pieces


def _depthwise_pieces(layer, kernel, a, d):
    """Pieces (M, c, depth_multiplier) of a depthwise convolution's kernel gradient."""
    gradient = positions(d)
    gradient = tf.reshape(gradient, (*sizes(gradient)[:2], *kernel.shape[-2:]))
    return [tf.einsum("mtc,mtcr->mcr", s, gradient) for s in shifted_inputs(layer, a, d)]


def _join(kernel):
    """Stack one piece (..., p, q) per kernel position into (..., *kernel_size, p, q)."""

    def join(pieces):
        stacked = tf.stack(pieces, axis=-3)
        return tf.reshape(stacked, (*sizes(stacked)[:-3], *kernel.shape))

    return join


def _convolve(layer, operation, a, kernel):
    padding = layer.padding
    if padding == "causal":
        a, padding = tf.pad(a, [(0, 0), _causal_padding(layer), (0, 0)]), "valid"
    return operation(
        a,
        kernel,
        strides=tuple(layer.strides),
        padding=padding,
        data_format="channels_last",
        dilation_rate=tuple(layer.dilation_rate),
    )


def _uncorrelated(layer, operation, kernel, a, d):
    def contract(a, d):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            z = _convolve(layer, operation, a, kernel)
        return tape.gradient(z, kernel, output_gradients=d)

    return Uncorrelated(contract, a, d)


def _pointwise_gradient(a, d):
    total = tf.tensordot(positions(a), positions(d), axes=((0, 1), (0, 1)))
    return total[None, None]
