"""A forward pass without side effects, which records assignments and added losses."""

import contextlib

import keras

from keras_noisylb.gradients.taps import all_layers, intercept


class Scope(keras.StatelessScope):
    """A stateless scope that records which variables were assigned, and the losses of layers.

    Variables outside of the model are recorded too: unseeded `keras.random` has a generator.

    Attributes:
        written: the variables.
        activity_losses: the losses of activity regularisers, which Keras divides by the number of
            examples.
        added_losses: what layers add by `add_loss` in their own code.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.written, self.activity_losses, self.added_losses = [], [], []
        self._expected = 0

    def add_update(self, update):
        super().add_update(update)
        if not any(update[0] is variable for variable in self.written):
            self.written.append(update[0])

    def add_loss(self, loss):
        super().add_loss(loss)
        if self._expected:
            self._expected -= 1
            self.activity_losses.append(loss)
        else:
            self.added_losses.append(loss)

    def telling_losses_apart(self, model):
        """A context in which the calls of `model` fill the lists of losses."""
        layers = [
            layer
            for layer in all_layers(model)
            if getattr(layer, "activity_regularizer", None) is not None
        ]

        def handler(layer, call, *args, **kwargs):
            outputs = call(*args, **kwargs)
            # Keras adds the regulariser's loss of each output next.
            self._expected = sum(map(keras.ops.is_tensor, keras.tree.flatten(outputs)))
            return outputs

        return intercept(layers, handler) if layers else contextlib.nullcontext()
