"""The trained networks behind Figures 2, 3 and 5; all of them are resumed where they stopped."""

import dataclasses

import keras
import numpy as np

from keras_noisylb.experiments import splits
from keras_noisylb.experiments.problem import builder
from keras_noisylb.experiments.records import CompareError
from keras_noisylb.experiments.regimes import REGIMES, choose
from keras_noisylb.experiments.train import train_run

CHECKED = 1000  # test images that are evaluated after every epoch, which has few updates
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def title(name):
    """The title of a regime in legends.

    Args:
        name: one of `REGIMES`.
    """
    return REGIMES[name].title()


def load(options):
    """The data of a figure.

    Args:
        options: of the run.

    Returns:
        A `Split`.

    Raises:
        CompareError: if they cannot be had.
    """
    try:
        return splits.load(options)
    except (ValueError, OSError) as error:
        raise CompareError(str(error)) from error


def trained(folder, name, options, seed, split, say, callbacks=()):
    """Train one regime with one seed, or find that this was done.

    Args:
        folder: `pathlib.Path` of the figure.
        name: of the regime.
        options: of the run.
        seed: of weights, data and noise.
        split: the data.
        say: function that prints a line.
        callbacks: further Keras callbacks of the training.

    Returns:
        Tuple of the folder of the run, its record and its history.
    """
    regime, rate = choose(dataclasses.replace(options, regimes=name))[name]
    build = builder(options, split.num_classes, split.x_test.shape[1:])
    run = folder / f"{name}-seed{seed}"
    say(f"{regime.title(options)}, seed {seed}: batch {regime.batch_size(options)}, rate {rate:g}")
    record, history = train_run(run, build, regime, rate, options, seed, split, say, callbacks)
    return run, record, history


class Stream(splits.Batches):
    """Batches in epochs of equally many updates: an epoch begins where the last one ended.

    The order of the examples is shuffled anew for every pass over all of them.

    Args:
        x: images.
        y: labels.
        batch_size: number of examples of an update.
        every: updates of an epoch.
        seed: of the order.
        augment: whether images are cropped and flipped.
    """

    def __init__(self, x, y, batch_size, every, seed, augment):
        self.size = every * batch_size
        super().__init__(x, y, batch_size, seed, augment=augment)

    def order_of(self, epoch):
        passes, places = divmod(np.arange(self.size) + epoch * self.size, len(self.x))
        chosen = np.empty(self.size, int)
        for number in np.unique(passes):
            order = super().order_of(number)
            chosen[passes == number] = order[places[passes == number]]
        return chosen


@dataclasses.dataclass(frozen=True)
class EqualUpdates(splits.Split):
    """A `Split` whose epochs are `every` updates, so that regimes are compared per update.

    Args:
        whole: the `Split` with all the data.
        every: updates of an epoch.
    """

    whole: splits.Split = None
    every: int = 1

    @classmethod
    def of(cls, whole, batch_size, every):
        """The view of a split for one batch size.

        Args:
            whole: the `Split`.
            batch_size: number of examples of an update.
            every: updates of an epoch.
        """
        # Its length is what the learning rate's schedule counts updates by.
        rows = np.arange(every * batch_size) % len(whole.x_train)
        if len(rows) <= len(whole.x_train):
            rows = slice(0, len(rows))
        return cls(
            whole.x_train[rows], whole.y_train[rows], whole.x_test[:CHECKED],
            whole.y_test[:CHECKED], whole.num_classes, whole=whole, every=every,
        )  # fmt: skip

    def batches(self, batch_size, seed, augment):
        """The training batches.

        Args:
            batch_size: number of examples.
            seed: of the order and the augmentation.
            augment: whether images are cropped and flipped.
        """
        whole = self.whole
        return Stream(whole.x_train, whole.y_train, batch_size, self.every, seed, augment)
