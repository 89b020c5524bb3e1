"""Minibatch gradients as in training, at fixed weights and state."""

import keras
import tensorflow as tf

from keras_noisylb.gradients import objective
from keras_noisylb.gradients.batch import Batch
from keras_noisylb.gradients.labels import labels_for
from keras_noisylb.training.randomness import Draws
from keras_noisylb.training.step import Parts, Step


class MinibatchGradients:
    """The gradient of a minibatch, with or without noise, in training mode.

    Args:
        model: a built Keras model.
        loss: the loss to differentiate.
        batches: from `batches.minibatches`.
        noise: a noise, or `None`.
        seed: integer, seed of the noise.
        num_microbatches: number of microbatches in which a batch is computed.
        add_loss_reduction: "mean" or "sum", how `add_loss` terms reduce over examples, or `None`.
    """

    def __init__(
        self,
        model,
        loss,
        batches,
        noise=None,
        seed=0,
        num_microbatches=1,
        add_loss_reduction=None,
    ):
        self.model, self.noise, self.seed = model, noise, seed
        self.num_microbatches = num_microbatches
        labels = None if noise is None else labels_for(noise, model, loss)
        self._objective = objective(model, loss, labels, add_loss_reduction=add_loss_reduction)
        # Counters, such as the state of dropout's random numbers, advance from batch to batch.
        self._counters = [
            v for v in model.non_trainable_variables if keras.backend.is_int_dtype(v.dtype)
        ]
        element_spec = keras.tree.map_structure(
            lambda spec: tf.TensorSpec((batches.batch_size, *spec.shape[1:]), spec.dtype),
            batches.element_spec,
        )
        signature = (element_spec, tf.TensorSpec((), "int32"))
        self._compiled = tf.function(self._compute, input_signature=signature, autograph=False)

    def visit(self, batches, use):
        """Compute the gradients in turn; every visit starts with the same random numbers.

        Args:
            batches: iterable of `(x, y)` or `(x, y, sample_weight)`.
            use: function that receives each gradient, a list of float64 tensors aligned with
                `model.trainable_variables`.
        """
        before = [v.numpy() for v in self._counters]
        try:
            for k, batch in enumerate(batches):
                gradients, counts = self._compiled(batch, k)
                for variable, count in zip(self._counters, counts, strict=True):
                    variable.assign(count)
                use(gradients)
        finally:
            for variable, value in zip(self._counters, before, strict=True):
                variable.assign(value)

    def _compute(self, batch, k):
        draws = Draws(tf.stack([tf.cast(self.seed, "int32"), k]))
        yes = tf.constant(True)
        step = Step(
            self._objective, Batch(*batch), self.noise, Parts(), draws, draws, self.num_microbatches
        )
        outcome = step.run(yes, yes)
        state = {id(variable): value for variable, value in outcome.state}
        counts = [state.get(id(v), v.value) for v in self._counters]
        pairs = zip(outcome.gradients, self.model.trainable_variables, strict=True)
        gradients = [
            tf.zeros(v.shape, "float64") if g is None else tf.cast(g, "float64") for g, v in pairs
        ]
        return gradients, counts
