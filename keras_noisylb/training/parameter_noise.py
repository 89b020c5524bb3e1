"""Noise that is added to the parameters, after the inner optimizer's update."""

import tensorflow as tf


class ParameterNoise:
    """θ ← θ - α n, after the update that it belongs to (paper, equation 2).

    Made before the update, so that α is the learning rate of that update.

    Args:
        noisy: the `NoisyOptimizer`.
        noise: list of tensors aligned with the trainable variables, or `None`.
        scale: the loss scale that is in the noise.
    """

    def __init__(self, noisy, noise, scale):
        self.noisy = noisy
        rate = tf.cast(tf.convert_to_tensor(noisy.learning_rate), "float32") / scale
        self.steps = [None if n is None else n * tf.cast(rate, n.dtype) for n in noise]
        self.before = tf.identity(tf.convert_to_tensor(noisy.micro_steps))

    def add(self, variables):
        """Add it to the variables, unless the update was skipped because gradients overflowed.

        Args:
            variables: the trainable variables.
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
        # Every device has drawn noise of its own; all of them subtract the sum.
        steps = context.all_reduce(tf.distribute.ReduceOp.SUM, [step for _, step in pairs])

        def update(strategy, steps):
            for (variable, _), step in zip(pairs, steps, strict=True):

                def subtract(local, step, variable=variable):
                    local.assign(_constrained(variable, local - step))

                strategy.extended.update(variable.value, subtract, args=(step,), group=False)

        context.merge_call(update, args=(steps,))


def _constrained(variable, value):
    return value if variable.constraint is None else variable.constraint(value)
