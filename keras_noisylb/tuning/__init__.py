"""Hyperparameter search with KerasTuner (extra `tuner`)."""

try:
    import keras_tuner  # noqa: F401
except ImportError as error:
    raise ImportError(
        "keras_noisylb.tuning needs KerasTuner, which is not installed. In the clone of "
        "keras_noisylb run: pip install -e '.[tuner]'"
    ) from error

from keras_noisylb.tuning.grid import GridSearch
from keras_noisylb.tuning.hypermodel import NoisyHyperModel
from keras_noisylb.tuning.trials import TrialResult, results

__all__ = ["GridSearch", "NoisyHyperModel", "TrialResult", "results"]
