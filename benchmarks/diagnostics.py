"""Time and memory of the diagnostics, relative to one gradient of the same data.

    python benchmarks/diagnostics.py [--models mlp:1024,lenet:512,resnet8:256] [--repeats 9]
        [--cases product,fisher_norms] [--no-memory]

All cases of one model alternate in one process, so that other load of the machine slows all of them
equally. Ratios are ratios of medians. Peak memory is measured in a separate process for each case;
the case "data" loads model, data and TensorFlow but computes nothing.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

GHOST = 128
LARGEST = 1024  # MiB; a larger M × d matrix is not formed
INPUTS = {"lenet": (28, 28, 1), "mlp": (28, 28, 1)}
CASES = ("gradient", "product", "fisher_norms", "matrix", "variance")


def make_case(name, model_name, num_examples):
    """A function that computes one case once.

    - gradient: gradient of the mean loss, in inference mode.
    - product: a Hessian-vector product of the same data.
    - fisher_norms: Fisher norms of the same examples.
    - matrix: ‖F‖ from the M × d matrix of per-example gradients.
    - variance: one draw of `gradient_variance` without noise, in training mode.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_noisylb as nlb
    from keras_noisylb.diagnostics import Hessian, fisher_norms
    from keras_noisylb.diagnostics.batches import minibatches
    from keras_noisylb.diagnostics.minibatches import MinibatchGradients
    from keras_noisylb.diagnostics.variance import Moments

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    shape = INPUTS.get(model_name, (32, 32, 3))
    model = nlb.models.get(model_name)(num_classes=10, input_shape=shape, ghost_batch_size=GHOST)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    x = rng.normal(size=(num_examples, *shape)).astype("float32")
    y = rng.integers(0, 10, num_examples)
    variables = model.trainable_variables

    @tf.function
    def gradient(x, y):
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=False))
        return tape.gradient(value, variables)

    if name == "data":
        return lambda: None
    if name == "gradient":
        return lambda: [g.numpy() for g in gradient(x, y)]
    if name == "product":
        hessian = Hessian(model, loss, x, y, batch_size=num_examples)
        vectors = [rng.normal(size=v.shape).astype("float32") for v in variables]
        return lambda: hessian.product(vectors)
    if name == "fisher_norms":
        return lambda: fisher_norms(model, loss, x, y, batch_size=256, verbose=0)
    if name == "matrix":

        def matrix():
            gradients = nlb.gradients.per_example_gradients(model, loss, x, y)
            rows = tf.concat([tf.reshape(g, (num_examples, -1)) for g in gradients], axis=1)
            return tf.norm(tf.matmul(rows, rows, transpose_b=True)).numpy() / num_examples

        return matrix
    batches, moments = minibatches(x, y, num_examples), Moments()
    source = MinibatchGradients(model, loss, batches)
    return lambda: source.visit([(x, y)], moments.add)


def matrix_size(model_name, num_examples):
    """Size of the M × d matrix in MiB."""
    import keras_noisylb as nlb

    shape = INPUTS.get(model_name, (32, 32, 3))
    model = nlb.models.get(model_name)(num_classes=10, input_shape=shape)
    return 4 * num_examples * sum(v.shape.num_elements() for v in model.trainable_variables) / 2**20


def measure_times(model_name, num_examples, cases, repeats):
    """Median seconds of each case."""
    calls = {name: make_case(name, model_name, num_examples) for name in cases}
    times = {name: [] for name in cases}
    for turn in range(repeats + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def measure_memory(model_name, num_examples, name):
    """Peak MiB of a process that runs one case three times."""
    command = [sys.executable, __file__, "--peak", json.dumps([name, model_name, num_examples])]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(output.split()[-1]) / 1024


def main():
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mlp:1024,lenet:512,resnet8:256")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        call = make_case(*json.loads(options.peak))
        for _ in range(3):
            call()
        # Not `ru_maxrss`: a new process inherits it from its parent.
        status = pathlib.Path("/proc/self/status").read_text()
        print(status.split("VmHWM:")[1].split()[0])
        return
    for entry in options.models.split(","):
        model_name, num_examples = entry.split(":")
        num_examples = int(num_examples)
        cases = list(dict.fromkeys(["gradient", *options.cases.split(",")]))
        size = matrix_size(model_name, num_examples)
        if size > LARGEST and "matrix" in cases:
            cases.remove("matrix")
        times = measure_times(model_name, num_examples, cases, options.repeats)
        print(f"{model_name}, {num_examples} examples; M × d matrix: {size:.0f} MiB", flush=True)
        if not options.no_memory:
            print(
                f"  data {measure_memory(model_name, num_examples, 'data'):35.0f} MiB", flush=True
            )
        for name in cases:
            line = f"  {name:14} {1e3 * times[name]:8.0f} ms {times[name] / times['gradient']:7.2f}"
            if not options.no_memory:
                line += f" {measure_memory(model_name, num_examples, name):8.0f} MiB"
            print(line, flush=True)


if __name__ == "__main__":
    main()
