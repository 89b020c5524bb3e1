"""Batches for training: shuffling and augmentation, reproducible by seed."""

import tensorflow as tf

from keras_noisylb.data.loading import check_arrays


def random_crop_flip(images, seed, padding=4):
    """Random crops of the zero-padded images, each mirrored with probability ½.

    The augmentation of the CIFAR experiments (Hoffer et al. 2017). Zero is the mean of standardised
    images. Crops are drawn for each image.

    Args:
        images: tensor (B, height, width, channels).
        seed: integer tensor of shape (2,); the same seed gives the same crops.
        padding: zeros added on each side.

    Returns:
        Tensor of the shape of `images`.

    Example:

    >>> random_crop_flip(tf.ones((8, 32, 32, 3)), seed=(0, 1)).shape
    TensorShape([8, 32, 32, 3])
    """
    batch, height, width = tf.unstack(tf.shape(images)[:3])
    seeds = tf.random.split(seed, 3)
    top, left = (
        tf.random.stateless_uniform((batch,), s, 0, 2 * padding + 1, "int32")
        for s in (seeds[0], seeds[1])
    )
    flip = tf.random.stateless_uniform((batch,), seeds[2]) < 0.5
    padded = tf.pad(images, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    rows = top[:, None] + tf.range(height)
    columns = left[:, None] + tf.where(
        flip[:, None], tf.range(width - 1, -1, -1), tf.range(width)
    )
    cropped = tf.gather(padded, rows, batch_dims=1)
    cropped = tf.gather(cropped, columns, axis=2, batch_dims=1)
    return tf.ensure_shape(cropped, images.shape)


def batches(x, y, batch_size, augment=False, seed=0):
    """Shuffled batches of a training set, one pass for each epoch of `fit`.

    Args:
        x: images (N, height, width, channels).
        y: labels (N,).
        batch_size: examples in a batch; the last one of an epoch may be smaller.
        augment: whether to apply `random_crop_flip`.
        seed: integer; the order and the crops of the k-th pass are a function of it and of k.

    Returns:
        A `tf.data.Dataset` of `(images, labels)`.

    Raises:
        ValueError: if there are no examples, values that are not finite, or no positive batch size.

    Example:

    ```python
    model.fit(batches(x_train, y_train, batch_size=4096, augment=True), epochs=200)
    ```
    """
    check_arrays(x, y)
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be positive. Received: batch_size={batch_size}")
    # The arrays stay where they are: only indices are shuffled, and a batch is gathered at once.
    images, labels = tf.constant(x), tf.constant(y)
    order = tf.data.Dataset.range(len(x)).shuffle(len(x), seed=seed).batch(batch_size)
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)

    def gather(index, pair):
        chosen = tf.gather(images, index)
        if augment:
            chosen = random_crop_flip(chosen, tf.cast(pair % 2**31, "int32"))
        return chosen, tf.gather(labels, index)

    data = tf.data.Dataset.zip(order, seeds).map(gather, num_parallel_calls=2)
    return data.prefetch(2)
