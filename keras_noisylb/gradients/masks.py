"""The masks of a batch's outputs where the batch has several microbatches."""

import contextlib
import itertools

import keras
import tensorflow as tf

from keras_noisylb.gradients.loss import call_model, mask_of
from keras_noisylb.layers.ghosts import part_of_batch


class Masks:
    """The masks of the outputs for the whole batch: a loss may divide by their sum.

    Args:
        model: the model.
        batch: a `Batch`, whole.
        microbatches: its `Microbatches`.
    """

    def __init__(self, model, batch, microbatches):
        self.model, self.batch, self.microbatches = model, batch, microbatches
        self._found = None

    def of_batch(self, y_pred):
        """The masks, or `None` where there is none, nested as the outputs are.

        Args:
            y_pred: outputs for the first microbatch; those of later ones are not used.
        """
        if self._found is None:
            self._found = self._find(y_pred)
        return self._found

    def _find(self, y_pred):
        first = keras.tree.map_structure(mask_of, y_pred)
        if all(mask is None for mask in keras.tree.flatten(first)):
            return first
        if not tf.executing_eagerly():
            # TensorFlow keeps only those operations of this forward pass that make the masks.
            return self._of_rows(self.batch)
        starts = [self.microbatches.start(k) for k in range(self.microbatches.number + 1)]
        later = [
            self._of_rows(self.batch.microbatch(start, end - start))
            for start, end in itertools.pairwise(starts[1:])
        ]
        return keras.tree.map_structure(
            lambda *parts: None if parts[0] is None else tf.concat(parts, axis=0), first, *later
        )

    def _of_rows(self, part):
        # A tape would keep the tensors of this pass in memory.
        no_tape = tf.init_scope() if tf.executing_eagerly() else contextlib.nullcontext()
        in_batch = part_of_batch(part.num_examples, part.first_row, part.num_rows)
        with no_tape, in_batch, keras.StatelessScope():
            y_pred = call_model(self.model, part.rows(part.x))
        return keras.tree.map_structure(mask_of, y_pred)
