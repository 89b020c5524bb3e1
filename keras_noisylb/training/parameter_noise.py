"""Noise that is added to the parameters after the update of the inner optimizer."""

import tensorflow as tf


class ParameterNoise:
    """θ ← θ - α n after an update (Wen et al. 2020, equation 2).

    It is constructed before the update, because α is the learning rate of that update.

    Args:
        noisy: the `NoisyOptimizer`.
        noise: list of tensors aligned with the trainable variables; `None` for variables without
            noise.
        scale: the loss scale that the noise is multiplied by.
    """

    def __init__(self, noisy, noise, scale):
        self.noisy = noisy
        rate = tf.cast(tf.convert_to_tensor(noisy.learning_rate), "float32") / scale
        self.steps = [None if n is None else n * tf.cast(rate, n.dtype) for n in noise]
        self.before = tf.identity(tf.convert_to_tensor(noisy.micro_steps))

    def add(self, variables):
        """Add the noise to the trainable variables, unless the update was skipped.

        A `LossScaleOptimizer` skips an update whose gradients are not finite.
        """
        applied = tf.convert_to_tensor(self.noisy.micro_steps) > self.before
        pairs = [
            (v, tf.where(applied, step, tf.zeros_like(step)))
            for v, step in zip(variables, self.steps, strict=True)
            if step is not None
        ]
        if not tf.distribute.has_strategy():
            for variable, step in pairs:
                variable.assign(_constrained(variable, variable.value - step))
            return
        context = tf.distribute.get_replica_context()
        # Every device has drawn its own noise. All devices subtract the sum.
        steps = context.all_reduce(tf.distribute.ReduceOp.SUM, [step for _, step in pairs])

        def update(strategy, steps):
            for (variable, _), step in zip(pairs, steps, strict=True):

                def subtract(local, step, variable=variable):
                    local.assign(_constrained(variable, local - step))

                strategy.extended.update(variable.value, subtract, args=(step,), group=False)

        context.merge_call(update, args=(steps,))


def _constrained(variable, value):
    return value if variable.constraint is None else variable.constraint(value)
