"""Search noise, batch sizes and learning rate with KerasTuner on a part of the bundled images.

    pip install -e '.[cli,tuner]'
    python examples/tune.py [--examples 2500] [--trials 6] [--epochs 5]

Six random trials with two seeds each show the table, but are far too few for a choice. The search
is stored in the directory `results/tune`. If it is interrupted, start the script again: it
continues where it stopped.
"""

import argparse

import keras
import keras_tuner
from rich.console import Console
from rich.table import Table

import keras_noisylb as nlb
from keras_noisylb.tuning import NoisyHyperModel, results

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--examples", type=int, default=2500, help="images, a fifth of them held out")
parser.add_argument("--trials", type=int, default=6)
parser.add_argument("--epochs", type=int, default=5)
options = parser.parse_args()

(x, y), _ = nlb.data.load("fashion_mnist_small")  # a search must not use the test set
x, y = x[: options.examples], y[: options.examples]


def full_noise(hp):
    """Full (split) noise; λ is near the one that matches batches of 32 at the rate 0.05."""
    matched = nlb.matched_multiplier(hp.get("large_batch_size"), 32, hp.get("learning_rate"), 0.05)
    factor = hp.Choice("factor", [0.5, 1.0, 2.0])
    return nlb.FullFisher(32, estimator="split", multiplier=factor * matched)


hypermodel = NoisyHyperModel(
    lambda hp: nlb.models.MLP(hidden_units=(128,), ghost_batch_size=32),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    seeds=(0, 1),
    noise={"full (split)": full_noise, "none": None},
    noise_fraction=0.5,
    large_batch_size=(200, 400),
    learning_rate=lambda hp: hp.Float("learning_rate", 0.02, 0.5, sampling="log"),
    momentum=0.9,
)
tuner = keras_tuner.RandomSearch(
    hypermodel,
    objective="val_accuracy",
    max_trials=options.trials,
    seed=8,
    directory="results",
    project_name="tune",
)
tuner.search(x, y, epochs=options.epochs, validation_split=0.2, verbose=0)

parts = ["noise", "factor", "large_batch_size", "learning_rate", "warmup_fraction"]
table = Table("trial", "validation accuracy", *(part.replace("_", " ") for part in parts))
for trial in results(tuner):
    score = trial.reason if trial.score is None else f"{trial.score:.3f} ± {trial.std:.3f}"
    values = [trial.values.get(part, "") for part in parts]
    values = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in values]
    table.add_row(trial.trial_id, score, *values)
Console(width=130).print(table, "mean ± standard deviation over seeds 0 and 1", sep="\n")
