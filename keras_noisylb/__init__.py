"""Large-batch training with structured covariance noise, for Keras 3 on TensorFlow."""

import importlib.metadata
import os

_backend = os.environ.get("KERAS_BACKEND", "tensorflow")
if _backend == "tensorflow":  # importing Keras with another one fails in its own words
    import keras

    _backend = keras.backend.backend()
if _backend != "tensorflow":
    raise ImportError(
        f"keras_noisylb needs Keras' TensorFlow backend, but Keras runs on {_backend!r}: set the "
        "environment variable KERAS_BACKEND=tensorflow before Keras is imported."
    )

from keras_noisylb import data, diagnostics, gradients, models, noise, quadratic, schedules
from keras_noisylb.advising.advise import advise
from keras_noisylb.batch_change import BatchChange
from keras_noisylb.callbacks import GradientNoiseMonitor
from keras_noisylb.experiments.python_api import compare
from keras_noisylb.layers import GhostBatchNormalization, replace_batch_norm
from keras_noisylb.noise import (
    DiagonalFisher,
    FisherTrace,
    FullFisher,
    Isotropic,
    KroneckerFactored,
    Multiplicative,
    noise_scale,
)
from keras_noisylb.optimizer import NoisyOptimizer
from keras_noisylb.reporting.report import report
from keras_noisylb.schedules import (
    WarmupStepDecay,
    linear_scaling,
    matched_multiplier,
    noise_temperature,
    sqrt_scaling,
)
from keras_noisylb.training.loop import noisy_gradients
from keras_noisylb.training.model import NoisyModel
from keras_noisylb.training.workers import multi_worker_strategy

__version__ = importlib.metadata.version("keras-noisylb")

__all__ = [
    # training with noise
    "NoisyModel",
    "NoisyOptimizer",
    "noisy_gradients",
    "multi_worker_strategy",
    "report",
    "advise",
    "compare",
    # noises
    "DiagonalFisher",
    "FisherTrace",
    "FullFisher",
    "Isotropic",
    "KroneckerFactored",
    "Multiplicative",
    "noise",
    "noise_scale",
    # callbacks and schedules
    "BatchChange",
    "GradientNoiseMonitor",
    "WarmupStepDecay",
    "linear_scaling",
    "matched_multiplier",
    "noise_temperature",
    "schedules",
    "sqrt_scaling",
    # layers and models
    "GhostBatchNormalization",
    "models",
    "replace_batch_norm",
    # statistics, theory and data
    "data",
    "diagnostics",
    "gradients",
    "quadratic",
]
