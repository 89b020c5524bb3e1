"""The memory that a step needs, estimated from its graph."""

import math

import keras
import tensorflow as tf

from keras_noisylb.gradients.batch import Batch
from keras_noisylb.gradients.loss import Objective
from keras_noisylb.gradients.microbatches import cut, ghost_sizes
from keras_noisylb.gradients.slices import SLICE_BYTES
from keras_noisylb.training.randomness import Draws

# Measured: a process takes 1.4 to 2.7 times what its operations need in turn. Operations run in
# parallel, convolutions on a CPU need work spaces and copies, and the heap has holes.
ALLOWANCE = 3
SAME_MEMORY = {"Identity", "IdentityN", "Reshape", "ExpandDims", "Squeeze", "StopGradient"}


def fit(model, noise, statistic, specs, batch_size, memory):
    """Find the fewest microbatches that fit into memory.

    Args:
        model: a built Keras model.
        noise: the noise.
        statistic: the `Statistic` that is computed beside the gradient.
        specs: nested `tf.TensorSpec`s of the inputs.
        batch_size: examples of one batch on one device.
        memory: GiB that a step may take.

    Returns:
        Tuple of the number of microbatches, or `None` if no number is enough, the GiB of such a
        step, and a sentence that says both.

    Raises:
        ValueError: if the memory of the statistic cannot be read off the graph.
    """
    if not statistic.readable_memory:
        raise ValueError(
            "the memory of this noise's statistic cannot be read off the graph of a step (that of "
            "the vectorized_map engine cannot). Leave `memory` out, or use a noise with "
            'estimator="split" or "weighted".'
        )
    true_labels = noise.fisher == "true"
    parameters = sum(math.prod(v.shape) for v in model.trainable_variables)
    ghosts = ghost_sizes(model)

    def bytes_of(rows):
        # Beside a microbatch, the sums of those before it are kept: a gradient and a statistic.
        sums = 8 * parameters if rows < batch_size else 0
        return sums + microbatch_bytes(model, statistic, specs, rows, true_labels)

    number, found = fewest_microbatches(bytes_of, memory * 2**30, batch_size, ghosts)
    taken = found / 2**30
    if number is None:
        smallest = cut(batch_size, batch_size, ghosts).largest
        note = (
            f"No num_microbatches keeps a step within {memory:g} GiB: a microbatch of {smallest} "
            f"examples, the smallest, takes {taken:.2f} GiB."
        )
    else:
        note = f"num_microbatches={number} keeps a step within {memory:g} GiB: {taken:.2f} GiB."
    return number, taken, note


def fewest_microbatches(bytes_of, limit, batch_size, ghosts):
    """The smallest number of microbatches, a power of two, that keeps a step within a limit.

    Args:
        bytes_of: function from the number of examples of a microbatch to the bytes it needs.
        limit: bytes.
        batch_size: examples of the batch.
        ghosts: the layers' ghost batch sizes.

    Returns:
        Tuple `(number, bytes)`; where no number is enough, `None` and the bytes of the smallest
        microbatch.
    """
    most = cut(batch_size, batch_size, ghosts).number
    numbers = [2**k for k in range(most.bit_length())]
    low, high, found = 0, len(numbers), {}
    while low < high:
        middle = (low + high) // 2
        found[middle] = bytes_of(cut(batch_size, numbers[middle], ghosts).largest)
        low, high = (low, middle) if found[middle] <= limit else (middle + 1, high)
    if low == len(numbers):
        return None, found[low - 1]
    return numbers[low], found[low]


def microbatch_bytes(model, statistic, specs, num_rows, true_labels=False):
    """`ALLOWANCE` times the most bytes alive at once where a microbatch's operations run in turn.

    Args:
        model: a built Keras model.
        statistic: the `Statistic` that is computed beside the gradient.
        specs: nested `tf.TensorSpec`s of the inputs.
        num_rows: examples in the microbatch.
        true_labels: whether the Fisher's labels are drawn from the model.

    Returns:
        Number of bytes.
    """

    def total_loss(x, y, y_pred, sample_weight):
        return tf.add_n([tf.reduce_mean(tf.square(p)) for p in keras.tree.flatten(y_pred)])

    objective = Objective(
        model, total_loss, labels=(lambda y, y_pred, draws: y) if true_labels else None
    )

    def compute(x):
        batch = Batch(x, tf.zeros((num_rows, 1)), single=False)
        recorded, gradients, sums = statistic.measure(objective, batch, Draws(tf.zeros(2, "int32")))
        return recorded.with_extra(gradients), sums

    specs = keras.tree.map_structure(
        lambda spec: tf.TensorSpec((num_rows, *spec.shape[1:]), spec.dtype), specs
    )
    graph = tf.function(compute, autograph=False).get_concrete_function(specs).graph
    return ALLOWANCE * _peak(graph)


def _peak(graph):
    """The most bytes alive at once when the operations run in the order of their creation."""
    operations = graph.get_operations()
    owner, last = {}, {}
    for time, operation in enumerate(operations):
        for tensor in operation.outputs:
            shared = operation.type in SAME_MEMORY and operation.inputs
            owner[tensor.ref()] = owner[operation.inputs[0].ref()] if shared else tensor.ref()
            last[owner[tensor.ref()]] = time
        for tensor in operation.inputs:
            last[owner[tensor.ref()]] = time
    for tensor in graph.outputs:
        last[owner[tensor.ref()]] = len(operations)
    freed = {}
    for reference, time in last.items():
        freed.setdefault(time, []).append(_bytes(reference.deref()))
    alive = most = 0
    for time, operation in enumerate(operations):
        alive += sum(_bytes(t) for t in operation.outputs if owner[t.ref()] == t.ref())
        inside = 3 * SLICE_BYTES if "While" in operation.type else 0
        most = max(most, alive + inside)
        alive -= sum(freed.get(time, ()))
    return most


def _bytes(tensor):
    elements = tensor.shape.num_elements() if tensor.shape.rank is not None else None
    return (elements or 0) * max(tensor.dtype.size, 1)
