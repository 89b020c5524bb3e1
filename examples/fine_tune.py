"""Fine-tune a trained network with small batches, large batches, and large batches with noise.

A LeNet learns five of the ten classes. Then a new last layer is put on it, and all its weights are
trained to tell the other five apart, at a low learning rate. The comparison is `nlb.compare` with a
function that returns the trained network. It prints a table and writes a picture and records.
"""

import argparse
import pathlib

import keras
import numpy as np

import keras_noisylb as nlb


def parsed():
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="fashion_mnist_small", help="one of nlb.data.names()")
    parser.add_argument("--data-dir", help="folder of the prepared TFDS data sets")
    parser.add_argument("--pool", type=int, default=1, help="size of the tiles that are averaged")
    parser.add_argument("--examples", type=int, default=4000, help="number of training images")
    parser.add_argument("--held-out", type=int, help="training images to choose by")
    parser.add_argument("--first-epochs", type=int, default=5, help="epochs before fine-tuning")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of fine-tuning")
    parser.add_argument("--large-batch-size", type=int, default=1000)
    parser.add_argument("--small-batch-size", type=int, default=20)
    parser.add_argument("--small-rate", type=float, default=0.001, help="learning rate of SB")
    parser.add_argument("--large-rate", type=float, default=0.01, help="learning rate of LB")
    parser.add_argument("--regimes", default="sb,lb,lb-diagonal-split,lb-full-split")
    parser.add_argument("--multiplier", default="matched", help="λ of the noise")
    parser.add_argument("--l2", type=float, default=0.0, help="L2 penalty of the weights")
    parser.add_argument("--global-clipnorm", type=float, help="norm to which gradients are clipped")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--output", default="results/fine_tune")
    return parser.parse_args()


def of_classes(pair, classes):
    """The examples of some classes, which are counted from 0 again."""
    x, y = pair
    chosen = np.isin(y, classes)
    images = keras.ops.average_pool(x[chosen], args.pool)
    return keras.ops.convert_to_numpy(images), np.searchsorted(classes, y[chosen])


def trained_network(train, args):
    """A LeNet that has learned the first classes, or the one of an earlier run."""
    name = f"trained-{args.dataset}-pool{args.pool}-epochs{args.first_epochs}.keras"
    path = pathlib.Path("results") / name
    if path.exists():
        return keras.saving.load_model(path)
    keras.utils.set_random_seed(0)
    network = nlb.models.LeNet(5, input_shape=train[0].shape[1:], normalization=None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(), loss, metrics=["accuracy"])
    history = network.fit(*train, batch_size=64, epochs=args.first_epochs, verbose=0).history
    print(f"The first five classes: training accuracy {history['accuracy'][-1]:.3f}")
    path.parent.mkdir(parents=True, exist_ok=True)
    network.save(path)
    return network


args = parsed()
train, test = nlb.data.load(args.dataset, data_dir=args.data_dir)
first, others = np.arange(5), np.arange(5, 10)
before = trained_network(of_classes(train, first), args)


def build(num_classes, input_shape, l2=0.0):
    """A network with the trained weights, but for its last layer."""
    network = nlb.models.LeNet(num_classes, input_shape=input_shape, normalization=None, l2=l2)
    for new, old in zip(network.layers[:-1], before.layers[:-1], strict=True):
        new.set_weights(old.get_weights())
    return network


x, y = of_classes(train, others)
number = args.examples + (args.held_out or 0)
rows = nlb.compare(
    build,
    (x[:number], y[:number]),
    of_classes(test, others),
    regimes=args.regimes,
    small_batch_size=args.small_batch_size,
    large_batch_size=args.large_batch_size,
    learning_rate={"sb": args.small_rate, "lb": args.large_rate},
    multiplier=args.multiplier if args.multiplier == "matched" else float(args.multiplier),
    l2=args.l2,
    global_clipnorm=args.global_clipnorm,
    held_out=args.held_out,
    epochs=args.epochs,
    seeds=args.seeds,
    output=args.output,
    quiet=True,
)
