"""The largest Hessian eigenvalue after the calibration of section 5.3 (Wen et al. 2020)."""

import dataclasses
import warnings
from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import ArrayLike

from keras_noisylb.diagnostics.batches import batched
from keras_noisylb.diagnostics.folding import fold_batch_norm
from keras_noisylb.diagnostics.spectrum import Eigenpairs, largest_eigenvalues
from keras_noisylb.types import Nested


@dataclasses.dataclass(frozen=True)
class Sharpness:
    """The largest eigenvalue of a calibrated model's Hessian.

    Args:
        largest_eigenvalue: the sharpness.
        temperature: T; the logits are divided by it.
        eigenpairs: eigenvectors, residuals and number of products.
        model: the calibrated model, from inputs to logits / T. The Hessian is taken of its loss.
    """

    largest_eigenvalue: float
    temperature: float
    eigenpairs: Eigenpairs
    model: keras.Model


def fit_temperature(logits: ArrayLike, y: ArrayLike) -> float:
    """The temperature T that minimises the cross-entropy of softmax(logits / T).

    Temperature scaling of Guo et al. 2017 (https://arxiv.org/abs/1706.04599). The cross-entropy is
    convex in 1 / T, so its derivative has a single root.

    Args:
        logits: array (..., C), such as `model.predict(x)` of a model without softmax.
        y: integer labels of shape (...) or (..., 1), or probabilities of shape (..., C).

    Returns:
        T, a positive number.

    Raises:
        ValueError: if the shapes do not match, if `logits` are probabilities, or if no positive
            finite T is optimal.

    Example:
    >>> round(fit_temperature([[2.0, 0.0]] * 4, [0, 0, 0, 1]), 6)
    1.820478
    """
    from scipy import optimize, special  # here, because it takes long to import

    logits, y = np.asarray(logits, "float64"), np.asarray(y)
    label_shapes = (logits.shape[:-1], (*logits.shape[:-1], 1), logits.shape)
    if logits.ndim < 2 or logits.shape[-1] < 2 or y.shape not in label_shapes:
        raise ValueError(
            "`logits` must be of shape (N, C), C > 1, and `y` of shape (N,), (N, 1) or (N, C). "
            f"Received: {logits.shape} and {y.shape}"
        )
    labels = y.reshape(-1, logits.shape[-1]) if y.shape == logits.shape else None
    logits = logits.reshape(-1, logits.shape[-1])
    if not len(logits) or not np.isfinite(logits).all():
        raise ValueError(
            "`logits` must be finite numbers for at least one example. Received: "
            f"{len(logits)} examples, {np.sum(~np.isfinite(logits))} values NaN or infinite"
        )
    if (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1):
        raise ValueError(
            "`logits` are probabilities: every row is nonnegative and sums to 1. Pass the outputs "
            "of a model without softmax, or np.log(probabilities)."
        )
    if labels is None:
        index = y.reshape(-1, 1).astype("int64")
        if index.min() < 0 or index.max() >= logits.shape[1]:
            raise ValueError(
                f"Labels must be between 0 and {logits.shape[1] - 1}. Received: labels between "
                f"{index.min()} and {index.max()}"
            )
        target = np.take_along_axis(logits, index, axis=1)[:, 0]
    else:
        target = np.sum(labels * logits, axis=1)

    def slope(inverse):
        """Derivative of the cross-entropy with respect to 1 / T."""
        weights = special.softmax(inverse * logits, axis=1)
        return np.mean(np.sum(weights * logits, axis=1) - target)

    if slope(0.0) >= 0:
        raise ValueError(
            "No positive temperature is optimal: the logits predict the labels no better than "
            "equal probabilities do. Train the model, or check that the labels match the logits."
        )
    if np.mean(logits.max(axis=1) - target) <= 0:
        raise ValueError(
            "No positive temperature is optimal: every example is classified correctly, so the "
            "cross-entropy keeps falling as T goes to 0. Fit the temperature on test data."
        )
    upper = 1 / np.std(logits)
    while slope(upper) < 0:
        upper *= 2
    return 1 / optimize.brentq(slope, 0, upper, xtol=1e-14 * upper)


