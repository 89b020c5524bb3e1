"""Trainings that compare interpretations of the paper's method, and their table.

    python benchmarks/reading.py train --regime lb-diagonal --conv exact --multiplier 0.3 --rate 0.2
    python benchmarks/reading.py table > docs/records/reading/table.md

Each call trains a ResNet8 with ghost batch normalisation on a part of CIFAR-10 that it can fit.
Choices use only the accuracy on 5,000 images held out from the *training* set; the test accuracy is
only reported. After every epoch the script also records the squared norm ‖w‖² of the kernels and
the effective learning rate, rate / ‖w‖². Batch normalisation makes the network independent of the
scale of the kernels; the effective learning rate is the rate of change of their direction. An
existing record is not computed again.
"""

import argparse
import json
import math
import os
import pathlib
import statistics

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

FOLDER = pathlib.Path(__file__).parent.parent / "docs" / "records" / "reading"
HELD_OUT = 0.1  # fraction of the 50,000 training images


def name(options):
    """The file name of a training, made from its options."""
    parts = [options.regime]
    if options.regime.startswith("lb-"):
        parts += [f"lambda{options.multiplier:g}"]
    if options.regime == "lb-diagonal":
        parts += [options.conv]
    if options.placement != "gradient":
        parts += [options.placement]
    if options.l2:
        parts += [f"l2_{options.l2:g}"]
    return "-".join([*parts, f"rate{options.rate:g}", f"seed{options.seed}"]) + ".json"


def train(options):
    """Train once and write the record."""
    path = FOLDER / name(options)
    if path.exists():
        print(f"{path.name}: finished before")
        return
    import keras

    from keras_noisylb import data as data_sets
    from keras_noisylb.experiments import records, regimes, runs, splits
    from keras_noisylb.experiments.problem import builder
    from noisylb.protocol.options import Options

    chosen = Options(
        regimes=options.regime, model="resnet8", dataset="cifar10", data_dir=options.data_dir,
        large_batch_size=512, small_batch_size=32, epochs=options.epochs,
        learning_rate=f"{options.regime}={options.rate}", conv=options.conv,
        multiplier=options.multiplier, placement=options.placement, l2=options.l2, train_size=4096,
        validation_fraction=HELD_OUT, seeds=f"{options.seed},", quiet=True,
    )  # fmt: skip
    data = splits.load(chosen)
    regime, rate = regimes.choose(chosen)[options.regime]
    keras.utils.set_random_seed(options.seed)
    network = builder(chosen, data.num_classes, data.x_train.shape[1:])()
    model, _ = runs.compiled(network, regime, rate, chosen, len(data.x_train), options.seed)
    kernels = [v for v in network.trainable_variables if v.name == "kernel"][:-1]  # not the logits'
    epochs = []

    def look(epoch, logs):
        squares = sum(float(keras.ops.sum(keras.ops.square(kernel))) for kernel in kernels)
        now = float(model.optimizer.learning_rate)
        epochs.append({
            "loss": logs["loss"], "accuracy": logs["accuracy"], "kernel_norm_squared": squares,
            "effective_rate": now / squares,
        })  # fmt: skip
        if not math.isfinite(logs["loss"]):
            model.stop_training = True

    def batches(size):
        current["batches"] = data.batches(size, options.seed, augment=False)
        return current["batches"]

    current = {}
    callback = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: current["batches"].start(epoch), on_epoch_end=look
    )
    regime.batch_change(chosen).fit(
        model, batches, shuffle=False, epochs=chosen.epochs, verbose=0, callbacks=[callback]
    )
    _, test = data_sets.load("cifar10", data_dir=options.data_dir)
    results = {}
    for part, x, y in (
        ("train", data.x_train, data.y_train),
        ("held_out", data.x_test, data.y_test),
        ("test", *test),
    ):
        loss, accuracy = model.evaluate(x, y, batch_size=1000, verbose=0)
        results |= {f"{part}_loss": loss, f"{part}_accuracy": accuracy}
    options_kept = chosen.resolved()
    for local in ("data_dir", "output", "quiet"):
        del options_kept[local]
    FOLDER.mkdir(parents=True, exist_ok=True)
    record = {"options": options_kept, "versions": records.versions(), **results, "epochs": epochs}
    records.write_json(path, record, indent=None)
    print(f"{path.name}: {100 * results['held_out_accuracy']:.2f} %", flush=True)


def described(options):
    """Regime, λ and rate of a record, in words."""
    (regime,) = options["regimes"]
    words, noisy = regime.upper() if len(regime) == 2 else regime, regime.startswith("lb-")
    if regime in {"lb-diagonal", "lb-trace"}:
        words += {"exact": ", exact", "uncorrelated": ", A.5"}[options["conv"]]
    if options["placement"] == "update":
        words += ", in the update"
    if options["l2"]:
        words += f", L2 {options['l2']:g}"
    multiplier = f"{options['multiplier']:g}" if noisy else "–"
    return words, multiplier, f"{options['learning_rate'][regime]:g}"


def table(_):
    """Print the table of all records: means over seeds, and the spread of the accuracies."""
    columns = ("regime", "λ", "rate", "seeds", "train loss", "train %", "held-out %", "test %")
    print(f"| {' | '.join(columns)} | ‖w‖², ¼ → end | rate/‖w‖², 10⁻³ |")
    print("|---" * 10 + "|")
    groups = {}
    for path in FOLDER.glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        quarter, end = record["epochs"][len(record["epochs"]) // 4], record["epochs"][-1]
        record["train_loss"] = record["train_loss"] or math.nan
        record["norms"] = quarter["kernel_norm_squared"], end["kernel_norm_squared"]
        record["effective_rate"] = quarter["effective_rate"]
        groups.setdefault(described(record["options"]), []).append(record)
    for words, group in sorted(groups.items()):

        def mean(name, group=group):
            return np.mean([record[name] for record in group], axis=0)

        def percent(name, group=group):
            values = [100 * record[f"{name}_accuracy"] for record in group]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            return f"{np.mean(values):.1f}{spread}"

        print(
            f"| {' | '.join(words)} | {len(group)} | {mean('train_loss'):.3f} | "
            f"{100 * mean('train_accuracy'):.1f} | {percent('held_out')} | {percent('test')} | "
            f"{mean('norms')[0]:.0f} → {mean('norms')[1]:.0f} | "
            f"{1e3 * mean('effective_rate'):.2f} |"
        )


def main():
    """Train once, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    jobs = parser.add_subparsers(required=True)
    training = jobs.add_parser("train")
    training.set_defaults(job=train)
    training.add_argument("--regime", required=True)
    training.add_argument("--rate", type=float, required=True)
    training.add_argument("--conv", default="exact", choices=["exact", "uncorrelated"])
    training.add_argument("--multiplier", type=float, default=1.0)
    training.add_argument("--placement", default="gradient", choices=["gradient", "update"])
    training.add_argument("--l2", type=float, default=0.0)
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--epochs", type=int, default=60)
    training.add_argument("--data-dir")
    jobs.add_parser("table").set_defaults(job=table)
    options = parser.parse_args()
    options.job(options)


if __name__ == "__main__":
    main()
