"""Sums over the examples of a batch, slice by slice, so that no per-example tensor is whole."""

import tensorflow as tf

SLICE_BYTES = 64 * 2**20  # per-example tensors that are alive at once; larger was not faster


def slice_size(elements, dtype):
    """Number of examples whose per-example gradients of `elements` entries fill the budget."""
    return max(SLICE_BYTES // (elements * tf.as_dtype(dtype).size), 1)


def sum_over_slices(function, arrays, num_examples, most, like):
    """Σ over slices of the batch of `function(slices, keep)`.

    All slices have the same size, because XLA needs it. Where two overlap, `keep` is 0 for the
    examples that were counted before.

    Args:
        function: maps slices of `arrays` and `keep`, a boolean vector over the slice, to a list of
            tensors.
        arrays: list of tensors with `num_examples` examples first.
        num_examples: integer or scalar tensor.
        most: the most examples in one slice.
        like: list of `(shape, dtype)`, those of the tensors that `function` returns.

    Returns:
        The list of sums.
    """
    if isinstance(num_examples, int) and num_examples <= most:
        return function(arrays, tf.ones([num_examples], "bool"))
    num_slices = -(-num_examples // most)
    size = -(-num_examples // tf.maximum(num_slices, 1))

    def body(k, sums):
        start = tf.minimum(k * size, num_examples - size)
        slices = [
            tf.ensure_shape(
                tf.slice(
                    array,
                    [start] + [0] * (len(array.shape) - 1),
                    [size, *tf.unstack(tf.shape(array))[1:]],
                ),
                (None, *array.shape[1:]),
            )
            for array in arrays
        ]
        keep = start + tf.range(size) >= k * size
        new = function(slices, keep)
        return k + 1, [a + b for a, b in zip(sums, new, strict=True)]

    zeros = [tf.zeros(shape, dtype) for shape, dtype in like]
    # One slice after another: several at once would multiply the memory.
    _, sums = tf.while_loop(lambda k, sums: k < num_slices, body, (0, zeros), parallel_iterations=1)
    return sums
