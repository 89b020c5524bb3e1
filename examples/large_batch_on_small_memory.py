"""Train with a batch that does not fit in memory, computed in microbatches one after the other.

    python examples/large_batch_on_small_memory.py [--batch-size 2000] [--memory 0.5]

`report` reads from the graph of a step how many microbatches keep it within `--memory` GiB. The
script then takes two updates at once and in microbatches, each in a process of its own, and prints
how far the peak memory of the process rose above what it had before training. That includes what
`report` leaves out: momentum, and the program that traces the step. (The figure is the operating
system's, on Linux and macOS. On a GPU use `tf.config.experimental.get_memory_info`.)
"""

import argparse
import multiprocessing
import resource
import sys

import keras

import keras_noisylb as nlb


def make_model(num_microbatches=None):
    """LeNet, compiled with noise."""
    model = nlb.NoisyModel(nlb.models.LeNet(num_classes=10, ghost_batch_size=50), num_microbatches)
    noise = nlb.DiagonalFisher(small_batch_size=50)
    model.compile(
        nlb.NoisyOptimizer(keras.optimizers.SGD(0.1, momentum=0.9), noise, seed=0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def peak_memory():
    """The most memory that this process has had so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def train(num_microbatches, batch_size):
    """Take two updates.

    Args:
        num_microbatches: number of chunks of each batch.
        batch_size: examples of one update.

    Returns:
        Tuple of the GiB by which the peak memory rose, and the loss of the updates.
    """
    keras.utils.set_random_seed(0)
    (x, y), _ = nlb.data.load("fashion_mnist_small")
    x, y = x[:batch_size], y[:batch_size]
    model, before = make_model(num_microbatches), peak_memory()
    losses = model.fit(x, y, batch_size=batch_size, epochs=2, verbose=0).history["loss"]
    return peak_memory() - before, losses


def main():
    """Ask `report`, then measure.

    Returns:
        Dictionary from the number of microbatches to the GiB that were measured.
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
    measured = {}
    for num_microbatches in sorted({1, found.num_microbatches}):
        # Peak memory never falls again, so each is measured in a new process.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            measured[num_microbatches], losses = pool.apply(
                train, (num_microbatches, options.batch_size)
            )
        print(
            f"num_microbatches={num_microbatches}: peak memory rose by "
            f"{measured[num_microbatches]:.2f} GiB, losses of the updates "
            + ", ".join(f"{loss:.4f}" for loss in losses)
        )
    return measured


if __name__ == "__main__":
    main()
