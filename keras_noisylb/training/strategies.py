"""Distribution strategies: what Keras cannot do under them, and what devices tell each other."""

import warnings

import tensorflow as tf

from keras_noisylb.optimizer import CLIPPING

_INSTEAD = {
    "gradient_accumulation_steps": (
        "NoisyModel(num_microbatches=...) also makes large batches fit, on several devices too."
    ),
    "ema_overwrite_frequency": (
        "Leave it out, keep use_ema=True, and overwrite in a callback: "
        "model.optimizer.finalize_variable_values(model.trainable_variables)."
    ),
    "steps_per_execution": (
        "It works with MirroredStrategy(cross_device_ops=tf.distribute.ReductionToOneDevice()), on "
        "one machine; or leave it out."
    ),
}


def check_strategy(model, optimizer):
    """Refuse a compiled model that Keras cannot train on several devices.

    Args:
        model: a compiled Keras model.
        optimizer: the optimizer that makes the updates, without wrappers.

    Raises:
        ValueError: naming the option, and what to do.
    """
    strategy = model.distribute_strategy
    several_workers = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    # TensorFlow's own name of this class is another one.
    name = "MultiWorkerMirroredStrategy" if several_workers else type(strategy).__name__
    if strategy.num_replicas_in_sync == 1:
        return
    refused = {
        "gradient_accumulation_steps": optimizer.gradient_accumulation_steps,
        "ema_overwrite_frequency": optimizer.use_ema and optimizer.ema_overwrite_frequency,
        "steps_per_execution": (
            model.steps_per_execution > 1
            and not _reduces_by_copies(strategy)
            and model.steps_per_execution
        ),
        "jit_compile": several_workers and model.jit_compile is True,
    }
    for option, value in refused.items():
        if value:
            way = _INSTEAD.get(option, "Leave it out, or train on one device.")
            raise ValueError(
                f"Keras cannot train with `{option}` under {name}. {way} Received: {option}={value}"
            )
    for option in CLIPPING:
        value = getattr(optimizer, option)
        if value is not None:
            warnings.warn(
                f"Under {name}, Keras clips the gradient of each device before they are added up: "
                f"{option}={value} does not act as on one device.",
                stacklevel=3,
            )


def _reduces_by_copies(strategy):
    """Whether devices are summed by copies: collective operations fail in Keras' loop of steps.

    Args:
        strategy: a `tf.distribute.Strategy`.
    """
    by_copies = (tf.distribute.ReductionToOneDevice, tf.distribute.HierarchicalCopyAllReduce)
    # TensorFlow has no public name for it. Without this one the option stays refused.
    return isinstance(getattr(strategy.extended, "_cross_device_ops", None), by_copies)


def on_any_device(condition):
    """Whether a condition holds on at least one device.

    Args:
        condition: scalar boolean tensor of this device.

    Returns:
        Scalar boolean tensor, the same on all devices.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return condition
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(condition, "float32")) > 0
