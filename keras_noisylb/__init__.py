"""Large-batch training with structured covariance noise, for Keras 3 on TensorFlow."""

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"keras_noisylb needs Keras' TensorFlow backend, but Keras runs on "
        f"{keras.backend.backend()!r}: set the environment variable KERAS_BACKEND=tensorflow "
        "before Keras is imported."
    )

__version__ = "0.1.0"
