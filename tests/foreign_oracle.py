"""What each estimator must find on any model, by loops over examples. Slow, and obvious.

Everything runs in a `StatelessScope`: the model stays as it was, so that the estimator that is
compared sees the same random numbers.
"""

import contextlib

import keras
import numpy as np
import oracle
import tensorflow as tf
from foreign_models import GHOST

import keras_noisylb as nlb

NORMS = (keras.layers.BatchNormalization, nlb.GhostBatchNormalization)
HALF = 3  # examples in the first half of a batch


def rows(structure, start, stop):
    return keras.tree.map_structure(lambda a: a[start:stop], structure)


def losses(problem, x, y):
    """The loss of each example in training."""
    value = problem.loss(y, problem.model(x, training=True))
    return tf.reduce_mean(tf.reshape(value, (len(y), -1)), axis=1)


def gradients(problem, x, y):
    """The gradient of a batch, and that without the model's own losses."""
    variables = problem.model.trainable_variables
    with tf.GradientTape(persistent=True) as tape:
        data = tf.reduce_mean(losses(problem, x, y))
        whole = tf.add_n([data, *problem.model.losses])
    values = (whole, data) if problem.model.losses else (data,)
    found = [oracle.dense(tape.gradient(value, variables)) for value in values]
    return found[0], found[-1]


def undisturbed():
    """A scope in which the model's state may change, and its own losses are seen."""
    return keras.StatelessScope(collect_losses=True)


@contextlib.contextmanager
def calls(replacements):
    """Within the context, layers have another `call`: pairs of a layer and what makes it."""
    for layer, make in replacements:
        object.__setattr__(layer, "call", make(layer, layer.call))
    try:
        yield
    finally:
        for layer, _ in replacements:
            object.__delattr__(layer, "call")


def leaves(model):
    return [layer for layer in model._flatten_layers() if len(list(layer._flatten_layers())) == 1]


def contributions(problem):
    """M times the gradient for every example's own copy of all parameters."""
    variables = problem.model.trainable_variables
    copies = [[tf.identity(v.value) for v in variables] for _ in problem.y]
    places = {id(v): place for place, v in enumerate(variables)}

    def of_example(i, layer):
        own = [(v, copies[i][places[id(v)]]) for v in layer.trainable_variables]
        return keras.StatelessScope(state_mapping=own)

    def private(layer, call):
        def each(inputs, **kwargs):
            outputs = []
            for i in range(len(copies)):
                with of_example(i, layer):
                    outputs.append(call(inputs[i : i + 1], **kwargs))
            return tf.concat(outputs, axis=0)

        def each_after_the_statistics(inputs, **kwargs):
            plain = [(layer.gamma, tf.ones_like(layer.gamma)), (layer.beta, layer.beta * 0)]
            with keras.StatelessScope(state_mapping=plain):
                normalized = call(inputs, **kwargs)
            outputs = []
            for i in range(len(copies)):
                with of_example(i, layer):
                    outputs.append(normalized[i : i + 1] * layer.gamma + layer.beta)
            return tf.concat(outputs, axis=0)

        return each_after_the_statistics if isinstance(layer, NORMS) else each

    trained = [layer for layer in leaves(problem.model) if layer.trainable_variables]
    with calls([(layer, private) for layer in trained]), tf.GradientTape() as tape:
        tape.watch(copies)
        value = tf.reduce_mean(losses(problem, problem.x, problem.y))
    for found in tape.gradient(value, copies):
        yield [len(copies) * g for g in oracle.dense(found)]


def alone(problem):
    """The gradient of each example by itself; statistics and dropout masks are those of the batch.

    Without such layers this is a loop over batches of one.
    """
    frozen = {}

    def recorded(layer, call):
        saved = frozen.setdefault(layer, [])

        def dropout(inputs, **kwargs):
            mask = call(tf.ones_like(inputs), **kwargs)
            saved.append([(m,) for m in mask])
            return inputs * mask

        def ghosts(inputs, **kwargs):
            moments = []
            for start in range(0, len(inputs), GHOST):
                ghost = inputs[start : start + GHOST]
                moments += [tf.nn.moments(ghost, list(range(len(ghost.shape) - 1)))] * GHOST
            saved.append(moments)
            return call(inputs, **kwargs)

        return dropout if isinstance(layer, keras.layers.Dropout) else ghosts

    def repeated(i):
        def make(layer, call):
            use = iter(frozen[layer])

            def dropout(inputs, **kwargs):
                return inputs * next(use)[i][0]

            def ghosts(inputs, **kwargs):
                mean, variance = next(use)[i]
                normalized = (inputs - mean) / tf.sqrt(variance + layer.epsilon)
                return normalized * layer.gamma + layer.beta

            return dropout if isinstance(layer, keras.layers.Dropout) else ghosts

        return make

    kinds = (keras.layers.Dropout, nlb.GhostBatchNormalization)
    coupling = [layer for layer in leaves(problem.model) if isinstance(layer, kinds)]
    with calls([(layer, recorded) for layer in coupling]):
        losses(problem, problem.x, problem.y)
    for i in range(len(problem.y)):
        with calls([(layer, repeated(i)) for layer in coupling]):
            yield gradients(problem, *rows((problem.x, problem.y), i, i + 1))[1]


def of_batch(problem):
    """The gradient of each example's loss in the batch, through whatever couples the examples."""
    with tf.GradientTape(persistent=True) as tape:
        each = tf.unstack(losses(problem, problem.x, problem.y))
    for value in each:
        yield oracle.dense(tape.gradient(value, problem.model.trainable_variables))


def per_example(definition):
    """The gradient of the batch and the mean of g_i², for one definition of g_i."""

    def expected(problem, weights):
        with undisturbed():
            whole, _ = gradients(problem, problem.x, problem.y)
        totals = [np.zeros_like(g) for g in whole]
        with undisturbed():
            for example in definition(problem) if problem.coupled else alone(problem):
                for total, g in zip(totals, example, strict=True):
                    total += np.square(g) / len(problem.y)
        return whole, totals

    return expected


def weighted(problem, weights):
    """The gradient of the batch and M^(-1/2) Σ w_i g_i."""
    with undisturbed():
        whole, _ = gradients(problem, problem.x, problem.y)
    totals = [np.zeros_like(g) for g in whole]
    with undisturbed():
        for w, example in zip(weights, of_batch(problem), strict=True):
            for total, g in zip(totals, example, strict=True):
                total += w / np.sqrt(len(weights)) * g
    return whole, totals


def split(problem, weights):
    """The gradient of the batch and the scaled difference of its halves, computed in turn."""
    size, parts = len(problem.y), (problem.x, problem.y)
    with undisturbed():
        whole_a, data_a = gradients(problem, *rows(parts, 0, HALF))
        whole_b, data_b = gradients(problem, *rows(parts, HALF, size))
    share = HALF / size
    whole = [share * a + (1 - share) * b for a, b in zip(whole_a, whole_b, strict=True)]
    scale = np.sqrt(size * share * (1 - share))
    return whole, [scale * (a - b) for a, b in zip(data_a, data_b, strict=True)]


ORACLES = {
    "layerwise": per_example(contributions),
    "vectorized_map": per_example(alone),
    "weighted": weighted,
    "split": split,
}
