"""Problems of the quadratic testbed, and distances in standard errors."""

import numpy as np

from keras_noisylb.quadratic import (
    Quadratic,
    noise_factor,
)

STRUCTURES = ("full", "diagonal", "trace", "none")


def random_hessian(rng, size=4, condition=20.0):
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    matrix = (basis * np.geomspace(1, condition, size)) @ basis.T
    return (matrix + matrix.T) / 2


def of(hessian, structure, multiplier=1.0):
    return Quadratic(hessian, noise_factor(hessian, structure, multiplier))


def one_step_trace(quadratic):
    return np.trace(quadratic.noise_factor.T @ quadratic.hessian @ quadratic.noise_factor)


def deviations(samples, mean):
    """Distance of a sample mean (first axis) from `mean`, in standard errors."""
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    return np.max(np.abs(samples.mean(axis=0) - mean) / error)


def moment_deviations(samples, mean, covariance):
    centred = samples - mean
    products = centred[:, :, None] * centred[:, None, :]
    return deviations(samples, mean), deviations(products, covariance)
