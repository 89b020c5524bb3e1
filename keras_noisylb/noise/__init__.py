"""Noises that are added to the gradient of a large batch."""

from keras_noisylb.noise.base import Noise, noise_scale
from keras_noisylb.noise.diagonal import DiagonalFisher
from keras_noisylb.noise.fixed import Isotropic, Multiplicative
from keras_noisylb.noise.full import FullFisher
from keras_noisylb.noise.kronecker import KroneckerFactored
from keras_noisylb.noise.trace import FisherTrace

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
