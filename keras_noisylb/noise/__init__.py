"""What is added to the gradient of a large batch."""

from keras_noisylb.noise.base import Noise, noise_scale
from keras_noisylb.noise.fisher import DiagonalFisher

__all__ = ["DiagonalFisher", "Noise", "noise_scale"]
