# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Closing the generalisation gap?
#
# A network that was trained with a large batch often performs worse on new examples than a network
# that was trained with a small batch. The difference is the *generalisation gap*. Can noise in the
# gradient of the large batch close it? This page compares
#
# | name | batch | noise in the first half of the training |
# |---|---|---|
# | SB | small | |
# | LB | large | |
# | LB + full (split) | large | the full gradient noise of the small batch, times λ |
# | LB + diagonal (split) | large | one variance for each weight, times λ |
#
# "split" means that the noise is estimated from the two halves of each batch. λ is the *matched*
# one: it makes the training as noisy as SB at its learning rate (`docs/how_much_noise.md`).
#
# A gap needs a training that fits its images, with thousands of updates. This takes hours on two
# processor cores. Therefore this page first shows recorded trainings, and then trains a short
# version. The short version takes about one minute and is **too short for the noise to help**.

# %% tags=["parameters"]
num_examples = 10_000  # training images of the short version
small_batch_size = 50
large_batch_size = 1000
epochs = 15
seeds = (0, 1, 2)

# %%
import json
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

import keras_noisylb as nlb

# %% [markdown]
# ## Where noise helps: recorded trainings
#
# The records are files of this repository. A ResNet8 was trained on 8192 images of CIFAR-10,
# averaged to 16×16, for 150 epochs, with batches of 32 and 512: 2400 updates of LB. At the learning
# rate of LB, 0.4, the matched λ is 0.45; the trainings have 0.5. Three trainings of each kind
# differ in their *seed*, which determines the initial weights, the order of the images and the
# noise.

# %%
folders = (Path.cwd(), *Path.cwd().parents)
records = next(f / "docs/records/tables/small" for f in folders if (f / "docs/records").exists())


def recorded(row, name, seeds="[012]"):
    """Epochs, and the test accuracy of each seed in these epochs."""
    files = sorted(records.glob(f"{row}/{name}-seed{seeds}/run.json"))
    runs = [json.loads(file.read_text()) for file in files]
    found = [[e for e in run["history"]["epochs"] if "test_accuracy" in e] for run in runs]
    curves = np.array([[e["test_accuracy"] for e in entries] for entries in found])
    return [e["epoch"] for e in found[0]], curves


noisy = "rate0.4-lambda0.5-part0.5"
resnet = {
    "SB": recorded("cifar10-small", "sb-rate0.1"),
    "LB": recorded("cifar10-small", "lb-rate0.4"),
    "LB, 2 × the rate": recorded("cifar10-small", "lb-rate0.8"),
    "LB, 8 × the rate": recorded("cifar10-small", "lb-rate3.2"),
    "LB + full (split)": recorded("cifar10-small", f"lb-full-split-{noisy}"),
    "LB + diagonal (split)": recorded("cifar10-small", f"lb-diagonal-split-{noisy}"),
}


def draw(runs, title):
    """Accuracy along training: the mean of the seeds, and its standard error."""
    plt.figure(figsize=(6, 3.4), layout="constrained")
    for name, (epoch, curves) in runs.items():
        error = curves.std(axis=0, ddof=1) / np.sqrt(len(curves))
        plt.errorbar(epoch, 100 * curves.mean(axis=0), 100 * error, capsize=2, label=name)
    plt.gca().set(xlabel="epoch", ylabel="test accuracy, %", title=title)
    plt.legend(frameon=False, fontsize=8)
    plt.show()


draw(resnet, "ResNet8, CIFAR-10 at 16×16, recorded")

# %% [markdown]
# Each line is the mean of three seeds; bars are its standard error. The noise ends in the middle,
# where the learning rate is also divided by 10.
#
# ## Larger than chance?
#
# Two kinds of chance change an accuracy: the *seed* of the training, and which *test images* happen
# to be in the test set. A difference between two kinds of training means something only if it is
# larger than both.
#
# - **Seeds.** Trainings with the same seed are compared. The differences have a mean and a standard
#   deviation; the standard deviation divided by √n is the *standard error* of the mean of n seeds.
#   The t-test compares the two. Its p is the probability of such a difference, or a larger one, if
#   there is none.
# - **Images.** An accuracy of p on N images has the standard error √(p (1 − p) / N), at most 0.5
#   points on 10,000 images. For a difference of two accuracies it is at most √2 times as large.
#
# Here a difference is called *clear* if p is below 0.05 and the difference is larger than two
# standard errors of the images. Differences are in points, that is, in percent of the images. Of
# twenty comparisons without a difference, about one has such a small p by chance.


# %%
def compare(first, second, accuracies, images):
    """A sentence on the difference of two kinds of training.

    `accuracies` has the final accuracy of each seed; `images` is the standard error by the images.
    """
    differences = accuracies[first] - accuracies[second]
    difference = differences.mean()
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    p = stats.ttest_rel(accuracies[first], accuracies[second]).pvalue
    clear = p < 0.05 and abs(difference) > 2 * images
    return (
        f"{'clear' if clear else 'not clear'}: {first} over {second} {100 * difference:+.1f} "
        f"(± {100 * error:.1f} by seeds, p = {p:.2g}; ± {100 * images:.1f} by images)"
    )


final = {name: curves[:, -1] for name, (_, curves) in resnet.items()}
worst = np.sqrt(2 * 0.5 * 0.5 / 10_000)
for name, found in final.items():
    print(f"{name:21} {100 * found.mean():.1f} ± {100 * found.std(ddof=1):.1f} %")
for pair in (
    ("SB", "LB"),
    ("LB + full (split)", "LB"),
    ("LB + diagonal (split)", "LB"),
    ("LB, 8 × the rate", "LB"),
    ("SB", "LB + full (split)"),
    ("SB", "LB, 8 × the rate"),
):
    print(compare(*pair, final, worst))

