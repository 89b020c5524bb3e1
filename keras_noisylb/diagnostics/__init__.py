"""Measurements of a model at fixed weights, without training.

Hessian eigenvalues and trace, calibration, Fisher norms, gradient variance, critical batch size.
"""

from keras_noisylb.diagnostics.calibration import Sharpness, fit_temperature, sharpness
from keras_noisylb.diagnostics.critical import CriticalBatchSize, critical_batch_size
from keras_noisylb.diagnostics.fisher import FisherNorms, fisher_norms
from keras_noisylb.diagnostics.folding import fold_batch_norm
from keras_noisylb.diagnostics.hessian import Hessian, hessian_vector_product
from keras_noisylb.diagnostics.spectrum import (
    Eigenpairs,
    TraceEstimate,
    hessian_trace,
    largest_eigenvalues,
)
from keras_noisylb.diagnostics.variance import GradientVariance, gradient_variance

__all__ = [
    # Hessians
    "Eigenpairs",
    "Hessian",
    "TraceEstimate",
    "hessian_trace",
    "hessian_vector_product",
    "largest_eigenvalues",
    # gradients, sections 3 and 5.2
    "CriticalBatchSize",
    "FisherNorms",
    "GradientVariance",
    "critical_batch_size",
    "fisher_norms",
    "gradient_variance",
    # calibration, section 5.3
    "Sharpness",
    "fit_temperature",
    "fold_batch_norm",
    "sharpness",
]
