"""The batches made of a data set: their order and their augmentation."""

import numpy as np
import pytest
import tensorflow as tf
from test_data import images

from keras_noisylb import data


def crops(image, padding):
    """Every crop of the padded image and its mirror image, by (top, left, flip)."""
    height, width, _ = image.shape
    padded = np.pad(image, [(padding, padding), (padding, padding), (0, 0)])
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top : top + height, left : left + width]
            yield (top, left, 0), crop
            yield (top, left, 1), crop[:, ::-1]


def test_every_result_is_a_crop():
    x = np.concatenate([images(60), images(60, seed=1)])[:, :, :6]  # not square
    drawn = data.random_crop_flip(x, seed=(0, 1), padding=2).numpy()
    found = []
    for image, result in zip(x, drawn, strict=True):
        matches = [place for place, crop in crops(image, 2) if np.array_equal(crop, result)]
        assert len(matches) == 1
        found += matches
    assert len(set(found)) > 40  # each image has its own of the 50 places: 45.6 are expected


def test_places_and_flips_are_uniform():
    # The brightest of the pixels, in the middle, shows where the crop begins.
    count, padding = 20_000, 2
    x = np.zeros((count, 8, 6, 1), "float32")
    x[:, 3, 2] = 1
    x[:, 3, 3] = 2
    drawn = data.random_crop_flip(x, seed=(3, 4), padding=padding).numpy()[..., 0]
    row, column = np.divmod(drawn.reshape(count, -1).argmax(axis=1), 6)
    other = np.divmod(np.where(drawn == 2, 0, drawn).reshape(count, -1).argmax(axis=1), 6)[1]
    flipped = column < other
    assert abs(flipped.mean() - 0.5) < 5 * 0.5 / np.sqrt(count)
    top, left = 3 + padding - row, np.where(flipped, column - 2, 3 - column) + padding
    places = np.bincount(np.ravel_multi_index((top, left, flipped), (5, 5, 2)), minlength=50)
    error = np.sqrt(count * 0.02 * 0.98)
    assert np.abs(places - count * 0.02).max() < 5 * error


def test_augmentation_depends_on_the_seed_alone():
    x = images(16)
    first, again, other = (data.random_crop_flip(x, seed) for seed in ((0, 1), (0, 1), (0, 2)))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_padding_leaves_the_image_or_its_mirror_image():
    x = images(20)
    for image, result in zip(x, data.random_crop_flip(x, (0, 0), padding=0).numpy(), strict=True):
        assert np.array_equal(image, result) or np.array_equal(image[:, ::-1], result)
    with pytest.raises(ValueError, match="padding=-1"):
        data.random_crop_flip(x, (0, 0), padding=-1)


# Batches


def passes(count=2, augment=False, seed=0):
    """Images and labels of some passes over 22 examples in batches of 8; labels are indices."""
    dataset = data.batches(images(22), np.arange(22), 8, augment=augment, seed=seed)
    return [[(x.numpy(), y.numpy()) for x, y in dataset] for _ in range(count)]


def labels(one_pass):
    return np.concatenate([y for _, y in one_pass])


def test_a_pass_holds_every_example_once():
    for one_pass in passes():
        assert [len(x) for x, _ in one_pass] == [8, 8, 6]
        np.testing.assert_array_equal(np.sort(labels(one_pass)), np.arange(22))
        for x, y in one_pass:
            np.testing.assert_array_equal(x, images(22)[y])
    assert data.batches(images(22), np.arange(22), 8).cardinality() == 3


@pytest.mark.parametrize("augment", [False, True])
def test_passes_differ_and_are_reproducible(augment):
    first = passes(augment=augment)
    tf.random.set_seed(7)  # must not matter
    again, other = passes(augment=augment), passes(augment=augment, seed=1)
    for one, two in zip(first, again, strict=True):
        for batch, same in zip(one, two, strict=True):
            np.testing.assert_array_equal(batch[0], same[0])
            np.testing.assert_array_equal(batch[1], same[1])
    assert len({labels(one_pass).tobytes() for one_pass in first + other}) == 4


def test_crops_are_drawn_anew_in_every_pass():
    first, second = (
        np.concatenate([x for x, _ in one_pass])[np.argsort(labels(one_pass))]
        for one_pass in passes(augment=True)
    )
    same = [np.array_equal(one, two) for one, two in zip(first, second, strict=True)]
    assert sum(same) <= 3  # of 22, where an image is cropped alike with probability 1/162


def test_batches_refuses():
    for batch_size, seed in ((0, 0), (-4, 0), (4, -1)):
        with pytest.raises(ValueError, match=f"batch_size={batch_size}, seed={seed}"):
            data.batches(images(8), np.zeros(8, int), batch_size, seed=seed)
