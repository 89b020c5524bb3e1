"""The smallest plain Keras trainings under MirroredStrategy that Keras 3.15 cannot do.

cd docs/upstream
python mirrored_strategy.py gradient_accumulation_steps
python mirrored_strategy.py ema_overwrite_frequency
python mirrored_strategy.py jit_compile
python mirrored_strategy.py steps_per_execution
"""

import sys

import keras
import numpy as np
import tensorflow as tf

OF_OPTIMIZER = {
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 2},
    "ema_overwrite_frequency": {"use_ema": True, "ema_overwrite_frequency": 2},
}
OF_COMPILE = {
    "jit_compile": {"jit_compile": True},
    "steps_per_execution": {"steps_per_execution": 2},
}


def train(strategy, option):
    """One epoch of two steps.

    Args:
        strategy: a strategy.
        option: name of the option.
    """
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        optimizer = keras.optimizers.SGD(0.1, **OF_OPTIMIZER.get(option, {}))
        model.compile(optimizer, "mse", **OF_COMPILE.get(option, {}))
    x, y = np.ones((16, 4), "float32"), np.ones((16, 3), "float32")
    model.fit(x, y, batch_size=8, verbose=0)


if __name__ == "__main__":
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), sys.argv[1])
    print("trained")
