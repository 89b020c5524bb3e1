"""Time of a training step of Ghost BN, relative to Keras' batch normalisation.

    python benchmarks/ghost_batch_norm.py [--ghost-batch-size 128] [--repeats 30] [--jit]

One layer runs its forward and backward pass in a `tf.function`. As in `fit`, the batch size is
unknown during tracing. The layers alternate, so that other load of the machine slows both equally.
Ratios are ratios of medians.
"""

import argparse
import statistics
import time

import keras
import tensorflow as tf

from keras_noisylb.layers import GhostBatchNormalization

SHAPES = ((512, 32, 32, 16), (512, 8, 8, 64), (4096, 500))


def make_step(layer, shape, jit_compile):
    """A function from inputs and output gradients to all gradients of `layer`."""
    layer.build(shape)
    spec = tf.TensorSpec((None, *shape[1:]))

    @tf.function(input_signature=[spec, spec], jit_compile=jit_compile)
    def step(x, output_gradient):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        sources = [x, *(variable.value for variable in layer.trainable_variables)]
        return tape.gradient(y, sources, output_gradients=output_gradient)

    return step


def medians(steps, arguments, repeats):
    """Median milliseconds of each step; the steps alternate."""
    times = {name: [] for name in steps}
    for _ in range(repeats + 3):
        for name, step in steps.items():
            start = time.perf_counter()
            [gradient.numpy() for gradient in step(*arguments)[1:]]  # waits for the device
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values[3:]) for name, values in times.items()}


def main():
    """Print a table: one line for each shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ghost-batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--jit", action="store_true", help="compile with XLA")
    options = parser.parse_args()
    print(f"{'inputs':>20} {'Keras BN':>12} {'Ghost BN':>12} {'ratio':>6}")
    for shape in SHAPES:
        layers = {
            "keras": keras.layers.BatchNormalization(),
            "ghost": GhostBatchNormalization(options.ghost_batch_size),
        }
        steps = {name: make_step(layer, shape, options.jit) for name, layer in layers.items()}
        arguments = tf.random.normal(shape), tf.random.normal(shape)
        result = medians(steps, arguments, options.repeats)
        keras_ms, ghost_ms = result["keras"], result["ghost"]
        print(f"{shape!s:>20} {keras_ms:9.1f} ms {ghost_ms:9.1f} ms {ghost_ms / keras_ms:6.2f}")


if __name__ == "__main__":
    main()
