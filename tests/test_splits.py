"""The arrays of a comparison and the order of their batches."""

import numpy as np
import pytest
from test_compare import options, small_data  # noqa: F401 -- all tests use the small data

from keras_noisylb import data
from keras_noisylb.experiments import splits


def test_batches_depend_on_seed_and_epoch_alone(small_data):
    (x, y), _ = small_data
    first = splits.Batches(x, y, 30, seed=1, augment=True)
    passes = first.dataset()
    earlier = [labels for _, labels in passes.as_numpy_iterator()]
    first.start(1)
    second = splits.Batches(x, y, 30, seed=1, epoch=1, augment=True)
    other = splits.Batches(x, y, 30, seed=2, epoch=1, augment=True)
    found, same, different = (
        list(d.as_numpy_iterator()) for d in (passes, second.dataset(), other.dataset())
    )
    for (images, labels), (again, labels_again) in zip(found, same, strict=True):
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(labels, labels_again)
    assert passes.cardinality() == len(found) == len(first) == 4
    assert len(found[3][1]) == 10
    assert not np.array_equal(found[0][1], different[0][1])
    assert not np.array_equal(found[0][1], earlier[0])
    labels = np.concatenate([labels for _, labels in found])
    np.testing.assert_array_equal(np.sort(labels), np.sort(y))


@pytest.mark.parametrize("augment", [False, True])
def test_batches_by_hand(small_data, augment):
    (x, y), _ = small_data
    batches = splits.Batches(x, y, 30, seed=1, epoch=2, augment=augment)
    order = np.random.default_rng((1, 2)).permutation(100)
    for index, (images, labels) in enumerate(batches.dataset().as_numpy_iterator()):
        chosen = order[30 * index : 30 * index + 30]
        expected = x[chosen]
        if augment:
            seed = np.random.SeedSequence((1, 2, index)).generate_state(2) % 2**31
            expected = data.random_crop_flip(expected, seed.astype("int32"))
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(labels, y[chosen])


def test_held_out_part_replaces_the_test_set(tmp_path, small_data):
    (x, y), (x_test, _) = small_data
    split = splits.load(options(tmp_path, validation_fraction=0.2, train_size=60))
    assert len(split.x_train) == 60 and abs(len(split.x_test) - 20) <= 2
    rows = {image.tobytes() for image in split.x_test}
    assert rows <= {image.tobytes() for image in x}
    assert not rows & {image.tobytes() for image in x_test}
    assert not rows & {image.tobytes() for image in split.x_train}
    np.testing.assert_allclose(np.bincount(split.y_train), 0.6 * np.bincount(y), atol=1.5)
