"""Gradients with noise for custom training loops."""

import keras
import tensorflow as tf

from keras_noisylb.gradients import objective
from keras_noisylb.gradients.batch import Batch
from keras_noisylb.gradients.labels import labels_for
from keras_noisylb.noise import Noise
from keras_noisylb.noise.base import positive_integer
from keras_noisylb.training.randomness import Draws
from keras_noisylb.training.step import Parts, Step
from keras_noisylb.types import AddLossReduction, Loss, Nested, Tensor


def noisy_gradients(
    model: keras.Model,
    loss: Loss,
    x: Nested,
    y: Nested,
    noise: Noise,
    seed: int | Tensor,
    *,
    sample_weight: Nested = None,
    num_microbatches: int = 1,
    add_loss_reduction: AddLossReduction | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradient of a large batch and one sample of the noise, for custom training loops.

    The model runs in training mode, so its moving statistics are updated.

    Args:
        model: a Keras model.
        loss: a Keras loss, its name, or a function `(y, y_pred) -> scalar`.
        x: inputs of M_L examples, which are the first axis.
        y: targets.
        noise: the noise, for example `FullFisher(128, estimator="split")`.
        seed: integer, or scalar integer tensor such as `optimizer.iterations`. The same seed gives
            the same noise, so every step needs another seed.
        sample_weight: weights of the examples, or `None`.
        num_microbatches: number of microbatches that the batch is cut into. They are computed one
            after the other.
        add_loss_reduction: how the losses that layers add by `add_loss` reduce the examples of a
            batch: `"mean"`, also for losses that do not depend on the examples, or `"sum"`. It is
            required if a model with such losses cuts batches: for `num_microbatches` above 1 or
            `estimator="split"`. Regularisers do not require it.

    Returns:
        Tuple `(gradients, noise)` of lists aligned with `model.trainable_variables`. A variable
        without gradient has `None` in both. An optimizer gets the sum of the two.

    Raises:
        ValueError: if the noise cannot be computed for the model, if `num_microbatches` is no
            positive integer, or if `add_loss_reduction` is wrong or missing.

    Example:
    ```python
    full = FullFisher(small_batch_size=64, estimator="split")
    gradients, noise = noisy_gradients(model, loss, x, y, full, seed=optimizer.iterations)
    optimizer.apply(
        [g + n for g, n in zip(gradients, noise)], model.trainable_variables
    )
    ```
    """
    positive_integer("num_microbatches", num_microbatches, "1 to cut no batches")
    x, y, sample_weight = keras.tree.map_structure(
        lambda a: None if a is None else keras.ops.convert_to_tensor(a), (x, y, sample_weight)
    )
    if not model.built:
        model(x)
    labels = labels_for(noise, model, loss)
    target = objective(model, loss, labels, add_loss_reduction=add_loss_reduction)
    draws = Draws(tf.stack([tf.cast(seed, "int32"), 0]))
    batch = Batch(x, y, sample_weight)
    step = Step(target, batch, noise, Parts(), draws, draws, num_microbatches, separate=True)
    outcome = step.run(tf.constant(True), tf.constant(True))
    for variable, value in outcome.state:
        variable.assign(value)
    return outcome.gradients, outcome.noise
