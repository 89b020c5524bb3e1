# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Is my batch too large?
#
# Training moves the weights of a network against the *gradient* of its loss. The gradient is the
# mean over a *batch* of examples. One step with one batch is an *update*. A larger batch gives a
# more accurate gradient, so training needs fewer updates. But it reads more examples per update.
# Beyond some size, a larger batch only costs time.
#
# This size can be measured. Let G be the exact gradient, and Σ the covariance of the gradient of
# one example. A batch of B examples has a gradient with the random error tr Σ / B (the expected
# square of its length). The error is as large as the gradient itself at
#
# $$B_{\text{noise}} = \frac{\mathrm{tr}\,\Sigma}{\lVert G \rVert^2},$$
#
# the *gradient noise scale* ([McCandlish et al. 2018](https://arxiv.org/abs/1812.06162)). A batch
# that is much larger averages away an error that is already small.
#
# This page measures it for one network, checks by training whether it is right, and follows it
# along a training. It takes about two minutes on two processor cores.

# %% tags=["parameters"]
num_examples = 10_000  # training images
batch_size = 32  # in use now
learning_rate = 0.02  # in use now
updates = 200  # of the short training that measures
tried = (16, 64, 256, 1024, 4096)  # batch sizes of the check
target = 0.45  # the check ends at this training loss
epochs = 6  # of the training that is followed

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_noisylb as nlb

keras.utils.set_random_seed(0)

# %% [markdown]
# ## Your model and data
#
# Replace this cell with your own: a function that builds a Keras model, its loss, and arrays of
# inputs and targets. Here a small convolutional network classifies the bundled images of clothes.

# %%
(x, y), _ = nlb.data.load("fashion_mnist_small")
x, y = x[:num_examples], y[:num_examples]
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build():
    """A new, untrained network."""
    layers = keras.layers
    return keras.Sequential([
        keras.Input(x.shape[1:]),
        layers.Conv2D(16, 3, strides=2, activation="relu"),
        layers.Conv2D(32, 3, strides=2, activation="relu"),
        layers.Flatten(),
        layers.Dense(64, activation="relu"),
        layers.Dense(10),
    ])


def compiled(learning_rate):
    """A new network with an optimizer."""
    network = build()
    network.compile(keras.optimizers.SGD(learning_rate, momentum=0.9), loss)
    return network


# %% [markdown]
# ## Ask
#
# `advise` trains a copy of the model for some updates with the batch size in use, and measures the
# noise scale early and late in this short training. With `highest_rate="measure"` it also tries
# higher learning rates with the batch that it suggests.

# %%
advice = nlb.advise(
    compiled(learning_rate),
    x,
    y,
    batch_size=batch_size,
    updates=updates,
    highest_rate="measure",
    verbose=0,
)
print(advice)

# %% [markdown]
# In brackets is a 95 % confidence interval. λ is the strength of the gradient noise that this
# package can add to a large batch. It is 0 if the learning rate can grow with the batch, because
# then nothing is lost.
#
# ## Is it right?
#
# McCandlish et al. predict from the noise scale what a training with batches of B examples needs,
# if its learning rate is the best for B:
#
# $$\text{updates} \propto 1 + \frac{B_{\text{noise}}}{B}, \qquad
# \text{examples} \propto 1 + \frac{B}{B_{\text{noise}}}, \qquad
# \text{learning rate} \propto \frac{1}{1 + B_{\text{noise}} / B}.$$
#
# The next cells train new networks with different batch sizes to the same training loss, with this
# learning rate.


# %%
class StopAt(keras.callbacks.Callback):
    """Ends the training when the loss on some training images is below a level."""

    def __init__(self, level, every):
        super().__init__()
        self.level, self.every, self.updates = level, every, 0

    def on_train_batch_end(self, batch, logs=None):
        self.updates += 1
        if self.updates % self.every == 0:
            value = float(loss(y[:2000], self.model(x[:2000])))
            self.model.stop_training = value < self.level


