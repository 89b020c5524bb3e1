"""What is added to the gradient of a large batch."""

from keras_noisylb.noise.base import Noise, noise_scale
from keras_noisylb.noise.fisher import DiagonalFisher, FisherTrace, FullFisher
from keras_noisylb.noise.fixed import Isotropic, Multiplicative
from keras_noisylb.noise.kronecker import KroneckerFactored

__all__ = [
    "DiagonalFisher",
    "FisherTrace",
    "FullFisher",
    "Isotropic",
    "KroneckerFactored",
    "Multiplicative",
    "Noise",
    "noise_scale",
]
