import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_noisylb.experiments import journal

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)
# Two test processes share two cores.
tf.config.threading.set_intra_op_parallelism_threads(1)


def set_aside():
    """Exclude all current objects from garbage collection.

    `clear_session` searches all objects of all imported modules and earlier tests otherwise.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_finish():
    set_aside()


@pytest.fixture(autouse=True, scope="module")
def earlier_tests_set_aside():
    yield
    set_aside()


@pytest.fixture(autouse=True, scope="session")
def states_of_all_epochs():
    """Short runs that are interrupted continue after their last epoch."""
    journal.PAUSE = 0


@pytest.fixture
def float64():
    for dtype in ("float64", "float32"):
        keras.config.set_floatx(dtype)
        keras.config.set_dtype_policy(dtype)
        if dtype == "float64":
            yield


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
