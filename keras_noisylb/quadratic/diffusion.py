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

    It solves the Lyapunov equation dΣ/dt = -(A Σ + Σ A) + α C Cᵀ, Σ(0) = 0; the integral is done
    entry by entry in the eigenbasis of A. `numpy.linalg.slogdet` gives the determinants of A.2.

    To simulate the equation by Euler's scheme with time step h, give √(α / h) C to `Quadratic` and
    h to `simulate`; h = α is Eq. 2 itself.

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

    H² = 1 - |Σ|^¼ |Σ'|^¼ |S|^-½ exp(-⅛ (μ - μ')ᵀ S⁻¹ (μ - μ')) with S = (Σ + Σ') / 2: one minus
    ∫ √(p q), which is half of ∫ (√p - √q)².

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
    """The stability bound of Eq. 16: the largest √H² among the laws of θ for several data sets.

    The expectations of a loss with values in [0, R] under any two of these laws differ by at most
    √2 R times that.

    Args:
        gaussians: list of pairs (mean, covariance), one per data set.

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
            "A covariance must be positive definite; without noise or at time 0 there is no "
            f"density to compare. Received: {covariance.tolist()}"
        ) from None


def _check_time(time):
    time = np.asarray(time, dtype="float64")
    if not np.all(time >= 0):
        raise ValueError(f"`time` must not be negative. Received: time={time}")
    return time
