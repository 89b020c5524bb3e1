"""One update's gradient and statistic, computed one microbatch after another.

A microbatch gives sums over its examples, its rows of the outputs, and new values of state
variables (moving statistics, seeds). No variable is assigned here: the step may be in a branch or a
loop of the graph, where a distribution strategy allows no assignment.
"""

import dataclasses
import weakref

import keras
import tensorflow as tf

from keras_noisylb.gradients.loss import call_model, with_masks
from keras_noisylb.gradients.masks import Masks
from keras_noisylb.gradients.microbatches import at_most, cut, ghost_layers, ghost_sizes
from keras_noisylb.layers.ghosts import part_of_batch

_checked: weakref.WeakKeyDictionary[keras.Model, tuple] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class Computed:
    """The results of one batch.

    Args:
        gradients: list aligned with the trainable variables; `None` where there is none.
        statistic: the value of the statistic.
        y_pred: outputs for the whole batch.
        extra_loss: the model's own losses, as they are reported; `None` if there are none.
        state: list of `(variable, new value)`.
    """

    gradients: list
    statistic: object
    y_pred: object
    extra_loss: object
    state: list


def compute(objective, batch, statistic, draws, num_microbatches=1):
    """Compute the gradient and a statistic of a whole batch.

    Args:
        objective: an `Objective`.
        batch: a `Batch`, whole.
        statistic: a `Statistic`.
        draws: `Draws`.
        num_microbatches: number of microbatches, computed one after the other.

    Returns:
        A `Computed`.
    """

    def run(batch):
        # The same numbers, whether a loop's body is traced once or run for every microbatch.
        own = draws and draws.restarted()
        recorded, gradients, sums = statistic.measure(objective, batch, own)
        gradients = recorded.with_extra(gradients)
        return (gradients, sums, recorded.extra_loss), recorded.y_pred, recorded.state

    num_examples = batch.num_examples
    microbatches = cut(num_examples, num_microbatches, ghost_sizes(objective.model))
    if num_microbatches == 1 or (isinstance(microbatches.number, int) and microbatches.number == 1):
        sums, y_pred, state = run(batch)
    else:
        if not isinstance(num_examples, int):
            _check_ghosts(objective.model, batch.x)
        batch = dataclasses.replace(batch, masks=Masks(objective.model, batch, microbatches))
        sums, y_pred, state = _in_sequence(run, batch, microbatches)
    gradients, sums, extra_loss = sums
    found = statistic.finish(sums, gradients, num_examples)
    return Computed(gradients, found, y_pred, extra_loss, state)


def _in_sequence(run, batch, microbatches):
    def run_part(part):
        # Around the backward pass too: layers that are rematerialised run again in it.
        with part_of_batch(part.num_examples, part.first_row, part.num_rows):
            return run(part)

    def microbatch(index, start, count, **options):
        return batch.microbatch(
            start, count, index=index, contrast=microbatches.contrast(index), **options
        )

    first = microbatch(0, 0, microbatches.start(1), single=microbatches.single)
    sums, y_pred, state = run_part(first)
    variables = [v for v, _ in state]
    packed = (sums, first.placed(y_pred), [value for _, value in state])
    pack, unpack = packing(packed)

    def body(index, packed):
        sums, outputs, values = unpack(packed)
        start, end = microbatches.start(index), microbatches.start(index + 1)

        def with_rows(count):
            state = tuple(zip(variables, values, strict=True))
            part = microbatch(index, start, count, state=state)
            new_sums, y_pred, state = run_part(part)
            added = keras.tree.map_structure(
                lambda a, b: None if a is None else a + b, sums, new_sums
            )
            return pack((added, part.placed(y_pred, outputs), [value for _, value in state]))

        size = microbatches.size
        if microbatches.even:
            return index + 1, with_rows(size)
        # XLA must know the number of rows. No microbatch has more of them than the batch.
        longer = at_most(size + 1, batch.num_examples)
        return index + 1, tf.cond(
            end - start > size, lambda: with_rows(longer), lambda: with_rows(size)
        )

    # One after another: the memory is that of one microbatch. Without the dependency the loop would
    # start beside the first microbatch.
    with tf.control_dependencies(pack(packed)):
        second = tf.identity(1)
    _, packed = tf.while_loop(
        lambda index, _: index < microbatches.number,
        body,
        (second, pack(packed)),
        parallel_iterations=1,
    )
    sums, y_pred, values = unpack(packed)
    return (
        sums,
        with_masks(y_pred, batch.masks.of_batch(y_pred)),
        list(zip(variables, values, strict=True)),
    )


def _check_ghosts(model, x):
    """Raise `ValueError` if a layer in training makes ghosts of other rows than the examples.

    The layers check it themselves, in a trace with a known number of rows.
    """
    layers = tuple(id(layer) for layer in ghost_layers(model))
    if _checked.get(model, ()) == layers:
        return
    rows = 2**13 - 1
    specs = keras.tree.map_structure(
        lambda t: None if t is None else tf.TensorSpec((rows, *t.shape[1:]), t.dtype), x
    )

    def trace(x):
        with keras.StatelessScope(), part_of_batch(2 * rows, 0, rows):
            call_model(model, x)

    tf.function(trace, autograph=False).get_concrete_function(specs)
    _checked[model] = layers


def packing(structure):
    """Functions `(pack, unpack)` between nestings like `structure` and flat lists of tensors."""
    present = [leaf is not None for leaf in keras.tree.flatten(structure)]

    def pack(structure):
        return [leaf for leaf in keras.tree.flatten(structure) if leaf is not None]

    def unpack(packed):
        found = iter(packed)
        leaves = [next(found) if there else None for there in present]
        return keras.tree.pack_sequence_as(structure, leaves)

    return pack, unpack