def updates_to(level, size):
    """The number of updates to a training loss, with batches of a size."""
    rate = learning_rate * (1 + scale / batch_size) / (1 + scale / size)
    stop = StopAt(level, every=max(256 // size, 4))
    keras.utils.set_random_seed(0)
    compiled(rate).fit(x, y, batch_size=size, epochs=100, callbacks=[stop], verbose=0)
    return stop.updates


scale = advice.late.value
tried = [size for size in tried if size <= len(x)]
needed = {size: updates_to(target, size) for size in tried}
for size, number in needed.items():
    print(f"batches of {size:4}: {number:4} updates, {number * size:7,} examples")

# %%
sizes, numbers = np.array(tried), np.array(list(needed.values()))
line = np.geomspace(sizes[0], sizes[-1], 100)
# One number is fitted, the smallest possible number of updates. The shape is predicted.
fewest = np.exp(np.mean(np.log(numbers / (1 + scale / sizes))))
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3), layout="constrained")
for panel, factor, what in ((left, 1, "updates"), (right, line, "examples")):
    panel.axvspan(advice.late.lower, advice.late.upper, color="0.85", label="noise scale")
    panel.plot(line, fewest * (1 + scale / line) * factor, color="0.4", label="predicted")
    found = numbers if what == "updates" else numbers * sizes
    panel.plot(sizes, found, "o", label="trained")
    panel.set(xlabel="batch size", ylabel=f"{what} to a loss of {target}")
    panel.set(xscale="log", yscale="log")
    panel.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    ticks = sorted(set(found))
    panel.set_yticks(ticks, [f"{number:,}" for number in ticks], minor=False)
    panel.tick_params(which="minor", labelleft=False, labelbottom=False)
left.legend(frameon=False)
plt.show()

# %% [markdown]
# Below the noise scale, a larger batch saves updates and costs few additional examples. Above it,
# the number of updates hardly falls and the number of examples grows with the batch. In the grey
# band, both are about twice the smallest possible number.
#
# Fewer updates save time only if the machine computes a large batch faster than several small
# ones, as GPUs do.
#
# ## Along a training
#
# The noise scale is not constant. When the network has learned what most images have in common,
# the gradient G is small, and Σ is not. `GradientNoiseMonitor` logs the noise scale in every epoch.
# It computes each batch as two halves and compares their gradients, at hardly any cost. It needs
# the training step of a `NoisyModel`; no noise is added.

# %%
keras.utils.set_random_seed(0)
network = build()
model = nlb.NoisyModel(network)
model.compile(keras.optimizers.SGD(learning_rate, momentum=0.9), loss)
history = model.fit(
    x, y, batch_size=batch_size, epochs=epochs, callbacks=[nlb.GradientNoiseMonitor()], verbose=0
).history

# %% [markdown]
# The monitor's numbers are means over an epoch. `critical_batch_size` measures the same at fixed
# weights, here the final ones, with a confidence interval.

# %%
final = nlb.diagnostics.critical_batch_size(network, loss, x, y, batch_size=batch_size, verbose=0)
along = np.array(history["gradient_noise_scale"])
print(f"mean of the last epoch: {along[-1]:.0f} examples")
print(f"at the final weights: {final.value:.0f} examples ({final.lower:.0f} to {final.upper:.0f})")

# %%
plt.figure(figsize=(5.5, 3), layout="constrained")
plt.plot(np.arange(epochs) + 0.5, along, "o-", label="monitor, mean of an epoch")
interval = [[final.value - final.lower], [final.upper - final.value]]
plt.errorbar(epochs, final.value, interval, fmt="s", capsize=3, label="at the final weights")
plt.axhline(batch_size, color="0.5", linestyle=":", label=f"batch size, {batch_size}")
plt.gca().set(xlabel="epoch", ylabel="gradient noise scale, examples", ylim=(0, None))
plt.legend(frameon=False, loc="upper left")
plt.show()

# %% [markdown]
# The two can differ by more than the interval, because the noise scale changes from update to
# update: G is larger at some weights than at others. Use the mean of an epoch to choose a batch.
#
# ## What you have learned

# %%
print(f"1. Early, batches up to about {advice.largest_batch_size} examples pay on this problem.")
print(f"2. {sizes[-1] / sizes[0]:.0f} times larger batches than {sizes[0]} need, in all,")
print(f"   1/{numbers[0] / numbers[-1]:.1f} of the updates, and ", end="")
print(f"{sizes[-1] * numbers[-1] / (sizes[0] * numbers[0]):.0f} times the examples.")
print(f"3. Along the training, the noise scale grew from {along[0]:.0f} to {along[-1]:.0f}:")
print("   later, larger batches pay.")

# %% [markdown]
# ## What to try next
#
# - Your own model in the cell "Your model and data". On the command line:
#   `noisylb batch-size --model package.module:function --dataset data.npz`.
# - `nlb.BatchChange` trains with a small batch first and then with a large batch.
# - If the learning rate cannot follow the batch, `advice.multiplier` is above 0. Then train with
#   `nlb.FullFisher(batch_size, estimator="split", multiplier=advice.multiplier)` in the first half
#   of the training, as in `03_quick_start`.
# - The formulas and their limits are in `docs/your_problem.md` and `docs/diagnostics.md`.
