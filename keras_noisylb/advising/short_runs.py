"""Short trainings of copies of a model."""

import itertools
import math
import numbers

import keras
import numpy as np
import tensorflow as tf

from keras_noisylb.diagnostics.batches import minibatches
from keras_noisylb.diagnostics.checks import MeanLoss, check_model
from keras_noisylb.gradients.loss import call_model
from keras_noisylb.schedules import WarmupStepDecay, peak
from keras_noisylb.training.model import NoisyModel


class ShortRuns:
    """Trains copies of a model from the same weights, on the same data.

    Args:
        model: a Keras model, or a function without arguments that builds one.
        loss: a Keras loss, its name or a function `(y, y_pred)`; `None` for the model's loss.
        optimizer: a Keras optimizer; `None` for the model's optimizer.
        learning_rate: learning rate of the small batch; `None` for the optimizer's.
        x: inputs, examples first, or nested; or a `tf.data.Dataset` of batches.
        y: targets; `None` with a dataset.
        batch_size: size of the small batch; `None` with a dataset.
        seed: integer, seed of the order of the examples.

    Attributes:
        batch_size: size of the small batch.
        num_examples: number of examples of the data.
        learning_rate: learning rate of the small batch.
        optimizer: the optimizer that is copied for each run, without wrappers.

    Raises:
        ValueError: if the model has no loss or optimizer or cannot be copied, or if the data are
            invalid.
    """

    def __init__(self, model, loss, optimizer, learning_rate, x, y, batch_size, seed):
        self.x, self.y, self.seed = x, y, seed
        self.batches = minibatches(x, y, batch_size)
        self.batch_size = self.batches.batch_size
        if isinstance(x, tf.data.Dataset):
            self.num_examples = sum(len(keras.tree.flatten(batch)[0]) for batch in x)
        else:
            self.num_examples = self.batches.num_examples
        self.model = model
        first = model if isinstance(model, keras.Model) else self._built(model)
        self.loss = MeanLoss(_loss(first, loss)).loss
        self.optimizer = _optimizer(first, optimizer)
        self.learning_rate = _learning_rate(self.optimizer, learning_rate)
        if isinstance(first, NoisyModel):
            first = first.model
        check_model(first, self.batches)
        self.weights = first.get_weights()

    def copy(self):
        """A new model with the initial weights of every run.

        Raises:
            ValueError: if the model cannot be copied.
        """
        model = self.model.model if isinstance(self.model, NoisyModel) else self.model
        network = _clone(model) if isinstance(model, keras.Model) else self._built(model)
        network = network.model if isinstance(network, NoisyModel) else network
        check_model(network, self.batches)
        network.set_weights(self.weights)
        return network

    def train(self, network, learning_rate, warmup_updates, batch_size, stops):
        """Train a copy, and yield after given numbers of updates.

        Args:
            network: from `copy`.
            learning_rate: peak learning rate, reached by linear warm-up.
            warmup_updates: number of updates of the warm-up.
            batch_size: number of examples of each update. Batches larger than the small batch are
                computed in microbatches.
            stops: increasing numbers of updates; the training ends after the last one.

        Yields:
            Each of the stops, when it is reached.
        """
        config = self.optimizer.get_config()
        config["learning_rate"] = WarmupStepDecay(learning_rate, warmup_steps=warmup_updates)
        number = round(batch_size / self.batch_size)
        model = NoisyModel(network, number) if number > 1 else network
        model.compile(type(self.optimizer).from_config(config), self.loss)
        batches = self._resized(batch_size).draw(np.random.default_rng((self.seed, batch_size)))
        for number, batch in enumerate(itertools.islice(batches, stops[-1]), start=1):
            model.train_on_batch(*batch)
            if number in stops:
                yield number

    def sample(self, num_batches):
        """Batches of the data, stored in memory: the same on every pass.

        Returns:
            A `tf.data.Dataset`.
        """
        batches = self.batches.disjoint(np.random.default_rng(self.seed))
        kept = list(itertools.islice(batches, num_batches))
        arrays = keras.tree.map_structure(lambda *parts: np.concatenate(parts), *kept)
        return tf.data.Dataset.from_tensor_slices(arrays).batch(self.batch_size)

    def mean_loss(self, network, sample):
        """The mean loss of the model in training mode, without regularisers.

        Args:
            network: from `copy`.
            sample: from `sample`.
        """
        loss = MeanLoss(self.loss)

        @tf.function
        def of_batch(x, y, *weight):
            return loss(y, call_model(network, x, training=True), *weight)

        return float(np.mean([of_batch(*batch) for batch in sample]))

    def _resized(self, batch_size):
        if batch_size == self.batch_size:
            return self.batches
        if isinstance(self.x, tf.data.Dataset):
            return minibatches(self.x.unbatch().repeat().batch(batch_size), None, None)
        return minibatches(self.x, self.y, batch_size)

    def _built(self, function):
        network = function() if callable(function) else function
        if not isinstance(network, keras.Model):
            raise ValueError(
                "`model` must be a keras.Model, or a function without arguments that returns one. "
                f"Received: {function!r}, which gives {network!r}"
            )
        return network


def _clone(model):
    compiled = model.compiled
    try:
        model.compiled = False  # skips loss and optimizer, which may not be serialisable
        return keras.models.clone_model(model)
    except Exception as error:  # the configuration of a user's layer may raise any error
        raise ValueError(
            f"{model.name!r} cannot be copied ({type(error).__name__}: {error}). `advise` trains "
            "copies of the model, never the model itself. Pass a function that builds the model."
        ) from error
    finally:
        model.compiled = compiled


def _loss(model, loss):
    if loss is None:
        loss = getattr(model, "loss", None)
    if not (isinstance(loss, str) or callable(loss)):
        raise ValueError(
            "`loss` must be a keras loss, its name, or a function (y, y_pred). Received: "
            f"{loss!r}. It can be left out only if the model is compiled with a loss."
        )
    return loss


def _optimizer(model, optimizer):
    if optimizer is None:
        optimizer = getattr(model, "optimizer", None)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ValueError(
            "`optimizer` must be a Keras optimizer, such as keras.optimizers.SGD(0.1, "
            f"momentum=0.9). Received: {optimizer!r}. It can be left out only if the model is "
            "compiled with an optimizer."
        )
    while hasattr(optimizer, "inner_optimizer"):  # wrappers for noise and for loss scaling
        optimizer = optimizer.inner_optimizer
    return optimizer


def _learning_rate(optimizer, learning_rate):
    learning_rate = peak(optimizer) if learning_rate is None else learning_rate
    positive_rate("learning_rate", learning_rate)
    return float(learning_rate)


def positive_rate(name, rate):
    """Check a learning rate.

    Raises:
        ValueError: if it is not a positive number.
    """
    if not isinstance(rate, numbers.Real) or not 0 < rate < math.inf:
        raise ValueError(f"`{name}` must be a positive number. Received: {name}={rate!r}")
