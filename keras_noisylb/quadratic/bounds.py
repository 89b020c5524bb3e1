"""Theorem 4.1: step sizes and bound, a tighter bound, and the exact rate."""

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from keras_noisylb.quadratic.problem import Quadratic


@dataclasses.dataclass(frozen=True)
class ConvergenceBound:
    """E[L(θ_k)] ≤ ν / (k + γ) for the step sizes α_k = 2 / ((k + γ) λ_min), k = 0, 1, ...

    `theorem_bound` and `variance_bound` create one. Calling it with k returns the bound.

    Args:
        nu: ν.
        gamma: γ.
        smallest_eigenvalue: λ_min.
    """

    nu: float
    gamma: float
    smallest_eigenvalue: float

    def __call__(self, k: float | np.ndarray) -> Any:
        return self.nu / (k + self.gamma)

    def step_size(self, k: float | np.ndarray) -> Any:
        """α_k, for an integer or an array of them."""
        return 2 / ((k + self.gamma) * self.smallest_eigenvalue)

    def steps_to_reach(self, loss: float) -> int:
        """Smallest k at which the bound is at most `loss` > 0: the prediction of Table 1."""
        if not loss > 0:
            raise ValueError(
                f"`loss` must be positive: the bound is never 0. Received: loss={loss}"
            )
        return max(0, math.ceil(self.nu / loss - self.gamma))


def theorem_bound(
    quadratic: Quadratic, start: ArrayLike, gamma: float | None = None
) -> ConvergenceBound:
    """The bound of Theorem 4.1: ν = max(2 Tr(Cᵀ A C) / λ_min², γ L(θ_0)).

    The theorem requires α_k ≤ 1 / λ_max from k = 0 on. The schedule has α_0 = 2 / (γ λ_min), so
    γ must be at least 2 λ_max / λ_min (Wen et al. 2020, A.1).

    Args:
        quadratic: `Quadratic`.
        start: θ_0, shape (d,).
        gamma: γ; by default the smallest allowed value.

    Returns:
        `ConvergenceBound`.

    Raises:
        ValueError: if γ is too small or `start` has another shape.

    Example:
    >>> import numpy as np
    >>> from keras_noisylb.quadratic import Quadratic
    >>> quadratic = Quadratic(np.eye(2), 0.1 * np.eye(2))
    >>> bound = theorem_bound(quadratic, [1.0, 1.0])
    >>> bound.nu, bound.gamma, bound.steps_to_reach(0.001)
    (2.0, 2.0, 1998)
    >>> quadratic.steps_to_reach(0.001, [1.0, 1.0], bound.step_size)
    13
    """
    gamma = _check_gamma(quadratic, gamma)
    one_step = quadratic.eigenvalues @ quadratic.noise_variances
    initial = float(quadratic.loss(quadratic.check_start(start)))
    smallest = float(quadratic.eigenvalues[0])
    return ConvergenceBound(
        max(2 * float(one_step) / smallest**2, gamma * initial), gamma, smallest
    )


def variance_bound(
    quadratic: Quadratic, start: ArrayLike, gamma: float | None = None
) -> ConvergenceBound:
    """A bound by the total variance: ν = Σ_i max(2 r_i v_i / ((2 r_i - 1) λ_min), γ L_i(θ_0)).

    It applies the induction of Theorem 4.1 along each eigenvector p_i of A: r_i = λ_i / λ_min, v_i
    is the variance of the noise along p_i, and L_i = ½ λ_i (p_iᵀ θ)². Therefore
    ν ≤ 2 Tr(C Cᵀ) / λ_min + γ L(θ_0), which does not contain the condition number; the theorem's
    Tr(Cᵀ A C) / λ_min² can contain it. Conditions and step sizes are those of the theorem.
    `docs/quadratic.md` has the proof.

    Args:
        quadratic: `Quadratic`.
        start: θ_0, shape (d,).
        gamma: γ; by default the smallest allowed value.

    Returns:
        `ConvergenceBound`.

    Raises:
        ValueError: if γ is too small or `start` has another shape.
    """
    gamma = _check_gamma(quadratic, gamma)
    values = quadratic.eigenvalues
    ratios = values / values[0]
    noise = 2 * ratios * quadratic.noise_variances / ((2 * ratios - 1) * values[0])
    initial = 0.5 * values * (quadratic.eigenvectors.T @ quadratic.check_start(start)) ** 2
    nu = float(np.sum(np.maximum(noise, gamma * initial)))
    return ConvergenceBound(nu, gamma, float(values[0]))


def rate_constant(quadratic: Quadratic) -> float:
    """Limit of (k + γ) E[L(θ_k)] for the theorem's step sizes and any γ and θ_0.

    It equals (2 / λ_min) Σ_i v_i λ_i / (4 λ_i - λ_min), where v_i is the variance of the noise
    along eigenvector i of A. It is between 1/2 and 2/3 of Tr(C Cᵀ) / λ_min for every structure of
    C. A small loss ε is reached after about `rate_constant(quadratic) / ε` updates.

    Args:
        quadratic: `Quadratic`.

    Returns:
        Float.
    """
    values = quadratic.eigenvalues
    weights = values / (4 * values - values[0])
    return float(2 / values[0] * quadratic.noise_variances @ weights)


def _check_gamma(quadratic, gamma):
    smallest_gamma = float(2 * quadratic.eigenvalues[-1] / quadratic.eigenvalues[0])
    if gamma is None:
        return smallest_gamma
    if not smallest_gamma * (1 - 1e-12) <= gamma < math.inf:
        raise ValueError(
            f"`gamma` must be finite and at least 2 λ_max / λ_min = {smallest_gamma:.6g}, so that "
            f"no step size exceeds 1 / λ_max. Received: gamma={gamma}. Leave it out for this value."
        )
    return float(gamma)