# %% [markdown]
# There is a clear gap, and full (split) noise closes a large part of it. Diagonal (split) noise of
# the same total variance does not. A higher learning rate helps as much: if the rate can grow with
# the batch, this is simpler than noise.
#
# In the second recorded setting it cannot: LeNet without normalisation, batches of 32 and 2048. At
# the higher rates, some trainings with large batches fail. Full (split) noise at the rate 0.1 is as
# good as SB, with every seed.

# %%
noisy = "rate0.1-lambda0.25-part0.5"
lenet = {
    "SB": "sb-rate0.01",
    "LB, rate 0.05": "lb-rate0.05",
    "LB, rate 0.1": "lb-rate0.1",
    "LB, rate 0.15": "lb-rate0.15",
    "LB, rate 0.2": "lb-rate0.2",
    "LB + full (split), 0.1": f"lb-full-split-{noisy}",
    "LB + diagonal (split), 0.1": f"lb-diagonal-split-{noisy}",
}
plt.figure(figsize=(6, 2.8), layout="constrained")
for place, (name, folder) in enumerate(lenet.items()):
    found = 100 * recorded("cifar10-lenet-2048", folder, seeds="[0-4]")[1][:, -1]
    plt.plot(found, [place] * len(found), "o", color="#0072B2")
    print(f"{name:26} {', '.join(f'{value:.2f}' for value in found)} %")
plt.yticks(range(len(lenet)), list(lenet))
plt.gca().invert_yaxis()
plt.gca().set(xlabel="test accuracy, %: one point per seed", xlim=(0, 60))
plt.show()

# %% [markdown]
# ## A short version
#
# Now train a small network with one hidden layer on the bundled images of clothes. Its statistics
# of *ghost batch normalisation* are always taken over 50 examples, so the kinds of training differ
# only in their gradients. The learning rate rises in the first twentieth of the updates and is
# divided by 10 after a half and after three quarters.

# %%
(x_train, y_train), test = nlb.data.load("fashion_mnist_small")
x_train, y_train = x_train[:num_examples], y_train[:num_examples]


def train(batch_size, learning_rate, noise=None, seed=0):
    """The test accuracy after each epoch, and which test images are classified correctly."""
    keras.utils.set_random_seed(seed)
    network = nlb.models.MLP(hidden_units=(128,), ghost_batch_size=small_batch_size)
    updates = epochs * -(-num_examples // batch_size)
    rate = nlb.WarmupStepDecay(
        learning_rate, warmup_steps=updates // 20, decay_steps=[updates // 2, 3 * updates // 4]
    )
    model, optimizer = network, keras.optimizers.SGD(rate, momentum=0.9)
    if noise is not None:
        model = nlb.NoisyModel(network)
        optimizer = nlb.NoisyOptimizer(optimizer, noise, noise_fraction=0.5, seed=seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    history = model.fit(
        x_train, y_train, batch_size, epochs=epochs, validation_data=test, verbose=0
    ).history
    right = network.predict(test[0], batch_size=500, verbose=0).argmax(axis=-1) == test[1]
    return history["val_accuracy"], right


small_rate, large_rate = 0.02, 0.1
multiplier = nlb.matched_multiplier(large_batch_size, small_batch_size, large_rate, small_rate)
noise = nlb.FullFisher(small_batch_size, estimator="split", multiplier=multiplier)
kinds = {
    "SB": (small_batch_size, small_rate),
    "LB": (large_batch_size, large_rate),
    "LB + full (split)": (large_batch_size, large_rate, noise),
}
trained = {name: [train(*kind, seed=seed) for seed in seeds] for name, kind in kinds.items()}
print(f"λ = {multiplier:.2f}")

# %%
short = {
    name: (np.arange(1, epochs + 1), np.array([curve for curve, _ in runs]))
    for name, runs in trained.items()
}
draw(short, "the short version")

# %% [markdown]
# All networks classify the same test images. So only images on which two networks disagree make a
# difference, and the standard error by the images can be computed: it is the standard deviation of
# the difference of each image, mean over the seeds, divided by √N.

# %%
correct = {name: np.array([right for _, right in runs]) for name, runs in trained.items()}
accuracies = {name: found.mean(axis=1) for name, found in correct.items()}


def image_error(first, second):
    """The standard error of the difference of two accuracies by the test images."""
    differences = correct[first].mean(axis=0) - correct[second].mean(axis=0)
    return differences.std() / np.sqrt(len(differences))


verdicts = [
    compare(*pair, accuracies, image_error(*pair))
    for pair in (("SB", "LB"), ("LB + full (split)", "LB"), ("SB", "LB + full (split)"))
]
print("\n".join(verdicts))

# %% [markdown]
# With fewer than three seeds, almost nothing is clear: a single difference of two networks contains
# both kinds of chance, and the first kind cannot be computed from one pair.
#
# ## What you have learned

# %%
gap, gain = (100 * (final[name] - final["LB"]).mean() for name in ("SB", "LB + full (split)"))
print(f"1. On the recorded ResNet8, full (split) noise gains {gain:.1f} of {gap:.1f} points.")
print("   A higher learning rate also gains.")
print(f"2. In this short version,\n   {verdicts[1]}")
print("3. A difference counts if it is larger than both kinds of chance, seeds and images.")

# %% [markdown]
# ## What to try next
#
# - The recorded trainings: `noisylb table small --data-dir DATA` (hours; CIFAR-10 is needed).
# - All results, also those without a gain: `docs/results.md`.
# - The same comparison for your own model: `nlb.compare` in `docs/your_problem.md`.
