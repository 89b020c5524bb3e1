"""Search noise, batch sizes and learning rate with KerasTuner on a part of the bundled images.

    pip install 'keras-noisylb[tuner]'
    python examples/tune.py

Six random trials of two seeds each: enough to show the table, far too few to choose anything by.
The directory `results/tune` keeps the search; started once more, it goes on where it stopped.
"""

import keras
import keras_tuner
from rich.console import Console
from rich.table import Table

import keras_noisylb as nlb
from keras_noisylb.tuning import NoisyHyperModel, results

(x, y), _ = nlb.data.load("fashion_mnist_small")  # the test set plays no part in a search
x, y = x[:2500], y[:2500]

hypermodel = NoisyHyperModel(
    lambda hp: nlb.models.MLP(hidden_units=(128,), ghost_batch_size=32),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    seeds=(0, 1),
    noise=("diagonal", "none"),
    small_batch_size=(16, 32),
    multiplier=(0.3, 1.0),
    large_batch_size=(200, 400),
    learning_rate=lambda hp: hp.Float("learning_rate", 0.02, 0.5, sampling="log"),
    momentum=0.9,
)
tuner = keras_tuner.RandomSearch(
    hypermodel,
    objective="val_accuracy",
    max_trials=6,
    seed=8,
    directory="results",
    project_name="tune",
)
tuner.search(x, y, epochs=5, validation_split=0.2, verbose=0)

parts = ["noise", "estimator", "small_batch_size", "multiplier", "noise_fraction"]
parts += ["large_batch_size", "learning_rate"]
table = Table("trial", "validation accuracy", *(part.replace("_", " ") for part in parts))
for trial in results(tuner):
    score = trial.reason if trial.score is None else f"{trial.score:.3f} ± {trial.std:.3f}"
    values = [trial.values.get(part, "") for part in parts]
    values = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in values]
    table.add_row(trial.trial_id, score, *values)
Console(width=130).print(table, "mean ± standard deviation over seeds 0 and 1", sep="\n")
