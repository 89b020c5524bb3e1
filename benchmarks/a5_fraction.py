"""The fraction of the exact diagonal Fisher that the formula of the paper's A.5 keeps.

    python benchmarks/a5_fraction.py [--models lenet,resnet8,vgg16] [--data-dir DIR]

A.5 drops the products between the positions of a convolution. The script trains each network with
large batches and plain momentum SGD. During training it compares the traces of the two diagonals on
the same training images, for the convolutions and for all variables. The square root of a fraction
is the λ at which diagonal (exact) noise has the variance of diagonal (A.5) noise with λ = 1. The
result is `docs/records/a5_fraction.json`. Networks that it already contains are not measured again.
"""

import argparse
import json
import os
import pathlib

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

RECORD = pathlib.Path(__file__).parent.parent / "docs" / "records" / "a5_fraction.json"
# For each network: training options, number of measured examples, and updates at which to measure.
CASES = {
    "lenet": ({"pool": 1, "train_size": 8192, "learning_rate": "0.1"}, 512, (0, 16, 80, 320)),
    "resnet8": (
        {"dataset": "cifar10", "pool": 2, "train_size": 8192, "learning_rate": "0.4"},
        512,
        (0, 16, 80, 320, 960),
    ),
    "vgg16": (
        {"dataset": "cifar10", "train_size": 8192, "learning_rate": "0.1", "large_batch_size": 128},
        128,
        (0, 16, 48),
    ),
}


def measure(name, data_dir):
    """The fractions of one network.

    Args:
        name: name of the model.
        data_dir: folder of the prepared data sets.

    Returns:
        Dictionary for the record.
    """
    import keras

    import keras_noisylb as nlb
    from keras_noisylb.experiments import records, splits
    from keras_noisylb.experiments.problem import builder
    from noisylb.protocol.options import Options

    keras.utils.set_random_seed(0)
    given, examples, updates = CASES[name]
    common = {"large_batch_size": 512, "small_batch_size": 32, "l2": 2.5e-4}
    if "dataset" in given:  # the other one is part of the package
        common["data_dir"] = data_dir
    options = Options(model=name, **common | given)
    data = splits.load(options)
    model = builder(options, data.num_classes, data.x_train.shape[1:])()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rate = options.learning_rates["lb"]
    model.compile(keras.optimizers.SGD(rate, momentum=options.momentum), loss=loss)
    batches = data.batches(options.large_batch_size, seed=0, augment=False)
    done, found = 0, []
    for target in updates:
        for step in range(done, target):
            epoch, index = divmod(step, len(batches))
            if index == 0:
                batches.start(epoch)
            model.train_on_batch(*batches.examples(index)[:2])
        done = target
        traces = {"convolutions": [], "all": []}
        for conv in ("uncorrelated", "exact"):
            fisher = nlb.gradients.diagonal_fisher(
                model, loss, data.x_train[:examples], data.y_train[:examples], conv=conv
            )
            sums = [float(keras.ops.sum(f)) for f in fisher]
            kernels = [len(v.shape) == 4 for v in model.trainable_variables]
            traces["convolutions"].append(sum(s for s, k in zip(sums, kernels, strict=True) if k))
            traces["all"].append(sum(sums))
        fractions = {part: a5 / exact for part, (a5, exact) in traces.items()}
        found.append({"updates": done, **fractions})
        print(name, {key: round(value, 4) for key, value in found[-1].items()}, flush=True)
    kept = {k: v for k, v in options.resolved().items() if k not in {"data_dir", "output", "quiet"}}
    return {
        "options": kept, "examples": examples, "versions": records.versions(), "fractions": found,
    }  # fmt: skip


def main():
    """Measure the networks that are not in the record yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--data-dir")
    options = parser.parse_args()
    from keras_noisylb.experiments import records

    found = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    for name in options.models.split(","):
        if name not in found:
            found[name] = measure(name, options.data_dir)
            records.write_json(RECORD, found, indent=None)


if __name__ == "__main__":
    main()
