"""Types that several modules of the public API share.

Keras and TensorFlow have no type annotations, so type checkers treat `keras.Model` as `Any`.
The annotations still document the expected type.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

# Options: `one_of` checks them at run time.
AddLossReduction = Literal["mean", "sum"]
Conv = Literal["exact", "uncorrelated"]
Engine = Literal["auto", "layerwise", "vectorized_map"]
VectorEstimator = Literal["weighted", "split"]
Estimator = Literal["per_example", VectorEstimator]
Fisher = Literal["empirical", "true"]
Placement = Literal["gradient", "update"]

Tensor = Any  # a TensorFlow tensor, or a symbolic Keras tensor
Scalar = float | Tensor  # a number, or a scalar tensor
Nested = Any  # an array or a tensor, or nested lists and dicts of them
Examples = tuple[np.ndarray, np.ndarray]  # inputs and labels

Loss = str | Callable[..., Any]  # a `keras.losses.Loss`, its name, or a function (y, y_pred)
Sampler = Callable[[Nested, Nested, Any], Nested]  # (y, y_pred, draws) -> y
