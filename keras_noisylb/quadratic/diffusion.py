"""A.2: the continuous-time limit dθ = -A θ dt + √α C dW, and its uniform stability."""

import itertools
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from keras_noisylb.quadratic.problem import Quadratic


def diffusion_mean(quadratic: Quadratic, time: ArrayLike, start: ArrayLike) -> np.ndarray:
    """E[θ(t)] = e^{-A t} θ_0.

    Args:
        quadratic: `Quadratic`.
        time: t, a number (`numpy.inf` included) or an array of shape (...).
        start: θ_0, shape (d,).

    Returns:
        Array of shape (..., d).

    Raises:
        ValueError: if a time is negative or `start` has another shape.
    """
    decay = np.exp(-_check_time(time)[..., None] * quadratic.eigenvalues)
    basis = quadratic.eigenvectors
    return (decay * (basis.T @ quadratic.check_start(start))) @ basis.T


def diffusion_covariance(quadratic: Quadratic, time: ArrayLike, step_size: float) -> np.ndarray:
    """Σ(t) = α ∫_0^t e^{-A u} C Cᵀ e^{-A u} du, the covariance of θ(t) (Wen et al. 2020, Eq. 17).

    It solves the Lyapunov equation dΣ/dt = -(A Σ + Σ A) + α C Cᵀ with Σ(0) = 0. The integral is
    computed entry by entry in the eigenbasis of A. `numpy.linalg.slogdet` of the result gives the
    determinants of A.2.

    To simulate the equation with Euler's scheme and time step h, pass √(α / h) C to `Quadratic` and
    the step size h to `simulate`. With h = α this is Eq. 2.

    Args:
        quadratic: `Quadratic`.
        time: t, a number (`numpy.inf` for the stationary covariance) or an array of shape (...).
        step_size: α.

    Returns:
        Array of shape (..., d, d).

    Raises:
        ValueError: if a time or the step size is negative.

    Example:
    >>> import numpy as np
    >>> from keras_noisylb.quadratic import Quadratic, noise_factor
    >>> A = [[2.0, 1.0], [1.0, 2.0]]
    >>> quadratic = Quadratic(A, noise_factor(A, "full"))
    >>> covariance = diffusion_covariance(quadratic, np.inf, step_size=0.1)
    >>> bool(np.allclose(covariance, 0.05 * np.eye(2)))
    True
    """
    if not step_size >= 0:
        raise ValueError(f"`step_size` must not be negative. Received: step_size={step_size}")
    rates = np.add.outer(quadratic.eigenvalues, quadratic.eigenvalues)
    integral = -np.expm1(-_check_time(time)[..., None, None] * rates) / rates
    return quadratic.scale_noise(step_size * integral)


def squared_hellinger(
    mean: ArrayLike, covariance: ArrayLike, other_mean: ArrayLike, other_covariance: ArrayLike
) -> float:
    """Squared Hellinger distance between two Gaussians, in [0, 1] (Wen et al. 2020, Eq. 18).

    H² = 1 - |Σ|^¼ |Σ'|^¼ |S|^-½ exp(-⅛ (μ - μ')ᵀ S⁻¹ (μ - μ')) with S = (Σ + Σ') / 2. For densities
    p and q, H² = 1 - ∫ √(p q) = ½ ∫ (√p - √q)².

    Args:
        mean: μ, shape (d,).
        covariance: Σ, shape (d, d), positive definite.
        other_mean: μ'.
        other_covariance: Σ'.

    Returns:
        Float.

    Raises:
        ValueError: if a covariance is not positive definite.

    Example:
    >>> round(squared_hellinger([0.0], [[1.0]], [2.0], [[1.0]]), 4)
    0.3935
    """
    covariance, other_covariance = np.asarray(covariance), np.asarray(other_covariance)
    middle = (covariance + other_covariance) / 2
    difference = np.subtract(mean, other_mean)
    log_affinity = (
        _log_determinant(covariance) / 4
        + _log_determinant(other_covariance) / 4
        - _log_determinant(middle) / 2
        - difference @ np.linalg.solve(middle, difference) / 8
    )
    return float(max(0.0, -np.expm1(log_affinity)))


def uniform_stability(gaussians: Iterable[tuple[ArrayLike, ArrayLike]]) -> float:
    """The stability bound of Eq. 16: the largest distance H between distributions of θ.

    Each data set gives one distribution. H is the square root of `squared_hellinger`. For a loss
    with values in [0, R], the expectations under any two of the distributions differ by at most
    √2 R H.

    Args:
        gaussians: pairs (mean, covariance), one for each data set.

    Returns:
        Float.

    Raises:
        ValueError: if a covariance is not positive definite.
    """
    pairs = itertools.combinations(gaussians, 2)
    return max((squared_hellinger(*p, *q) ** 0.5 for p, q in pairs), default=0.0)


def _log_determinant(covariance):
    try:
        return 2 * np.sum(np.log(np.diagonal(np.linalg.cholesky(covariance))))
    except np.linalg.LinAlgError:
        raise ValueError(
            "A covariance must be positive definite. Received: "
            f"{covariance.tolist()}. Without noise, and at time 0, θ has no density to compare."
        ) from None


def _check_time(time):
    time = np.asarray(time, dtype="float64")
    if not np.all(time >= 0):
        raise ValueError(f"`time` must not be negative. Received: time={time}")
    return time