def sharpness(
    model: keras.Model,
    loss: keras.losses.Loss,
    x: Any,
    y: Nested = None,
    *,
    temperature_data: Any = None,
    fold_temperature: bool = False,
    batch_size: int = 256,
    **options: Any,
) -> Sharpness:
    """The largest Hessian eigenvalue of a calibrated model (Wen et al. 2020, Figure 5b).

    The steps of section 5.3: batch normalisation is folded into the weights (`fold_batch_norm`), a
    temperature T is fitted on the cross-entropy of the test set (`fit_temperature`), and the logits
    are divided by T. The result is the largest Hessian eigenvalue of the mean loss over `x` and
    `y`, in inference mode. The paper does not say on which data it takes the Hessian.

    After folding, the scale of weights before a normalisation has no influence on the eigenvalue.
    Multiplying the weights of the logits' layer by c does not change the calibrated loss, but
    divides that layer's block of the Hessian by c². With `fold_temperature=True` these weights are
    divided by T instead, which makes the eigenvalue invariant to c as well.

    One dependence on scale remains: a layer, or γ and β, can be multiplied by a factor and the next
    layer after a ReLU divided by it. This can make the eigenvalue of the same function arbitrarily
    large (Dinh et al. 2017, https://arxiv.org/abs/1703.04933). Compare only models with the same
    architecture and the same kind of training.

    Args:
        model: a Sequential or Functional model from inputs to logits.
        loss: a `keras.losses.SparseCategoricalCrossentropy` or `CategoricalCrossentropy`, with
            `from_logits=True`.
        x: inputs of the Hessian's data set, or a `tf.data.Dataset`; see `Hessian`.
        y: targets; `None` with a dataset.
        temperature_data: tuple (x, y), or a dataset, on which T is fitted: in the paper the test
            set. By default `x` and `y`.
        fold_temperature: whether to fold T into the weights of the layer that computes the logits.
        batch_size: number of examples that are processed together.
        **options: further options of `largest_eigenvalues`.

    Returns:
        A `Sharpness`; `model` is not changed. Warns about normalisations that cannot be folded.

    Raises:
        ValueError: if the loss is not one of these two, if T cannot be folded into the layer of the
            logits, or as in the functions named above.

    Example:
    ```python
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    result = sharpness(model, loss, x_train, y_train, temperature_data=(x_test, y_test))
    print(result.largest_eigenvalue, result.temperature)
    ```
    """
    crossentropies = (
        keras.losses.CategoricalCrossentropy | keras.losses.SparseCategoricalCrossentropy
    )
    if not isinstance(loss, crossentropies) or not loss.get_config()["from_logits"]:
        raise ValueError(
            "`loss` must be a keras.losses.SparseCategoricalCrossentropy(from_logits=True), or a "
            "CategoricalCrossentropy, because the temperature divides the logits of a softmax. "
            f"Received: {loss!r}"
        )
    folded = fold_batch_norm(model)
    if len(folded.outputs) != 1:
        raise ValueError(
            f"`model` must have one output, the logits. Received: outputs {folded.outputs}"
        )
    if temperature_data is None:
        temperature_data = (x, y)
    elif not isinstance(temperature_data, tuple):
        temperature_data = (temperature_data, None)
    inputs, targets = temperature_data
    batches = [
        (folded.predict_on_batch(batch[0]), batch[1])
        for batch in batched(inputs, targets, batch_size)
    ]
    if not batches:
        raise ValueError("`temperature_data` is empty: there is nothing to fit a temperature on.")
    logits, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    temperature = fit_temperature(logits, labels)
    calibrated = _divide_logits(folded, temperature, fold_temperature)
    pairs = largest_eigenvalues(calibrated, loss, x, y, batch_size=batch_size, **options)
    return Sharpness(float(pairs.eigenvalues[0]), temperature, pairs, calibrated)


def _divide_logits(model, temperature, fold):
    logits = model.outputs[0]
    options = {"name": "temperature", "dtype": logits.dtype}
    if not fold:
        return keras.Model(model.input, layers.Rescaling(1 / temperature, **options)(logits))
    # A batch normalisation with standard deviation T divides by T, and can be folded.
    norm = layers.BatchNormalization(epsilon=0.0, center=False, scale=False, **options)
    divided = keras.Model(model.input, norm(logits))
    norm.moving_variance.assign(keras.ops.full_like(norm.moving_variance, temperature**2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first folding has warned already
        folded = fold_batch_norm(divided)
    if any(layer.name == norm.name for layer in folded.layers):
        raise ValueError(
            f"The temperature cannot be folded into the weights of {model.name!r}: its logits must "
            "be the output of a Dense or convolution layer without activation that is used once. "
            "Use fold_temperature=False."
        )
    return folded
