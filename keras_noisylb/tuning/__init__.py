"""Hyperparameter search with KerasTuner: `pip install 'keras-noisylb[tuner]'`."""

try:
    import keras_tuner  # noqa: F401
except ImportError as error:
    raise ImportError(
        "keras_noisylb.tuning needs KerasTuner, which is not installed: "
        "pip install 'keras-noisylb[tuner]'"
    ) from error

from keras_noisylb.tuning.grid import GridSearch
from keras_noisylb.tuning.hypermodel import NoisyHyperModel
from keras_noisylb.tuning.results import TrialResult, results

__all__ = ["GridSearch", "NoisyHyperModel", "TrialResult", "results"]
