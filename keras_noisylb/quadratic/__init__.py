"""The convex quadratic of section 4 and A.2: simulation and exact moments, in float64 NumPy."""

from keras_noisylb.quadratic.bounds import (
    ConvergenceBound,
    rate_constant,
    theorem_bound,
    variance_bound,
)
from keras_noisylb.quadratic.diffusion import (
    diffusion_covariance,
    diffusion_mean,
    squared_hellinger,
    uniform_stability,
)
from keras_noisylb.quadratic.factors import noise_factor
from keras_noisylb.quadratic.problem import Quadratic

__all__ = [
    # Eq. 2 on a quadratic
    "Quadratic",
    "noise_factor",
    # Theorem 4.1 and Table 1
    "ConvergenceBound",
    "rate_constant",
    "theorem_bound",
    "variance_bound",
    # A.2, continuous time
    "diffusion_covariance",
    "diffusion_mean",
    "squared_hellinger",
    "uniform_stability",
]
