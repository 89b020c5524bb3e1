"""Batches for training: seeded shuffling and augmentation."""

import itertools

import numpy as np
import tensorflow as tf

from keras_noisylb.data.arrays import check_arrays
from keras_noisylb.types import Tensor


def random_crop_flip(images: Tensor, seed: Tensor, padding: int = 4) -> Tensor:
    """Random crops of the zero-padded images, each flipped horizontally with probability ½.

    The augmentation of the CIFAR experiments (Hoffer et al. 2017). In standardised images, zero is
    the mean of the training set. Crop and flip are drawn independently for each image.

    Args:
        images: tensor (B, height, width, channels).
        seed: integer tensor of shape (2,); the same seed gives the same crops.
        padding: number of zeros added on each side.

    Returns:
        Tensor of the shape of `images`.

    Raises:
        ValueError: if `padding` is negative.

    Example:
    >>> random_crop_flip(tf.ones((8, 32, 32, 3)), seed=(0, 1)).shape
    TensorShape([8, 32, 32, 3])
    """
    if padding < 0:
        raise ValueError(f"`padding` must not be negative. Received: padding={padding}")
    batch, height, width = tf.unstack(tf.shape(images)[:3])
    seeds = tf.random.split(seed, 3)
    top, left = (
        tf.random.stateless_uniform((batch,), s, 0, 2 * padding + 1, "int32")
        for s in (seeds[0], seeds[1])
    )
    flip = tf.random.stateless_uniform((batch,), seeds[2]) < 0.5
    padded = tf.pad(images, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    rows = top[:, None] + tf.range(height)
    columns = left[:, None] + tf.where(flip[:, None], tf.range(width - 1, -1, -1), tf.range(width))
    cropped = tf.gather(padded, rows, batch_dims=1)
    cropped = tf.gather(cropped, columns, axis=2, batch_dims=1)
    return tf.ensure_shape(cropped, images.shape)


def batches(
    x: np.ndarray, y: np.ndarray, batch_size: int, *, augment: bool = False, seed: int = 0
) -> tf.data.Dataset:
    """Shuffled batches of a training set, one pass per epoch of `fit`.

    Args:
        x: images (N, height, width, channels).
        y: labels (N,).
        batch_size: number of examples in a batch; the last batch of an epoch may be smaller.
        augment: whether to apply `random_crop_flip`.
        seed: non-negative integer. The order and the crops of pass k over the data set depend only
            on `seed` and k, not on TensorFlow's seeds.

    Returns:
        A `tf.data.Dataset` of `(images, labels)`. `fit` may use the first passes to build a model.

    Raises:
        ValueError: if there are no examples, if values are not finite, if the batch size is not
            positive, or if the seed is negative.

    Example:
    ```python
    data = batches(x_train, y_train, batch_size=4096, augment=True)
    model.fit(data, shuffle=False, epochs=200)  # shuffle=False avoids a warning of Keras
    ```
    """
    check_arrays(x, y)
    if batch_size < 1 or seed < 0:
        raise ValueError(
            "`batch_size` must be positive and `seed` not negative. Received: "
            f"batch_size={batch_size}, seed={seed}"
        )
    x, y = np.asarray(x), np.asarray(y)
    passes = itertools.count()

    def one_pass():
        rng = np.random.default_rng((seed, next(passes)))
        order = rng.permutation(len(x))
        for start in range(0, len(x), batch_size):
            chosen = order[start : start + batch_size]
            yield x[chosen], y[chosen], rng.integers(2**31, size=2, dtype="int32")

    def prepare(images, labels, crop_seed):
        return (random_crop_flip(images, crop_seed) if augment else images), labels

    signature = (
        tf.TensorSpec((None, *x.shape[1:]), x.dtype),
        tf.TensorSpec((None, *y.shape[1:]), y.dtype),
        tf.TensorSpec((2,), "int32"),
    )
    data = tf.data.Dataset.from_generator(one_pass, output_signature=signature)
    data = data.map(prepare, num_parallel_calls=2)
    steps = -(-len(x) // batch_size)
    return data.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(2)
