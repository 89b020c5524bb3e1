"""Distribution strategies: what Keras cannot do under them, and what devices tell each other."""

import warnings

import tensorflow as tf


def check_strategy(model, optimizer):
    """Refuse a compiled model that Keras cannot train on several devices.

    Args:
        model: a compiled Keras model.
        optimizer: the optimizer that makes the updates, without wrappers.

    Raises:
        ValueError: naming the option, and what to do.
    """
    strategy = model.distribute_strategy
    name = type(strategy).__name__
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        raise ValueError(
            "Keras 3 cannot train under MultiWorkerMirroredStrategy: it fails before the first "
            "step, also without this package. Use MirroredStrategy on the devices of one machine."
        )
    if strategy.num_replicas_in_sync == 1:
        return
    refused = {
        "gradient_accumulation_steps": optimizer.gradient_accumulation_steps,
        "ema_overwrite_frequency": optimizer.use_ema and optimizer.ema_overwrite_frequency,
        "steps_per_execution": model.steps_per_execution > 1 and model.steps_per_execution,
        "jit_compile": model.jit_compile is True,
    }
    for option, value in refused.items():
        if value:
            raise ValueError(
                f"Keras cannot train with `{option}` under {name}. Leave it out, or train on one "
                f"device; NoisyModel(num_microbatches=...) also makes large batches fit. Received: "
                f"{option}={value}"
            )
    for option in ("clipnorm", "global_clipnorm", "clipvalue"):
        value = getattr(optimizer, option)
        if value is not None:
            warnings.warn(
                f"Under {name}, Keras clips the gradient of each device before they are added up: "
                f"{option}={value} does not act as on one device.",
                stacklevel=3,
            )


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
