"""Train with a batch that does not fit in memory, by computing it in microbatches.

    python examples/large_batch_on_small_memory.py [--batch-size 2000] [--memory 0.5]

`report` estimates from the graph of a step how many microbatches keep it within `--memory` GiB. The
script then makes two updates without microbatches and two with this number, each in a separate
process, and prints the increase of the peak memory of the process. The estimate does not include
memory that is independent of the examples, such as the momentum and the traced program. Therefore
each process first makes updates with a small batch, and prints their memory separately. (Memory is
measured by the operating system, on Linux and macOS. On a GPU use
`tf.config.experimental.get_memory_info`.)
"""

import argparse
import itertools
import multiprocessing
import resource
import sys

import keras
import tensorflow as tf

import keras_noisylb as nlb

GHOST = 50


def make_model(num_microbatches=None):
    """LeNet, compiled with noise."""
    network = nlb.models.LeNet(num_classes=10, ghost_batch_size=GHOST)
    model = nlb.NoisyModel(network, num_microbatches)
    # Diagonal (exact), not the recommended full (split): of the noises it needs the most memory.
    noise = nlb.DiagonalFisher(small_batch_size=GHOST)
    model.compile(
        nlb.NoisyOptimizer(keras.optimizers.SGD(0.1, momentum=0.9), noise, seed=0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def peak_memory():
    """The peak memory of this process so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def train(num_microbatches, batch_sizes):
    """Make two updates with each batch size.

    Args:
        num_microbatches: number of microbatches of each batch.
        batch_sizes: numbers of examples of one update, the smallest first.

    Returns:
        Tuple of the increase of the peak memory for each batch size, in GiB, and the losses of the
        updates with the last batch size.
    """
    keras.utils.set_random_seed(0)
    (x, y), _ = nlb.data.load("fashion_mnist_small")
    model, peaks = make_model(num_microbatches), [peak_memory()]
    for size in batch_sizes:
        # The batches of a dataset have no fixed size, so the step is traced once for both sizes.
        data = tf.data.Dataset.from_tensor_slices((x[:size], y[:size])).batch(size)
        losses = model.fit(data, epochs=2, shuffle=False, verbose=0).history["loss"]
        peaks.append(peak_memory())
    return [after - before for before, after in itertools.pairwise(peaks)], losses


def main():
    """Estimate with `report`, then measure.

    Returns:
        Dictionary from the number of microbatches to the memory of a step, in GiB.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=2000)
    parser.add_argument("--memory", type=float, default=0.5, help="GiB that a step may take")
    options = parser.parse_args()
    model = make_model()
    found = nlb.report(model, model.optimizer.noise, options.batch_size, memory=options.memory)
    print(found)
    if found.num_microbatches is None:
        parser.exit(1, "Raise --memory or lower --batch-size.\n")
    small = GHOST * max(found.num_microbatches, 2)  # one ghost batch in each microbatch
    measured = {}
    for num_microbatches in sorted({1, found.num_microbatches}):
        # Peak memory never decreases, so each case is measured in a new process.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            (program, step), losses = pool.apply(
                train, (num_microbatches, (small, options.batch_size))
            )
        print(
            f"num_microbatches={num_microbatches}: peak memory rose by {step:.2f} GiB, after "
            f"{program:.2f} GiB with batches of {small}; losses of the updates "
            + ", ".join(f"{loss:.4f}" for loss in losses)
        )
        measured[num_microbatches] = step
    return measured


if __name__ == "__main__":
    main()
