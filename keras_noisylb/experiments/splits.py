"""The examples of a comparison: to train on, and to report on."""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_noisylb import data


def stratified_order(labels):
    """An order whose every beginning holds the classes in the proportions of the whole.

    Returns:
        Array of indices; within a class they keep their order.
    """
    places = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        places[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.argsort(places, kind="stable")


class Batches:
    """Shuffled batches whose order depends on seed and epoch alone, so that a run can be resumed.

    Args:
        x: images.
        y: labels.
        batch_size: number of examples; the last batch of an epoch holds what remains.
        seed: of the order.
        epoch: the epoch that comes first; `start` begins another one.
        augment: whether images are cropped and flipped.
    """

    def __init__(self, x, y, batch_size, seed, epoch=0, augment=False):
        self.x, self.y, self.batch_size, self.seed = x, y, batch_size, seed
        self.augment = augment
        self.start(epoch)

    def start(self, epoch):
        """Shuffle for an epoch."""
        self.epoch, self.order = epoch, self.order_of(epoch)

    def order_of(self, epoch):
        """The indices of an epoch's examples."""
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.x))

    def __len__(self):
        return -(-len(self.order) // self.batch_size)

    def examples(self, index):
        """Images and labels of a batch, and the seed of its crops and flips."""
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        seed = np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(2)
        return self.x[chosen], self.y[chosen], (seed % 2**31).astype("int32")

    def dataset(self):
        """A `tf.data.Dataset` of the batches of the epoch in which a pass over it begins.

        What Keras makes of a `PyDataset` takes longer to end than a short epoch.
        """

        def batch(index):
            types = self.x.dtype, self.y.dtype, "int32"
            images, labels, seed = tf.numpy_function(self.examples, (index,), types)
            images = tf.ensure_shape(images, (None, *self.x.shape[1:]))
            if self.augment:
                images = data.random_crop_flip(images, tf.ensure_shape(seed, (2,)))
            return images, tf.ensure_shape(labels, (None,))

        options = tf.data.Options()
        options.autotune.enabled = False  # its threads, too, take long to end
        return tf.data.Dataset.range(len(self)).map(batch).prefetch(1).with_options(options)


@dataclass(frozen=True)
class Split:
    """The arrays of a comparison; `x_test` is a part of the training set where options say so."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int
    held_out: tuple | None = None  # training images, reported on beside the test set

    def batches(self, batch_size, seed, augment):
        """The training batches.

        Args:
            batch_size: number of examples.
            seed: of the order and the augmentation.
            augment: whether images are cropped and flipped.
        """
        return Batches(self.x_train, self.y_train, batch_size, seed, augment=augment)


def load(options, examples=None):
    """Load what the options ask for.

    Args:
        options: the options of the run.
        examples: a user's `Examples`; `None` loads the data set of the package.

    Returns:
        A `Split`.

    Raises:
        ValueError: if the data set is unknown or too small for the options.
    """
    if examples is None:
        (x_train, y_train), (x_test, y_test) = data.load(options.dataset, data_dir=options.data_dir)
        num_classes = data.info(options.dataset).num_classes
        image_shape(options)
    else:
        (x_train, y_train), (x_test, y_test), num_classes = examples
        image_shape(options, x_train.shape[1:])
    data.check_arrays(x_train, y_train)
    if options.validation_fraction:
        (x_train, y_train), (x_test, y_test) = data.split(
            x_train, y_train, options.validation_fraction
        )
    held_out = None
    if options.held_out:
        if options.held_out >= len(x_train):
            raise ValueError(
                f"--held-out received {options.held_out}, expected less than the {len(x_train)} "
                f"training examples of {options.dataset}. Lower --held-out."
            )
        (x_train, y_train), (x_held, y_held) = data.split(
            x_train, y_train, options.held_out / len(x_train)
        )
        held_out = pooled(x_held, options.pool), y_held
    size = options.train_size or len(x_train)
    if size > len(x_train):
        raise ValueError(
            f"--train-size received {size}, expected at most {len(x_train)}, the training examples "
            f"of {options.dataset} that are not held out. Lower --train-size."
        )
    if size <= options.small_batch_size:
        raise ValueError(
            f"--small-batch-size received {options.small_batch_size}, expected less than the "
            f"{size} training examples. Lower --small-batch-size or raise --train-size."
        )
    kept = np.sort(stratified_order(y_train)[:size])
    x_train, x_test = (pooled(images, options.pool) for images in (x_train[kept], x_test))
    return Split(x_train, y_train[kept], x_test, y_test, num_classes, held_out)


def image_shape(options, shape=None):
    """Shape of the examples that the network gets, (height, width, channels) of images.

    Args:
        options: the options of the run.
        shape: of an example of the data; `None` for that of the data set of the package.

    Raises:
        ValueError: if tiles are larger than the images, or if the examples are no images.
    """
    shape = data.info(options.dataset).image_shape if shape is None else shape
    if len(shape) != 3:
        for flag, value in (("--pool", options.pool > 1), ("--augment", options.augment)):
            if value:
                raise ValueError(
                    f"{flag} is for images (height, width, channels), but the examples of "
                    f"{options.dataset} have the shape {shape}. Leave {flag} out."
                )
        return shape
    height, width, channels = shape
    if options.pool > min(height, width):
        raise ValueError(
            f"--pool received {options.pool}, expected at most {min(height, width)}, the size of "
            f"the images of {options.dataset}. Lower --pool."
        )
    return height // options.pool, width // options.pool, channels


def pooled(images, size):
    """Images of the means of tiles; pixels that fill no tile are left out.

    Args:
        images: array (N, height, width, channels).
        size: height and width of a tile.
    """
    if size == 1:
        return images
    n, height, width, channels = images.shape
    tiles = images[:, : height // size * size, : width // size * size]
    return tiles.reshape(n, height // size, size, width // size, size, channels).mean(axis=(2, 4))
