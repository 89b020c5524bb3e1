"""What a trained model's loss surface looks like: Hessians, and the calibration that they need."""

from keras_noisylb.diagnostics.calibration import Sharpness, fit_temperature, sharpness
from keras_noisylb.diagnostics.folding import fold_batch_norm
from keras_noisylb.diagnostics.hessian import Hessian, hessian_vector_product
from keras_noisylb.diagnostics.spectrum import (
    Eigenpairs,
    TraceEstimate,
    hessian_trace,
    largest_eigenvalues,
)

__all__ = [
    # Hessians
    "Eigenpairs",
    "Hessian",
    "TraceEstimate",
    "hessian_trace",
    "hessian_vector_product",
    "largest_eigenvalues",
    # calibration, section 5.3
    "Sharpness",
    "fit_temperature",
    "fold_batch_norm",
    "sharpness",
]
