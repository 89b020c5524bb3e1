"""Per-example statistics by `tf.vectorized_map` over single examples: the reference engine.

The model first runs on the whole batch. This gives every example its gradient at the outputs, and
records the ghost batch statistics and the dropout masks. Then each example is differentiated alone
with these fixed. On a model with Ghost BN the result is the gradient of ℓ_i at fixed statistics,
not the contribution through them that `layerwise` computes.
"""

import warnings
import weakref

import keras
import tensorflow as tf

from keras_noisylb.gradients.coupling import coupling
from keras_noisylb.gradients.loss import call_model, statistics_dtype
from keras_noisylb.gradients.per_example import Squares
from keras_noisylb.gradients.replay import MASKS, record, replay, replayed_layers
from keras_noisylb.gradients.scope import Scope
from keras_noisylb.gradients.slices import slice_size, sum_over_slices
from keras_noisylb.gradients.statistics import Cost, where_known
from keras_noisylb.gradients.taps import all_layers, intercept

_warned: weakref.WeakSet[keras.Model] = weakref.WeakSet()

ANY_MODEL = 'estimator="weighted" or "split", which treat every model'


def obstacle(model):
    """Why the examples of a model cannot be differentiated alone: a sentence, or `None`."""
    for layer in all_layers(model):
        what = f"the {type(layer).__name__} {layer.name!r}"
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            return (
                f"{what} normalises every example by the whole batch in training. Replace it by "
                "ghost batch normalisation, keras_noisylb.replace_batch_norm(model, "
                "ghost_batch_size), or freeze it with layer.trainable = False."
            )
        if isinstance(layer, keras.layers.EinsumDense) and layer.compute_dtype != "float64":
            # In a graph on a CPU, oneDNN crashes on products of rank 4 that broadcast.
            return f"{what}, as in attention layers, makes TensorFlow's vectorized_map crash."
        if getattr(layer, "groups", 1) > 1 and hasattr(layer, "kernel_size"):
            return f"{what} is grouped: vectorized_map cannot differentiate grouped convolutions."
        if _is_random(layer) and not isinstance(layer, MASKS):
            return (
                f"{what} draws random numbers that cannot be repeated for single examples. If it "
                "augments the data, move it into the input pipeline."
            )
    return None


def check_supported(model, x):
    """Raise `ValueError` for a model whose examples cannot be differentiated alone."""
    found = obstacle(model) or coupling(model, x)
    if found is not None:
        raise _refusal(found)


def warn_of_fallback(model, reasons):
    """Warn, once for a model, that this engine is used, with the reasons."""
    if model not in _warned:
        _warned.add(model)
        because = "; ".join(reasons)
        warnings.warn(
            f"per-example gradients come from the slow vectorized_map engine: {because}.",
            stacklevel=2,
        )


def _refusal(reason):
    return ValueError(
        f"the vectorized_map engine cannot treat this model: {reason} Otherwise use "
        f'engine="layerwise", which needs a rule for every layer, or, in a noise, {ANY_MODEL}.'
    )


def _is_random(layer):
    """Whether the layer draws random numbers. Recurrent cells may have an unused generator."""
    if not any(isinstance(held, keras.random.SeedGenerator) for held in vars(layer).values()):
        return False
    names = ("rate", "dropout", "recurrent_dropout")
    rates = [getattr(layer, name) for name in names if hasattr(layer, name)]
    return any(rates) or not rates


