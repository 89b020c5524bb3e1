"""Noisy gradient descent on a quadratic loss: simulation and exact moments."""

import dataclasses
import itertools
import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from keras_noisylb.quadratic.factors import symmetric

StepSize = float | Callable[[int], float]


@dataclasses.dataclass(frozen=True, eq=False, init=False)
class Quadratic:
    """L(θ) = ½ θᵀ A θ, minimised with noisy gradients: θ ← θ - α A θ + α C ξ.

    Equation 2 of Wen et al. 2020 in the setting of their section 4. ξ has mean 0 and covariance I,
    and is independent from step to step. A `step_size` is a number or a function `k -> α_k`, where
    k = 0, 1, ... is the number of previous updates.

    Args:
        hessian: A, shape (d, d), symmetric and positive definite.
        noise_factor: C, shape (d, m): the gradient noise has covariance C Cᵀ.

    Attributes:
        eigenvalues: of A, ascending, shape (d,).
        eigenvectors: of A, one per column, shape (d, d).

    Raises:
        ValueError: if the shapes do not match, or `hessian` is not symmetric positive definite.

    Example:
    >>> from keras_noisylb.quadratic import noise_factor
    >>> A = [[2.0, 1.0], [1.0, 2.0]]
    >>> quadratic = Quadratic(A, noise_factor(A, "diagonal"))
    >>> paths = quadratic.simulate([3.0, 3.0], steps=500, step_size=0.1, runs=4, every=10, seed=0)
    >>> paths.shape
    (51, 4, 2)
    >>> quadratic.expected_losses([3.0, 3.0], steps=2, step_size=0.1).round(2).tolist()
    [27.0, 13.27, 6.55]
    """

    hessian: np.ndarray
    noise_factor: np.ndarray
    eigenvalues: np.ndarray = dataclasses.field(init=False, repr=False)
    eigenvectors: np.ndarray = dataclasses.field(init=False, repr=False)

    def __init__(self, hessian: ArrayLike, noise_factor: ArrayLike) -> None:
        matrix = symmetric("hessian", hessian)
        eigenvalues, eigenvectors = np.linalg.eigh(matrix)
        if not eigenvalues[0] > len(matrix) * np.finfo("float64").eps * eigenvalues[-1]:
            raise ValueError(
                "`hessian` must be positive definite. Received: eigenvalues from "
                f"{eigenvalues[0]:.3g} to {eigenvalues[-1]:.3g}. If it is semi-definite, add a "
                "multiple of the identity."
            )
        factor = np.array(noise_factor, dtype="float64")
        if factor.ndim != 2 or len(factor) != len(matrix) or not np.isfinite(factor).all():
            raise ValueError(
                f"`noise_factor` must be a finite matrix with {len(matrix)} rows, like `hessian`. "
                f"Received: shape {factor.shape}. `numpy.eye` and `noise_factor()` create one."
            )
        for name, array in [
            ("hessian", matrix),
            ("noise_factor", factor),
            ("eigenvalues", eigenvalues),
            ("eigenvectors", eigenvectors),
        ]:
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @property
    def noise_covariance(self) -> np.ndarray:
        """C Cᵀ, shape (d, d)."""
        return self.noise_factor @ self.noise_factor.T

    @property
    def noise_variances(self) -> np.ndarray:
        """Variance of the gradient noise along each eigenvector of A, shape (d,)."""
        return np.sum((self.eigenvectors.T @ self.noise_factor) ** 2, axis=1)

    def loss(self, theta: ArrayLike) -> Any:
        """L(θ) of points of shape (..., d), as an array of shape (...)."""
        theta = np.asarray(theta, dtype="float64")
        return 0.5 * np.sum((theta @ self.hessian) * theta, axis=-1)

    def simulate(
        self,
        start: ArrayLike,
        steps: int,
        step_size: StepSize,
        *,
        runs: int = 1,
        every: int = 1,
        seed: int | None = None,
        draw: Callable[..., np.ndarray] = np.random.Generator.normal,
    ) -> np.ndarray:
        """Run the algorithm in several independent runs.

        Args:
            start: θ_0, shape (d,).
            steps: number of updates.
            step_size: α, a number or a function `k -> α_k`.
            runs: number of independent runs.
            every: number of updates between two recorded points.
            seed: seed of `numpy.random.default_rng`.
            draw: function `generator, size=shape -> ξ` that returns independent numbers with mean 0
                and variance 1; Gaussian by default.

        Returns:
            Array of shape (1 + steps // every, runs, d). The first point is `start`.

        Raises:
            ValueError: if the start, a count or a step size is invalid.
        """
        _check_counts(0, steps=steps)
        _check_counts(1, runs=runs, every=every)
        rng = np.random.default_rng(seed)
        theta = np.tile(self.check_start(start), (runs, 1))
        kept = [theta]
        for k, alpha in enumerate(itertools.islice(_step_sizes(step_size), steps), start=1):
            xi = draw(rng, size=(runs, self.noise_factor.shape[1]))
            theta = theta - alpha * (theta @ self.hessian - xi @ self.noise_factor.T)
            if k % every == 0:
                kept.append(theta)
        return np.stack(kept)

    def moments(
        self, start: ArrayLike, steps: int, step_size: StepSize
    ) -> tuple[np.ndarray, np.ndarray]:
        """Exact mean and covariance of θ_k, k = 0, ..., `steps`.

        m_{k+1} = (I - α_k A) m_k and S_{k+1} = (I - α_k A) S_k (I - α_k A) + α_k² C Cᵀ.

        Args:
            start: θ_0, shape (d,).
            steps: number of updates.
            step_size: α, a number or a function `k -> α_k`.

        Returns:
            Arrays of shapes (steps + 1, d) and (steps + 1, d, d).

        Raises:
            ValueError: if the start, a count or a step size is invalid.
        """
        _check_counts(0, steps=steps)
        means = [self.check_start(start)]
        covariances = [np.zeros_like(self.hessian)]
        identity, noise = np.eye(len(self.hessian)), self.noise_covariance
        for alpha in itertools.islice(_step_sizes(step_size), steps):
            contraction = identity - alpha * self.hessian
            means.append(contraction @ means[-1])
            covariances.append(contraction @ covariances[-1] @ contraction + alpha**2 * noise)
        return np.stack(means), np.stack(covariances)

    def expected_losses(self, start: ArrayLike, steps: int, step_size: StepSize) -> np.ndarray:
        """Exact E[L(θ_k)], k = 0, ..., `steps`.

        Along eigenvector p_i, s_i = E[(p_iᵀ θ)²] follows s_i ← (1 - α λ_i)² s_i + α² p_iᵀ C Cᵀ p_i,
        and E[L] = ½ Σ λ_i s_i. The noise enters only through `noise_variances`.

        Args:
            start: θ_0, shape (d,).
            steps: number of updates.
            step_size: α, a number or a function `k -> α_k`.

        Returns:
            Array of shape (steps + 1,).

        Raises:
            ValueError: if the start, a count or a step size is invalid.
        """
        _check_counts(0, steps=steps)
        return np.array(list(itertools.islice(self._losses(start, step_size), steps + 1)))

    def steps_to_reach(
        self, loss: float, start: ArrayLike, step_size: StepSize, max_steps: int = 1_000_000
    ) -> int:
        """Smallest k at which E[L(θ_k)] is at most `loss`: the measurement of Table 1.

        Args:
            loss: ε.
            start: θ_0, shape (d,).
            step_size: α, a number or a function `k -> α_k`.
            max_steps: largest number of updates.

        Returns:
            Integer.

        Raises:
            ValueError: if the start, a count or a step size is invalid, or if the loss is not
                reached within `max_steps` updates.
        """
        _check_counts(0, max_steps=max_steps)
        losses = itertools.islice(self._losses(start, step_size), max_steps + 1)
        for k, expected in enumerate(losses):
            if expected <= loss:
                return k
        raise ValueError(
            f"The expected loss does not reach {loss} in max_steps={max_steps} updates: it is "
            f"{expected:.3g} then. Pass a larger `loss` or `max_steps`, or smaller step sizes."
        )

    def stationary_covariance(self, step_size: float, momentum: float = 0.0) -> np.ndarray:
        """Covariance of θ_k as k → ∞ at a constant step size.

        Without momentum S solves A S + S A - α A S A = α C Cᵀ. With momentum μ the updates are
        v ← μ v - α (A θ - C ξ) and θ ← θ + v, and the Lyapunov equation of (θ, v) is solved.

        Args:
            step_size: α, below 2 (1 + μ) / λ_max.
            momentum: μ, at least 0 and below 1.

        Returns:
            Array of shape (d, d).

        Raises:
            ValueError: if the step size is not in (0, 2 (1 + μ) / λ_max), or the momentum is not
                in [0, 1).
        """
        if not 0 <= momentum < 1:
            raise ValueError(
                f"`momentum` must be at least 0 and below 1. Received: momentum={momentum}"
            )
        bound = 2 * (1 + momentum) / self.eigenvalues[-1]
        if not 0 < step_size < bound:
            raise ValueError(
                f"`step_size` must be in (0, 2 (1 + μ) / λ_max) = (0, {bound:.4g}): outside, the "
                f"parameters diverge. Received: step_size={step_size}"
            )
        if momentum:
            from scipy.linalg import solve_discrete_lyapunov

            identity = np.eye(len(self.hessian))
            force = step_size * self.hessian
            update = np.block([
                [identity - force, momentum * identity],
                [-force, momentum * identity],
            ])
            noise = np.kron(np.ones((2, 2)), step_size**2 * self.noise_covariance)
            return solve_discrete_lyapunov(update, noise)[: len(identity), : len(identity)]
        rates = np.add.outer(self.eigenvalues, self.eigenvalues)
        rates -= step_size * np.outer(self.eigenvalues, self.eigenvalues)
        return self.scale_noise(step_size / rates)

    def scale_noise(self, factors: np.ndarray) -> np.ndarray:
        """C Cᵀ with its entries in the eigenbasis of A multiplied by `factors` (..., d, d)."""
        basis = self.eigenvectors
        return basis @ (factors * (basis.T @ self.noise_covariance @ basis)) @ basis.T

    def check_start(self, start: ArrayLike) -> np.ndarray:
        """The start as a float64 array of shape (d,); a ValueError if it is invalid."""
        array = np.array(start, dtype="float64")
        if array.shape != (len(self.hessian),) or not np.isfinite(array).all():
            raise ValueError(
                f"`start` must be {len(self.hessian)} finite numbers, one per row of `hessian`. "
                f"Received: {array.tolist()}"
            )
        return array

    def _losses(self, start, step_size):
        squares = (self.eigenvectors.T @ self.check_start(start)) ** 2
        variances = self.noise_variances
        for alpha in _step_sizes(step_size):
            yield 0.5 * self.eigenvalues @ squares
            squares = (1 - alpha * self.eigenvalues) ** 2 * squares + alpha**2 * variances


def _step_sizes(step_size):
    for k in itertools.count():
        alpha = step_size(k) if callable(step_size) else step_size
        if not (alpha >= 0 and math.isfinite(alpha)):
            raise ValueError(
                "A step size must be finite and not negative. Received: "
                f"{alpha} at k={k}. Pass a number or a function of k."
            )
        yield alpha


def _check_counts(minimum, **counts):
    for name, count in counts.items():
        if not isinstance(count, numbers.Integral) or count < minimum:
            raise ValueError(
                f"`{name}` must be an integer of at least {minimum}. Received: {name}={count}"
            )
