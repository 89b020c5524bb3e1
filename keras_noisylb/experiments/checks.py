"""What a training refuses in its first update, checked before anything is written."""

import keras
import tensorflow as tf

from keras_noisylb.experiments.train import compiled
from keras_noisylb.gradients.microbatches import cut
from keras_noisylb.gradients.statistics import STATISTICS
from keras_noisylb.training.batch_check import BatchSizeCheck
from keras_noisylb.training.model import NoisyModel


def check_first_update(options, regime, learning_rate, network, x):
    """Check noise, engine and microbatches against a network and its batch.

    Args:
        options: the options of the run.
        regime: the `Regime`.
        learning_rate: its peak learning rate.
        network: a built Keras model, which is compiled.
        x: array of the training examples.

    Raises:
        ValueError: if the first update of the training would be refused.
    """
    model, _ = compiled(network, regime, learning_rate, options, len(x), seed=0)
    if not isinstance(model, NoisyModel):
        return
    noise = regime.noise(options, learning_rate)
    if noise is not None:
        specs = tf.TensorSpec((None, *x.shape[1:]), keras.backend.standardize_dtype(x.dtype))
        STATISTICS.make(noise, network, specs)
    noisy = None if noise is None else model.optimizer
    BatchSizeCheck(noisy, model, None).check(options.large_batch_size)


def check_batches(options, regimes, num_examples):
    """Check that there are enough examples for a batch.

    Args:
        options: the options of the run.
        regimes: dictionary of name to `(regime, learning rate)`.
        num_examples: number of training examples.

    Raises:
        ValueError: if a regime would silently train on batches of all examples.
    """
    large = any(regime.batch != "small" for regime, _ in regimes.values())
    if large and options.large_batch_size > num_examples:
        raise ValueError(
            f"--large-batch-size received {options.large_batch_size}, expected at most the "
            f"{num_examples} training examples. Lower --large-batch-size."
        )


def check_microbatches(recipes, number):
    """Check the number of microbatches of recipes, without their networks.

    Args:
        recipes: list of `noisylb.protocol.recipe.Recipe`.
        number: of microbatches of each large batch; `None` for one.

    Raises:
        ValueError: if a large batch of one has less ghost batches, or the number is not positive.
    """
    for recipe in recipes:
        options = recipe.options(0, num_microbatches=number)
        if number is None or recipe.regime == "sb":
            continue
        size = options.large_batch_size
        ghosts = () if options.normalization == "none" else (options.ghost_batch_size,)
        most = cut(size, size, ghosts).number
        if most < number:
            raise ValueError(
                f"--num-microbatches received {number}, expected at most {most}: {recipe.name} has "
                f"batches of {size} and ghost batches of {options.ghost_batch_size}. Lower "
                "--num-microbatches."
            )