class Replay:
    """A microbatch's forward pass, with a record of what couples its examples.

    Args:
        objective: an `Objective`.
        batch: a `Batch`.
        draws: `Draws` for the labels.
    """

    def __init__(self, objective, batch, draws):
        model = objective.model
        check_supported(model, batch.x)
        self.model, self.x, self.batch = model, batch.rows(batch.x), batch
        self.saved, self.drawn = [], []
        self.replayed = replayed_layers(model)
        with intercept(self.replayed, record(self.saved)):
            self.recorded = objective.record(batch, draws)

    def arrays(self):
        """Inputs, output gradients and recorded values: all that `one_example` needs."""
        gradients = self.recorded.output_gradients(self.recorded.fisher_loss)
        return keras.tree.flatten(self.x), gradients, self.saved

    def one_example(self, example):
        """g_i / M from one example's rows of `arrays`: a list aligned with the variables."""
        x, output_gradients, saved = example
        inputs = keras.tree.pack_sequence_as(self.x, [leaf[None] for leaf in x])
        variables = self.model.trainable_variables
        values = [tf.identity(v.value) for v in variables]
        # In the scope the variables have these values, and assignments are only recorded.
        scope = Scope(zip(variables, values, strict=True))
        with intercept(self.replayed, replay(saved)), tf.GradientTape() as tape:
            tape.watch(values)
            with scope:
                outputs = keras.tree.flatten(call_model(self.model, inputs))
        self.drawn += [v.path for v in scope.written if v.name == "seed_generator_state"]
        return tape.gradient(
            outputs,
            values,
            output_gradients=[g[None] for g in output_gradients],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )

    def per_example(self, arrays):
        """g_i for the examples in `arrays`: one tensor (M, *variable.shape) for each variable."""
        try:
            gradients = tf.vectorized_map(self.one_example, arrays)
        except (TypeError, ValueError) as error:  # for operations that it does not support
            last = str(error).strip().splitlines()[-1].strip()
            raise _refusal(f"TensorFlow's vectorized_map fails on it ({last})") from error
        if self.drawn:
            raise _refusal(f"it draws random numbers of its own ({self.drawn[0]}).")
        dtypes = [statistics_dtype(v) for v in self.model.trainable_variables]
        return [
            tf.cast(g, dtype) * tf.cast(self.batch.num_examples, dtype)
            for g, dtype in zip(gradients, dtypes, strict=True)
        ]


class VectorizedSquares(Squares):
    """The mean over examples of g_i², one example at a time.

    Args:
        max_examples: number of examples that are used, the first ones; `None` for all.
        true_labels: whether the labels are drawn from the model.
        reasons: why the layerwise engine cannot treat the model; none if it was not asked for.
    """

    readable_memory = False

    def __init__(self, max_examples=None, true_labels=False, reasons=()):
        super().__init__(max_examples, true_labels)
        self.reasons = reasons

    def measure(self, objective, batch, draws):
        if self.reasons:
            warn_of_fallback(objective.model, self.reasons)
        replay = Replay(objective, batch, draws)
        variables = objective.variables
        arrays, count = replay.arrays(), batch.share_of(self.max_examples)
        if self.max_examples is not None:
            arrays = keras.tree.map_structure(lambda array: array[:count], arrays)
        flat = keras.tree.flatten(arrays)

        def slice_sums(slices, keep):
            per_example = replay.per_example(keras.tree.pack_sequence_as(arrays, slices))
            return [
                tf.reduce_sum(tf.where(_column(keep, g), tf.square(g), 0), axis=0)
                for g in per_example
            ]

        like = [(v.shape, statistics_dtype(v)) for v in variables]
        elements = sum(v.shape.num_elements() for v in variables)
        sums = sum_over_slices(slice_sums, flat, count, slice_size(elements, "float32"), like)
        gradients = replay.recorded.data_gradients()
        return replay.recorded, gradients, (where_known(gradients, sums), count)

    def cost_per_example(self, layer, size, positions):
        return Cost(3 * positions * size + size, "vectorized_map", True, size)

    def notes(self, model, batch_size):
        because = [f"vectorized_map, because {'; '.join(self.reasons)}."] if self.reasons else []
        return because + super().notes(model, batch_size)


def _column(keep, like):
    return tf.reshape(keep, (-1, *[1] * (len(like.shape) - 1)))


def per_example_gradients(objective, batch):
    """The per-example gradients themselves, shape (M, *variable.shape) for each variable."""
    replay = Replay(objective, batch, draws=None)
    return replay.per_example(replay.arrays())
