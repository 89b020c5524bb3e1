"""Interrupted searches end as uninterrupted ones do."""

import keras
import pytest
from test_tuning import DATA, no_record, tuner_of, whole  # noqa: F401 -- two are fixtures

from keras_noisylb.tuning import results


class Interrupt(keras.callbacks.Callback):
    epochs_left = 0

    def on_epoch_begin(self, epoch, logs=None):
        Interrupt.epochs_left -= 1
        if Interrupt.epochs_left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("kind", "epochs_left"), [("random", 4), ("hyperband", 6), ("resumable grid", 4)]
)
def test_an_interrupted_search_ends_as_an_uninterrupted_one(kind, epochs_left, tmp_path, whole):
    Interrupt.epochs_left = epochs_left
    with pytest.raises(KeyboardInterrupt):
        tuner_of(kind, tmp_path).search(**DATA, epochs=2, callbacks=[Interrupt()])
    resumed = tuner_of(kind, tmp_path)
    assert {t.status for t in results(resumed)} == {"COMPLETED", "RUNNING"}
    resumed.search(**DATA, epochs=2)
    assert results(resumed) == whole(kind.split()[-1])[0]


def test_a_grid_search_goes_on_between_trials(tmp_path, whole):
    tuner_of("resumable grid", tmp_path, max_trials=2).search(**DATA, epochs=2)
    resumed = tuner_of("resumable grid", tmp_path)
    assert [t.status for t in results(resumed)] == ["COMPLETED"] * 2
    resumed.search(**DATA, epochs=2)
    found = [(int(t.trial_id), t.values, t.score) for t in results(resumed)]
    assert found == [(int(t.trial_id), t.values, t.score) for t in whole("grid")[0]]


def test_grid_search_of_keras_tuner_still_needs_mending(tmp_path):
    Interrupt.epochs_left = 4
    with pytest.raises(KeyboardInterrupt):
        tuner_of("grid", tmp_path).search(**DATA, epochs=2, callbacks=[Interrupt()])
    resumed = tuner_of("grid", tmp_path)
    with pytest.raises(KeyError) as error:
        resumed.search(**DATA, epochs=2)
    assert error.traceback[-1].path.name == "gridsearch.py"  # KerasTuner's, not ours
