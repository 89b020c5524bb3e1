"""Largest eigenvalues and trace of a Hessian, from Hessian-vector products."""

import dataclasses
import warnings
from typing import Any

import keras
import numpy as np

from keras_noisylb.diagnostics.hessian import Hessian
from keras_noisylb.diagnostics.progress import progress_bar
from keras_noisylb.types import Loss, Nested

KRYLOV_SIZE = 20  # scipy's smallest default number of Lanczos vectors, all kept in memory


@dataclasses.dataclass(frozen=True)
class Eigenpairs:
    """The k algebraically largest eigenvalues of a Hessian.

    Args:
        eigenvalues: array (k,), descending.
        eigenvectors: k unit vectors, each a list aligned with `model.trainable_variables`.
        residuals: array (k,) of ‖H v − λ v‖. H has an eigenvalue within this distance of λ.
        num_products: number of Hessian-vector products, including those for the residuals.
    """

    eigenvalues: np.ndarray
    eigenvectors: list[list[np.ndarray]]
    residuals: np.ndarray
    num_products: int


@dataclasses.dataclass(frozen=True)
class TraceEstimate:
    """An estimate of the trace of a Hessian.

    Args:
        mean: the unbiased estimate.
        standard_error: its standard error.
        num_samples: number of Hessian-vector products.
    """

    mean: float
    standard_error: float
    num_samples: int


def largest_eigenvalues(
    model: keras.Model,
    loss: Loss,
    x: Any,
    y: Nested = None,
    *,
    k: int = 1,
    tolerance: float = 1e-4,
    max_products: int = 500,
    seed: int = 0,
    verbose: int = 1,
    **options: Any,
) -> Eigenpairs:
    """The largest eigenvalues of the Hessian of a data set's mean loss.

    They are computed by the implicitly restarted Lanczos method of `scipy.sparse.linalg.eigsh`,
    which keeps max(2k + 1, 20) float64 vectors of the size of the model. A Hessian that is not
    larger than this number is computed as a dense matrix.

    Args:
        model: a Keras model.
        loss: a Keras loss, its name, or a function `(y, y_pred)`.
        x: inputs, or a `tf.data.Dataset`; see `Hessian`.
        y: targets; `None` with a dataset.
        k: number of eigenvalues.
        tolerance: relative accuracy of the eigenvalues; float32 models reach about 1e-6.
        max_products: largest number of Hessian-vector products, each a pass over the data.
        seed: seed of the start vector.
        verbose: 0, or 1 for a progress bar.
        **options: `batch_size`, `training` and `regularization` of `Hessian`.

    Returns:
        An `Eigenpairs`.

    Raises:
        ValueError: if `k` is not between 1 and the number of parameters, or as in `Hessian`.
        RuntimeError: if the eigenvalues have not converged after `max_products`.

    Example:
    ```python
    pairs = largest_eigenvalues(model, "mse", x_train, y_train, k=2)
    print(pairs.eigenvalues, pairs.residuals)
    ```
    """
    import scipy.sparse.linalg  # here, because it takes long to import

    hessian = Hessian(model, loss, x, y, **options)
    size, krylov_size = hessian.size, max(2 * k + 1, KRYLOV_SIZE)
    if not 1 <= k <= size:
        raise ValueError(f"`k` must be between 1 and the {size} parameters. Received: k={k}")
    count = 0
    with progress_bar("Hessian-vector products", None, verbose) as advance:

        def matvec(vector):
            nonlocal count
            if count == max_products:
                raise RuntimeError(
                    f"The eigenvalues have not converged to tolerance={tolerance} in max_products="
                    f"{max_products} products. Raise one of the two; a float32 model reaches about "
                    "1e-6."
                )
            count += 1
            product = hessian.matvec(np.ravel(vector))
            advance()
            return product

        start = np.random.default_rng(seed).normal(size=size)
        if size <= krylov_size:
            dense = np.stack([matvec(unit) for unit in np.eye(size)])
            values, vectors = np.linalg.eigh((dense + dense.T) / 2)
        elif not matvec(start).any():  # H = 0, where ARPACK finds no start vector
            values, vectors = np.zeros(k), np.eye(size, k)
        else:
            operator = scipy.sparse.linalg.LinearOperator((size, size), matvec, dtype="float64")
            values, vectors = scipy.sparse.linalg.eigsh(
                operator, k, which="LA", v0=start, tol=tolerance, ncv=krylov_size, maxiter=size
            )
        order = np.argsort(values)[::-1][:k]
        values, vectors = values[order], vectors[:, order].T
    pairs = zip(values, vectors, strict=True)
    residuals = [np.linalg.norm(hessian.matvec(vector) - value * vector) for value, vector in pairs]
    eigenvectors = [hessian.split(vector) for vector in vectors]
    return Eigenpairs(values, eigenvectors, np.array(residuals), count + k)


def hessian_trace(
    model: keras.Model,
    loss: Loss,
    x: Any,
    y: Nested = None,
    *,
    tolerance: float = 0.05,
    max_samples: int = 100,
    seed: int = 0,
    verbose: int = 1,
    **options: Any,
) -> TraceEstimate:
    """The trace of the Hessian of a data set's mean loss.

    Hutchinson's estimator: the mean of zᵀ H z over vectors z of random signs. Each sample has the
    variance 2 Σ_{i≠j} H_ij². At least ten samples are drawn, until the standard error is at most
    `tolerance` times the mean.

    Args:
        model: a Keras model.
        loss: a Keras loss, its name, or a function `(y, y_pred)`.
        x: inputs, or a `tf.data.Dataset`; see `Hessian`.
        y: targets; `None` with a dataset.
        tolerance: relative standard error at which to stop; 0 draws all samples.
        max_samples: largest number of samples, each a pass over the data.
        seed: seed of the signs.
        verbose: 0, or 1 for a progress bar.
        **options: `batch_size`, `training` and `regularization` of `Hessian`.

    Returns:
        A `TraceEstimate`. Warns if `max_samples` samples did not reach the tolerance.

    Raises:
        ValueError: if `max_samples` is less than 2, or as in `Hessian`.

    Example:
    ```python
    trace = hessian_trace(model, "mse", x_train, y_train, tolerance=0.02)
    print(f"{trace.mean:.3g} ± {trace.standard_error:.2g}")
    ```
    """
    if max_samples < 2:
        raise ValueError(
            f"A standard error needs at least 2 samples. Received: max_samples={max_samples}"
        )
    hessian = Hessian(model, loss, x, y, **options)
    rng, error = np.random.default_rng(seed), np.inf
    samples: list[float] = []
    with progress_bar("Hutchinson samples", max_samples, verbose) as advance:
        while len(samples) < max_samples:
            signs = rng.choice([-1.0, 1.0], hessian.size)
            samples.append(signs @ hessian.matvec(signs))
            advance()
            if len(samples) >= min(10, max_samples):
                error = np.std(samples, ddof=1) / np.sqrt(len(samples))
                if error <= tolerance * abs(np.mean(samples)):
                    break
    mean = np.mean(samples)
    if error > tolerance * abs(mean) and tolerance > 0:
        warnings.warn(
            f"The trace {mean:.4g} has a standard error of {error:.2g} after {max_samples} "
            f"samples, above tolerance={tolerance}. Raise `max_samples` for a better estimate.",
            stacklevel=2,
        )
    return TraceEstimate(float(mean), float(error), len(samples))
