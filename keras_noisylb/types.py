"""Types that several modules of the public API share.

Keras and TensorFlow carry no types: a type checker takes `keras.Model` for `Any`, and in
annotations it tells the reader what is meant.
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

Tensor = Any  # of TensorFlow, or symbolic
Scalar = float | Tensor  # a number, or a scalar tensor
Nested = Any  # arrays or tensors, or lists and dicts of them
Examples = tuple[np.ndarray, np.ndarray]  # inputs and labels

Loss = str | Callable[..., Any]  # a `keras.losses.Loss`, its name, or a function (y, y_pred)
Sampler = Callable[[Nested, Nested, Any], Nested]  # (y, y_pred, draws) -> y
