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
num_examples = 8000  # images, of which a quarter is held out
epochs = 6
max_trials = 10
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
# several trials would be too optimistic. Therefore a quarter of the training images of each class
# is held out.

# %%
(x_fit, y_fit), held_out = nlb.data.split(x_train, y_train, fraction=0.25)
print(f"{len(x_fit)} images to train on, {len(held_out[0])} held out")

# %% [markdown]
# ## The search space
#
# A `NoisyHyperModel` needs a function that builds a network, and a loss. Every dimension of the
# space is a fixed value, a tuple of choices, or a function that asks `hp` for a number.
#
# Here the batch is fixed at 512. The learning rate is searched on a logarithmic scale, and so are
# the momentum and the noise. The noise is the one that `docs/choosing.md` recommends: full (split),
# in the first half of the training. Its λ is not searched: for every learning rate, the matched λ
# gives a batch of 512 as much noise as batches of 50 have at the rate 0.02. Each trial trains once
# per seed, and its score is the mean over the seeds.


# %%
def build(hp):
    """A network with one hidden layer."""
    return keras.Sequential([
        keras.Input((28, 28, 1)),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10),
    ])


def full_noise(hp):
    """Full (split) noise with the λ that matches the learning rate of the trial."""
    multiplier = nlb.matched_multiplier(512, 50, hp.get("learning_rate"), 0.02)
    return nlb.FullFisher(50, estimator="split", multiplier=multiplier)


hypermodel = NoisyHyperModel(
    build,
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    seeds=seeds,
    noise={"none": None, "full (split)": full_noise},
    noise_fraction=0.5,
    large_batch_size=512,
    learning_rate=lambda hp: hp.Float("learning_rate", 0.01, 1.0, sampling="log"),
    momentum=(0.0, 0.9),
    warmup_fraction=0.05,
)

# %% [markdown]
# ## The default
#
# A search must beat what one would do without it. This is the default of Keras: SGD with the
# learning rate 0.01 and no momentum. The first choices of the space have these values.

# %%
default = keras_tuner.HyperParameters()
hypermodel.build(default)  # registers the dimensions
print(default.values)


def score(values, data):
    """The accuracy of each seed at its best epoch, as KerasTuner scores a trial."""
    histories = hypermodel.fit(
        values,
        hypermodel.build(values),
        x_fit,
        y_fit,
        validation_data=data,
        epochs=epochs,
        verbose=0,
    )
    return np.array([max(found.history["val_accuracy"]) for found in histories])


default_scores = score(default, held_out)
print(f"default: {default_scores.mean():.1%} on the held-out images")

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
    rate, momentum = trial.values["learning_rate"], trial.values["momentum"]
    print(
        f"rate {rate:.3f}, momentum {momentum}, noise {trial.values['noise']:12} "
        f"{trial.score:.1%} (seeds: {scores})"
    )

# %%
plt.figure(figsize=(5.5, 3), layout="constrained")
kinds = [(noise, momentum) for noise in ("none", "full (split)") for momentum in (0.0, 0.9)]
for (noise, momentum), marker in zip(kinds, "os^v", strict=True):
    chosen = [t for t in trials if (t.values["noise"], t.values["momentum"]) == (noise, momentum)]
    rates = np.repeat([trial.values["learning_rate"] for trial in chosen], len(seeds))
    scores = [100 * score for trial in chosen for score in trial.seed_scores.values()]
    plt.plot(rates, scores, marker, label=f"noise: {noise}, momentum {momentum}")
plt.axhline(100 * default_scores.mean(), color="0.5", linestyle=":", label="default")
plt.gca().set(xlabel="learning rate", ylabel="accuracy, held out, %", xscale="log")
plt.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## Is the best one really better?
#
# The scores contain random errors, so the best of many trials is partly lucky. Two numbers measure
# this: the spread of the seeds within a trial, and the standard error of an accuracy on so few
# held-out images. A lead counts here if it is more than twice the larger one.

# %%
best, *others = trials
spread = np.sqrt(np.mean([trial.std**2 for trial in trials]))
error = np.sqrt(best.score * (1 - best.score) / len(held_out[0]))
print(f"Seeds of one trial spread by {spread:.2%} (standard deviation), and {len(held_out[0])}")
print(f"images have a standard error of {error:.2%}.")


def words(lead):
    """Whether a lead is clear."""
    clear = lead > 2 * max(spread, error)
    return f"{lead:.2%}, which is {'a clear lead' if clear else 'within what chance does'}"


lead, runner_up_lead = best.score - default_scores.mean(), best.score - others[0].score
print(f"The best trial is above the default by {words(lead)}.")
print(f"It is above the second trial by {words(runner_up_lead)}.")

# %% [markdown]
# So the search finds good values, but it does not say which of the best trials is the best one. In
# so few updates noise cannot help (`05_generalisation_gap` shows where it does), and the search
# finds that, too.
#
# ## On the test images
#
# Two networks are trained again, with the default and with the best values, with the first seed.
# The test images are used only once, at the end.


# %%
def test_accuracy(values):
    """The test accuracy of a training with the first seed."""
    model = hypermodel.build(values)  # `fit` trains it with the first seed
    hypermodel.fit(values, model, x_fit, y_fit, validation_data=held_out, epochs=epochs, verbose=0)
    return model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]


on_test = {
    "default": test_accuracy(default),
    "best trial": test_accuracy(tuner.get_best_hyperparameters()[0]),
}
for name, accuracy in on_test.items():
    error = np.sqrt(accuracy * (1 - accuracy) / len(x_test))
    print(f"{name:10} test accuracy {accuracy:.1%} ± {error:.1%}")
folder.cleanup()

# %% [markdown]
# ## What you have learned

# %%
gain = on_test["best trial"] - on_test["default"]
print(f"1. The best of {max_trials} trials gains {gain:+.1%} on the test images over the default.")
print(f"2. The best trial has the rate {best.values['learning_rate']:.2g}, the momentum", end=" ")
print(f"{best.values['momentum']} and the noise {best.values['noise']!r}.")
print(f"3. Its lead over the second trial is {words(runner_up_lead)}.")

# %% [markdown]
# ## What to try next
#
# - More trials and seeds, and `keras_tuner.BayesianOptimization` in the place of `RandomSearch`.
# - Your own network in `build`; it can ask `hp` for its own dimensions.
# - `noisylb tune 2 --trials 20` searches the recipes of the paper (`docs/tuning.md`).
