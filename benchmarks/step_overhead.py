"""Time and memory of a training step with noise, relative to the plain step.

    python benchmarks/step_overhead.py [--models lenet:4096,resnet8:512] [--repeats 9]
        [--cases split,weighted] [--num-microbatches 1] [--no-memory] [--no-times]

All steps of one model alternate in one process, so that other load of the machine slows all of them
equally. Ratios are ratios of medians. Peak memory is measured in a separate process for each case.
With microbatches, the plain step has the same number of microbatches.
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
CASES = (
    "noise ended", "split", "full split", "weighted", "per_example", "max_examples",
    "uncorrelated", "true", "kfac every 10",
)  # fmt: skip
INPUTS = {"lenet": (28, 28, 1), "mlp": (28, 28, 1)}


def noises(batch_size):
    """The noises by name; `None` is the plain step of the plain model."""
    from keras_noisylb import DiagonalFisher, FullFisher, KroneckerFactored

    return {
        "plain": None,
        "noise ended": DiagonalFisher(GHOST),
        "split": DiagonalFisher(GHOST, estimator="split"),
        "full split": FullFisher(GHOST, estimator="split"),
        "weighted": DiagonalFisher(GHOST, estimator="weighted"),
        "per_example": DiagonalFisher(GHOST),
        "vectorized_map": DiagonalFisher(GHOST, engine="vectorized_map"),
        "max_examples": DiagonalFisher(GHOST, max_examples=batch_size // 8),
        "uncorrelated": DiagonalFisher(GHOST, conv="uncorrelated"),
        "true": DiagonalFisher(GHOST, fisher="true"),
        "kfac every 10": KroneckerFactored(GHOST, update_every=10),
    }


def make_step(name, model_name, batch_size, num_microbatches):
    """A function that runs one training step of a case."""
    import keras

    import keras_noisylb as nlb

    keras.utils.set_random_seed(0)
    shape = INPUTS.get(model_name, (32, 32, 3))
    model = nlb.models.get(model_name)(num_classes=10, input_shape=shape, ghost_batch_size=GHOST)
    optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
    noise = noises(batch_size)[name]
    if noise is not None or num_microbatches > 1:
        model = nlb.NoisyModel(model, num_microbatches)
    if noise is not None:
        steps = 0 if name == "noise ended" else None
        optimizer = nlb.NoisyOptimizer(optimizer, noise, noise_steps=steps, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss=loss, jit_compile=False)
    x = keras.random.normal((batch_size, *shape))
    y = keras.random.randint((batch_size,), 0, 10)
    return lambda: model.train_on_batch(x, y)


def measure_times(model_name, batch_size, num_microbatches, cases, repeats):
    """Median seconds of a step of each case."""
    steps = {name: make_step(name, model_name, batch_size, num_microbatches) for name in cases}
    times = {name: [] for name in cases}
    for turn in range(repeats + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def measure_memory(*case):
    """Peak MiB of a process that runs three steps of one case."""
    command = [sys.executable, __file__, "--peak", json.dumps(case)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(output.split()[-1]) / 1024


def main():
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="lenet:4096,resnet8:512")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--num-microbatches", type=int, default=1)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--no-times", action="store_true")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        step = make_step(*json.loads(options.peak))
        for _ in range(3):
            step()
        # Not `ru_maxrss`: a new process inherits it from its parent.
        status = pathlib.Path("/proc/self/status").read_text()
        print(status.split("VmHWM:")[1].split()[0])
        return
    cases = list(dict.fromkeys(["plain", *options.cases.split(",")]))
    for entry in options.models.split(","):
        model_name, batch_size = entry.split(":")
        setting = (model_name, int(batch_size), options.num_microbatches)
        print(f"{model_name}, batch {batch_size} in {options.num_microbatches}", flush=True)
        if not options.no_times:
            times = measure_times(*setting, cases, options.repeats)
        peaks = {}
        for name in cases:
            line = f"  {name:14}"
            if not options.no_times:
                line += f" {1e3 * times[name]:8.0f} ms {times[name] / times['plain']:6.2f}"
            if not options.no_memory:
                peaks[name] = measure_memory(name, *setting)
                line += f" {peaks[name]:8.0f} MiB {peaks[name] / peaks['plain']:6.2f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
