"""`noisylb` on the data of test_compare, killed in the second epoch of LB + diagonal."""

import os
import signal

import pytest
import test_compare

from keras_noisylb.experiments import journal
from noisylb.main import main

finish_batch = journal.Journal.on_train_batch_end


def finish_batch_and_die(callback, batch, logs=None):
    finish_batch(callback, batch, logs)
    if callback.folder.name == "lb-diagonal-seed0" and callback.epoch == 1:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    patch = pytest.MonkeyPatch()
    patch.setattr(journal, "PAUSE", 0)
    patch.setattr(journal.Journal, "on_train_batch_end", finish_batch_and_die)
    test_compare.use_small_data(patch)
    main()
