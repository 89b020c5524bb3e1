"""The state that Keras would build in the first trace of the training step."""

import functools

import keras
import tensorflow as tf


def forward(model, x, y):
    """The part of the training step in which layers, loss and metrics are built."""
    y_pred = model(x)
    model.compute_loss(x=x, y=y, y_pred=y_pred)
    model.compute_metrics(x, y, y_pred)


def first_example(values):
    """The first of some values, as a tensor."""
    return keras.ops.convert_to_tensor(values[:1])


def build_state(model, x, y):
    """Build layers, metrics and optimizer before the first trace of the step.

    Keras builds them in that trace, and then traces the step again. A step with noise takes long to
    trace. Under a strategy, Keras builds them before.

    Args:
        model: the compiled `NoisyModel`.
        x: of `fit`. Nothing is built for a generator, which has no example to look at.
        y: of `fit`.
    """
    with model.distribute_strategy.scope():
        if tf.distribute.has_strategy():
            return
    dataset = isinstance(x, tf.data.Dataset)
    if dataset:
        batch = x.element_spec
    elif isinstance(x, keras.utils.PyDataset):
        batch = x[0]
    elif all(hasattr(leaf, "shape") for leaf in keras.tree.flatten(x)):
        batch = x, y
    else:
        return
    batch = keras.utils.unpack_x_y_sample_weight(batch)[:2]
    if batch[1] is None:
        return
    if not dataset:
        forward(model, *keras.tree.map_structure(first_example, batch))
        model.reset_metrics()
    elif not (model.optimizer.built or model.run_eagerly):
        # Only traced: a batch that is read here would be missing from a dataset that is read once.
        traced = tf.function(functools.partial(forward, model), autograph=False)
        traced.get_concrete_function(*batch)
    if not model.optimizer.built:  # a LossScaleOptimizer would begin anew
        model.optimizer.build(model.trainable_variables)
