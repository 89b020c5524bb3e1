"""An estimate of the time that trainings take, from a few timed updates of LeNet.

It is rough: networks are told apart by their multiplications and their number of layers alone.
"""

import math
import os
import platform
import time
from dataclasses import dataclass
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_noisylb import models
from keras_noisylb.gradients.taps import all_layers
from keras_noisylb.reporting.cost import multiplications

TEST_EXAMPLES = 10_000  # of an evaluation; forward only is a third of the work
TIMED_STEPS = 5
TIMED_SIZES = 128, 512
SURE = 300  # seconds: an estimate below it needs no measurement to be far from long


class Size(NamedTuple):
    """What the time of a network depends on.

    Args:
        millions: of multiplications of one example forward.
        layers: number of layers.
    """

    millions: float
    layers: int


SIZES = {  # at the full size of the images, by `size_of`
    "mlp": Size(1.5, 19),
    "lenet": Size(2.3, 15),
    "alexnet": Size(29, 20),
    "vgg7": Size(10.0, 25),
    "vgg16": Size(314, 48),
    "resnet8": Size(12.4, 34),
    "resnet44": Size(98, 160),
    "resnet44x2": Size(389, 160),
}
LENET = SIZES["lenet"]


@dataclass(frozen=True)
class Speed:
    """How fast a machine trains LeNet.

    Args:
        update: seconds of an update that do not depend on its number of examples.
        example: seconds for each example of an update.
        graph: seconds in which Keras builds the graph of the update.
        start: seconds before a process trains.
        device: what it was measured on.
    """

    update: float
    example: float
    graph: float
    start: float
    device: str


# `measure` on two cores of a server with nothing else running: the median of three. The start is
# that of `queue.jobs`.
REFERENCE = Speed(0.0016, 1e-4, 0.33, 3.8, "2 CPU cores, not measured on this machine")


def device():
    """The name of the device that trains."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return f"CPU {platform.machine()}, {os.cpu_count()} cores"
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return ", ".join(found.get("device_name", "GPU") for found in details)


def size_of(network, x):
    """The `Size` of a network.

    Args:
        network: a built Keras model.
        x: array of examples.
    """
    specs = tf.TensorSpec((None, *x.shape[1:]), keras.backend.standardize_dtype(x.dtype))
    return Size(multiplications(network, specs) / 1e6, len(all_layers(network)))


def size_of_recipe(recipe):
    """The `Size` of a recipe's network, which is not built for it.

    Args:
        recipe: a `noisylb.protocol.recipe.Recipe`.
    """
    found = SIZES.get(recipe.model, SIZES["resnet44"])
    return found._replace(millions=found.millions / (recipe.pool or 1) ** 2)


def measure():
    """Time updates of LeNet in this process.

    Returns:
        A `Speed` without the start of a process.
    """
    model = models.get("lenet")(ghost_batch_size=TIMED_SIZES[0])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    firsts, steps = [], []
    for size in TIMED_SIZES:
        x, y = np.zeros((size, 28, 28, 1), "float32"), np.arange(size) % 10
        times = []
        for _ in range(1 + TIMED_STEPS):
            began = time.perf_counter()
            model.train_on_batch(x, y)
            times.append(time.perf_counter() - began)
        firsts.append(times[0])  # builds the graph
        steps.append(min(times[1:]))
    small, large = TIMED_SIZES
    example = max(steps[1] - steps[0], 0.1 * steps[1]) / (large - small)
    update = max(steps[0] - small * example, 0.0)
    return Speed(update, example, min(firsts), 0.0, device())


def training(options, regime, size, num_examples, speed):
    """The seconds of one training.

    Args:
        options: `noisylb.protocol.options.Options`.
        regime: the `Regime`.
        size: the `Size` of the network.
        num_examples: number of training examples.
        speed: the `Speed` of the machine.

    Returns:
        Tuple of the seconds in which Keras builds graphs, and of those of all epochs.

    Example:
    >>> one = Options(epochs=1)
    >>> training(one, REGIMES["lb"], LENET, 60_000, Speed(0.1, 0.001, 2, 5, ""))[0]
    2.0
    """
    width, depth = size.millions / LENET.millions, size.layers / LENET.layers
    updates = regime.batch_change(options).updates(num_examples, options.epochs)
    plain = updates * speed.update * depth
    plain += options.epochs * num_examples * speed.example * width
    noise = options.noise_fraction * regime.cost
    looks = math.ceil(options.epochs / options.validation_freq) * TEST_EXAMPLES / 3
    graphs = 1 if regime.make_noise is None else 4  # that of the noise is three times as large
    graphs += regime.batch == "change"
    return graphs * speed.graph * depth, plain * (1 + noise) + looks * speed.example * width


def in_parallel(seconds, jobs):
    """The time of runs that share the machine.

    Args:
        seconds: of each run on its share.
        jobs: number of runs at a time.
    """
    at_once = max(1, min(jobs, len(seconds), os.cpu_count()))
    return max(sum(seconds) / at_once, max(seconds, default=0.0))


def speed_for(seconds, measured):
    """The speed to estimate with: measured only where a rough estimate is not short.

    Args:
        seconds: function from a `Speed` to the seconds of all that is to be done.
        measured: function without arguments that measures.

    Returns:
        A `Speed`.
    """
    return REFERENCE if seconds(REFERENCE) < SURE else measured()
