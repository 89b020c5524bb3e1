"""Noise factors: the paper's choices of C for a Fisher matrix."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Structure = Literal["full", "diagonal", "trace", "none"]


def noise_factor(fisher: ArrayLike, structure: Structure, multiplier: float = 1.0) -> np.ndarray:
    """A factor C of the noise covariance, from a Fisher matrix (on the quadratic, the Hessian).

    "full" is the symmetric √F (Eq. 5), "diagonal" √(diag F) (Eq. 6), "trace" √(Tr(F) / d) I and
    "none" 0. The first three have the same total variance Tr(C Cᵀ) = Tr F (Eq. 7).

    Args:
        fisher: F, shape (d, d), symmetric and positive semi-definite.
        structure: "full", "diagonal", "trace" or "none".
        multiplier: λ of C_λ = λ C (A.2).

    Returns:
        Array of shape (d, d).

    Raises:
        ValueError: if `fisher` is not symmetric positive semi-definite, or `structure` is unknown.

    Example:
    >>> noise_factor([[4.0, 1.0], [1.0, 9.0]], "diagonal").tolist()
    [[2.0, 0.0], [0.0, 3.0]]
    """
    matrix = symmetric("fisher", fisher)
    values, basis = np.linalg.eigh(matrix)
    if values[0] < -1e-10 * abs(values[-1]):
        raise ValueError(
            "`fisher` must be positive semi-definite, like a mean of g gᵀ. Received: a matrix with "
            f"the eigenvalue {values[0]:.3g}"
        )
    if structure == "full":
        return multiplier * (basis * np.sqrt(np.maximum(values, 0))) @ basis.T
    diagonals = {
        "diagonal": np.diagonal(matrix),
        "trace": np.full(len(matrix), np.trace(matrix) / len(matrix)),
        "none": np.zeros(len(matrix)),
    }
    if structure not in diagonals:
        raise ValueError(
            "`structure` must be one of 'full', 'diagonal', 'trace', 'none'. Received: "
            f"structure={structure!r}"
        )
    return multiplier * np.diag(np.sqrt(np.maximum(diagonals[structure], 0)))


def symmetric(name, matrix):
    """Check that a matrix is symmetric.

    Returns:
        A float64 copy, shape (d, d).

    Raises:
        ValueError: if it is not a finite symmetric matrix.
    """
    matrix = np.array(matrix, dtype="float64")
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] > 0
    finite = square and np.isfinite(matrix).all()
    if not finite or np.max(np.abs(matrix - matrix.T)) > 1e-10 * np.max(np.abs(matrix)):
        raise ValueError(
            f"`{name}` must be a finite symmetric matrix of shape (d, d). Received: shape "
            f"{matrix.shape}. (X + Xᵀ) / 2 is the symmetric part of X."
        )
    return matrix
