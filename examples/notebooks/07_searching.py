# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Searching with KerasTuner
#
# Training with noise has *hyperparameters*, which training itself does not determine: the learning
# rate, the batch sizes, and the kind, size and duration of the noise. A *search* trains with
# several combinations, each called a *trial*, and keeps the trial with the best score on held-out
# examples.
#
# `keras_noisylb.tuning` provides the search space of this method for every tuner of KerasTuner. In
# the clone, KerasTuner is installed by
#
#     pip install -e '.[cli,tuner]'

# %% tags=["parameters"]
num_examples = 3000  # images, of which a fifth is held out
epochs = 6
max_trials = 6
seeds = (0, 1)

# %%
import tempfile

import keras
import keras_tuner
import matplotlib.pyplot as plt
import numpy as np

import keras_noisylb as nlb
from keras_noisylb.tuning import NoisyHyperModel, results

(x_train, y_train), (x_test, y_test) = nlb.data.load("fashion_mnist_small")
x_train, y_train = x_train[:num_examples], y_train[:num_examples]

# %% [markdown]
# ## Held-out images
#
# The test images must not be used to choose the hyperparameters: the test accuracy of the best of
# several trials would be too optimistic. Therefore a fifth of the training images of each class is
# held out.

# %%
(x_fit, y_fit), held_out = nlb.data.split(x_train, y_train, fraction=0.2)
print(f"{len(x_fit)} images to train on, {len(held_out[0])} held out")

# %% [markdown]
# ## The search space
#
# A `NoisyHyperModel` needs a function that builds a network, and a loss. Every dimension of the
# space is a fixed value, a tuple of choices, or a function that asks `hp` for a number. Other
# dimensions have default choices.
#
# Here a small network is trained with batches of 400, with or without diagonal noise. The learning
# rate is searched on a logarithmic scale. Each trial trains once per seed, and its score is the
# mean over the seeds.


# %%
def build(hp):
    """A network with one hidden layer."""
    return keras.Sequential([
        keras.Input((28, 28, 1)),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10),
    ])


hypermodel = NoisyHyperModel(
    build,
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    seeds=seeds,
    noise=("diagonal", "none"),
    estimator="split",
    small_batch_size=50,
    large_batch_size=400,
    multiplier=(1.0, 0.3),
    learning_rate=lambda hp: hp.Float("learning_rate", 0.02, 0.5, sampling="log"),
    noise_fraction=0.25,
    warmup_fraction=0.05,
    momentum=0.9,
)

# %% [markdown]
# ## The search
#
# The tuner chooses the trials, here at random. It stores them in a folder, so that an interrupted
# search can continue. This page deletes the folder at the end.

# %%
folder = tempfile.TemporaryDirectory()
tuner = keras_tuner.RandomSearch(
    hypermodel,
    objective="val_accuracy",
    max_trials=max_trials,
    seed=8,  # draws both kinds; KerasTuner treats 0 as no seed
    directory=folder.name,
    project_name="noise",
)
tuner.search(x_fit, y_fit, validation_data=held_out, epochs=epochs, verbose=0)

# %% [markdown]
# ## Results
#
# `results` returns the trials, best first, with the score of each seed.

# %%
trials = results(tuner)
for trial in trials:
    scores = ", ".join(f"{score:.1%}" for score in trial.seed_scores.values())
    noise = trial.values["noise"]
    if noise != "none":
        noise += f" × {trial.values['multiplier']}"
    rate = trial.values["learning_rate"]
    print(f"rate {rate:.3f}, noise {noise:14} {trial.score:.1%} (seeds: {scores})")

# %%
plt.figure(figsize=(5, 3))
for kind, marker in (("none", "o"), ("diagonal", "^")):
    chosen = [trial for trial in trials if trial.values["noise"] == kind]
    rates = np.repeat([trial.values["learning_rate"] for trial in chosen], len(seeds))
    scores = [score for trial in chosen for score in trial.seed_scores.values()]
    plt.plot(rates, scores, marker, label=f"noise: {kind}")
plt.gca().set(xlabel="learning rate", ylabel="accuracy, held out", xscale="log")
plt.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Is the best one really better?
#
# The scores of the trials contain random errors, so the best trial is partly lucky. Two numbers
# measure this: the spread of the seeds within a trial, and the standard error of an accuracy on so
# few held-out images.

# %%
best, *others = trials
lead = best.score - others[0].score
spread = np.sqrt(np.mean([trial.std**2 for trial in trials]))
error = np.sqrt(best.score * (1 - best.score) / len(held_out[0]))
print(f"The best trial leads by {lead:.2%}. Seeds of one trial spread by {spread:.2%} (standard")
print(f"deviation), and {len(held_out[0])} images have a standard error of {error:.2%}.")
clear = lead > 2 * max(spread, error)
print("That is a clear lead." if clear else "That lead is within what chance does.")

# %% [markdown]
# ## Training with the best values
#
# The network is trained again with the best values and the first seed. The test images are used
# only once, at the end.

# %%
values = tuner.get_best_hyperparameters()[0]
model = hypermodel.build(values)
hypermodel.fit(values, model, x_fit, y_fit, validation_data=held_out, epochs=epochs, verbose=0)
accuracy = model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
error = np.sqrt(accuracy * (1 - accuracy) / len(x_test))
print(f"test accuracy {accuracy:.2%} ± {error:.2%}")
folder.cleanup()
