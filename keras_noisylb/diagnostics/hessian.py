"""The Hessian of a data set's mean loss, as a linear operator."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_noisylb.diagnostics.batches import EMPTY, batched
from keras_noisylb.diagnostics.checks import MeanLoss, check_model
from keras_noisylb.gradients.loss import call_model
from keras_noisylb.types import Loss, Nested


class Hessian:
    """The Hessian of the mean loss over a data set at the model's weights, as a linear operator.

    L(θ) = (1/N) Σ_i ℓ_i(θ), where θ is `model.trainable_variables`. A product H v = ∇(∇L · v)
    (Pearlmutter 1994) takes two backward passes over the data, one batch at a time. (Forward over
    backward differentiation would cost the same and fails on recurrent layers.) The model computes
    in its own precision; sums over batches are float64. In inference mode the result does not
    depend on the batch size, for losses with reduction mean or sum. Exceptions are masked outputs
    and the reduction "mean_with_sample_weight", whose means are taken within each batch. The model
    is not changed: moving statistics and seeds keep their values. Each product uses the current
    weights.

    Args:
        model: a Keras model.
        loss: a Keras loss, its name, or a function `(y, y_pred)` that returns losses or their mean.
        x: inputs, N examples first, or nested; or a `tf.data.Dataset` of batches `(x, y)` or
            `(x, y, sample_weight)` that is the same on every pass.
        y: targets; `None` with a dataset.
        batch_size: number of examples that are differentiated together; ignored with a dataset.
        training: whether to run the model in training mode. L then depends on the batches:
            normalisation uses the statistics of each batch, and dropout uses the same mask for
            every product.
        regularization: whether L includes the model's own losses (regularizers and `add_loss`).

    Raises:
        ValueError: if there are no data or no trainable variables, if the weights are not finite,
            or if the arguments do not match.

    Example:
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> hessian = Hessian(model, "mse", np.eye(2), np.zeros((2, 1)))
    >>> hessian.product([np.ones((2, 1))])[0].tolist()
    [[1.0], [1.0]]
    """

    def __init__(
        self,
        model: keras.Model,
        loss: Loss,
        x: Any,
        y: Nested = None,
        *,
        batch_size: int = 256,
        training: bool = False,
        regularization: bool = False,
    ) -> None:
        self.model, self.loss = model, MeanLoss(loss)
        self.training, self.regularization = training, regularization
        self.dataset = batched(x, y, batch_size)
        check_model(model, self.dataset)
        self.variables = model.trainable_variables
        vectors = [tf.TensorSpec(v.shape, v.dtype) for v in self.variables]
        totals = [tf.TensorSpec(v.shape, "float64") for v in self.variables]
        specs = (self.dataset.element_spec, vectors, totals)
        self._add_product = tf.function(self._with_product, input_signature=specs)

    @property
    def size(self) -> int:
        """The number of parameters d."""
        return sum(int(np.prod(v.shape)) for v in self.variables)

    def product(self, vectors: list[Any]) -> list[np.ndarray]:
        """H v.

        Args:
            vectors: v, a list of arrays of the shapes of `model.trainable_variables`.

        Returns:
            List of float64 NumPy arrays of the same shapes.

        Raises:
            ValueError: if the shapes differ, the data set is empty or a product is not finite.
        """
        vectors = [np.asarray(vector) for vector in vectors]
        received, expected = [v.shape for v in vectors], [tuple(v.shape) for v in self.variables]
        if received != expected:
            raise ValueError(
                "`vectors` must have the shapes of `model.trainable_variables`. Expected: "
                f"{expected}. Received: {received}"
            )
        tangents = [
            tf.convert_to_tensor(vector.astype(v.dtype))
            for vector, v in zip(vectors, self.variables, strict=True)
        ]
        count, totals = 0, [tf.zeros(shape, "float64") for shape in expected]
        for batch in self.dataset:
            rows = int(tf.shape(keras.tree.flatten(batch)[0])[0])
            if rows:
                count += rows
                # Summed in the graph: in NumPy the sum took half as long as the product itself.
                totals = self._add_product(batch, tangents, totals)
        if not count:
            raise ValueError(EMPTY)
        products = [total.numpy() / count for total in totals]
        for product, variable in zip(products, self.variables, strict=True):
            if not np.isfinite(product).all():
                raise ValueError(
                    f"The Hessian is not finite: the product has NaN or infinite entries at "
                    f"{variable.path!r}. The loss or its second derivative is not finite for some "
                    "example, or overflows in the model's precision. Check the data and weights "
                    "for NaN, or compute in float32 or float64."
                )
        return products

    def matvec(self, vector: np.ndarray) -> np.ndarray:
        """H v for v flattened and concatenated, shape (d,); see `product`."""
        return self.flatten(self.product(self.split(vector)))

    def split(self, vector: np.ndarray) -> list[np.ndarray]:
        """Cut a vector of shape (d,) into a list of the variables' shapes."""
        ends = np.cumsum([np.prod(v.shape, dtype=int) for v in self.variables])
        pieces = np.split(vector, ends[:-1])
        return [p.reshape(v.shape) for p, v in zip(pieces, self.variables, strict=True)]

    def flatten(self, vectors: list[np.ndarray]) -> np.ndarray:
        """The inverse of `split`."""
        return np.concatenate([np.ravel(vector) for vector in vectors])

    def _with_product(self, batch, vectors, totals):
        values = [tf.convert_to_tensor(v.value) for v in self.variables]
        with tf.GradientTape() as outer:
            outer.watch(values)
            with tf.GradientTape() as inner:
                inner.watch(values)
                loss = self._batch_loss(values, *batch)
            zero = tf.UnconnectedGradients.ZERO
            gradients = inner.gradient(loss, values, unconnected_gradients=zero)
            slope = tf.add_n([
                tf.cast(tf.reduce_sum(g * v), "float64")
                for g, v in zip(gradients, vectors, strict=True)
            ])
        products = outer.gradient(slope, values, unconnected_gradients=zero)
        rows = tf.cast(tf.shape(keras.tree.flatten(batch)[0])[0], "float64")
        pairs = zip(totals, products, strict=True)
        return [total + rows * tf.cast(tf.convert_to_tensor(p), "float64") for total, p in pairs]

    def _batch_loss(self, values, x, y, sample_weight=None):
        state = list(zip(self.variables, values, strict=True))
        with keras.StatelessScope(state, collect_losses=True):
            y_pred = call_model(self.model, x, self.training)
            loss = self.loss(y, y_pred, sample_weight)
            if self.regularization:
                own = [tf.cast(tf.reduce_sum(term), loss.dtype) for term in self.model.losses]
                loss = tf.add_n([loss, *own])
        return loss


def hessian_vector_product(
    model: keras.Model, loss: Loss, x: Any, y: Nested, vectors: list[Any], **options: Any
) -> list[np.ndarray]:
    """The product of the Hessian of a data set's mean loss with a vector.

    For several products, create one `Hessian` and call its `product`: each call of this function
    traces the model, which takes seconds.

    Args:
        model: a Keras model.
        loss: a Keras loss, its name, or a function `(y, y_pred)`.
        x: inputs, or a `tf.data.Dataset`.
        y: targets; `None` with a dataset.
        vectors: list of arrays of the shapes of `model.trainable_variables`.
        **options: `batch_size`, `training` and `regularization` of `Hessian`.

    Returns:
        List of float64 NumPy arrays of the same shapes.

    Raises:
        ValueError: as in `Hessian` and its `product`.

    Example:
    ```python
    vectors = [keras.random.normal(v.shape) for v in model.trainable_variables]
    products = hessian_vector_product(model, "mse", x, y, vectors, batch_size=512)
    ```
    """
    return Hessian(model, loss, x, y, **options).product(vectors)
