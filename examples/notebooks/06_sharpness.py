# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # How sharp is the minimum?
#
# Training ends at weights where the loss is small. Around them the loss can rise steeply (a *sharp*
# minimum) or slowly (a *flat* minimum). An old hypothesis is that flat minima generalise better and
# that small batches find flatter minima. The paper measures sharpness in its Figure 5b. This page
# trains networks in three ways to the *same training loss*, measures their sharpness, and shows the
# difficulties of this measurement.

# %% tags=["parameters"]
num_examples = 4000  # training images
num_measured = 1000  # training images on which the sharpness is measured
target = 0.1  # training loss at which every training ends
noisy_updates = 50  # of the training with noise
seeds = (0, 1, 2)

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_noisylb as nlb
from keras_noisylb.diagnostics import hessian_trace, largest_eigenvalues, sharpness

(x_train, y_train), test_data = nlb.data.load("fashion_mnist_small")
x_train, y_train = x_train[:num_examples], y_train[:num_examples]
x_measured, y_measured = x_train[:num_measured], y_train[:num_measured]
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

# %% [markdown]
# ## Three ways to train
#
# | name | batch | learning rate | noise |
# |---|---|---|---|
# | SB | 50 | 0.02 | |
# | LB | 1000 | 0.1 | |
# | LB + full (split) | 1000 | 0.1 | λ = 0.4, in the first 50 updates |
#
# Each network has one hidden layer of 64 units with ghost batch normalisation. The noise is the
# full gradient noise of a batch of 50, estimated from the two halves of the batch. The factor λ
# makes the training as noisy as SB (`docs/how_much_noise.md`).
#
# Sharpness changes along a training. If two networks have different training losses, one compares
# two distances from a minimum instead of two minima. Therefore each training ends when its loss on
# the training images is first below the same target.


# %%
class StopAt(keras.callbacks.Callback):
    """Ends the training when the loss on the training images is below a target."""

    def __init__(self, network, every):
        super().__init__()
        self.network, self.every, self.updates = network, every, 0

    def on_train_batch_end(self, batch, logs=None):
        self.updates += 1
        if self.updates % self.every == 0:
            self.model.stop_training = training_loss(self.network) < target


def training_loss(network):
    """The loss on all training images."""
    return float(loss(y_train, network(x_train)))


def train(batch_size, learning_rate, noise=None, seed=0):
    """A trained network, and its number of updates."""
    keras.utils.set_random_seed(seed)
    network = nlb.models.MLP(hidden_units=(64,), ghost_batch_size=50)
    optimizer = keras.optimizers.SGD(learning_rate, momentum=0.9)
    model = network
    if noise is not None:
        model = nlb.NoisyModel(network)
        optimizer = nlb.NoisyOptimizer(optimizer, noise, noise_steps=noisy_updates, seed=seed)
    model.compile(optimizer, loss)
    stop = StopAt(network, every=max(200 // batch_size, 1))
    model.fit(x_train, y_train, batch_size, epochs=500, callbacks=[stop], verbose=0)
    return network, stop.updates


def num_weights(network):
    """The number of weights that are trained."""
    return sum(v.numpy().size for v in network.trainable_variables)


multiplier = nlb.matched_multiplier(1000, 50, 0.1, 0.02)
noise = nlb.FullFisher(50, estimator="split", multiplier=multiplier)
ways = {
    "SB": {"batch_size": 50, "learning_rate": 0.02},
    "LB": {"batch_size": 1000, "learning_rate": 0.1},
    "LB + full (split)": {"batch_size": 1000, "learning_rate": 0.1, "noise": noise},
}
trained = {(name, seed): train(**way, seed=seed) for name, way in ways.items() for seed in seeds}
networks = {name: trained[name, seeds[0]][0] for name in ways}
print(f"λ = {multiplier:.2f}")
for name, network in networks.items():
    updates = trained[name, seeds[0]][1]
    print(f"{name:17} {updates:4} updates, training loss {training_loss(network):.3f}")

# %% [markdown]
# ## The Hessian and its largest eigenvalue
#
# The *Hessian* H is the matrix of the second derivatives of the loss with respect to the weights.
# In a direction v of length 1, the loss has the curvature vᵀ H v. The largest curvature of all
# directions is the largest *eigenvalue* of H; its direction is the *eigenvector*.
#
# H has one row per weight of the network, which is too many to store. `largest_eigenvalues` only
# computes products of H with vectors. One product takes about as long as three gradients. The
# *residual* is a bound of the error: H has an eigenvalue within this distance.

# %%
pairs = {
    name: largest_eigenvalues(network, loss, x_measured, y_measured, tolerance=1e-3, verbose=0)
    for name, network in networks.items()
}
for name, found in pairs.items():
    print(
        f"{name:17} largest eigenvalue {found.eigenvalues[0]:5.1f} "
        f"(residual {found.residuals[0]:.1g}, {found.num_products} products)"
    )

# %% [markdown]
# ## A check
#
# Move from the trained weights θ along the eigenvector v, and compute the loss. Up to second order
# it is L(θ + t v) ≈ L(θ) + t ∇L·v + ½ λ t² with the eigenvalue λ. Two points at ±t and the middle
# give the curvature without the linear term.


# %%
def losses_along(network, direction, distances):
    """The loss at given distances from the weights along a direction."""
    theta = [v.numpy() for v in network.trainable_variables]
    found = []
    for t in distances:
        for variable, value, step in zip(
            network.trainable_variables, theta, direction, strict=True
        ):
            variable.assign(value + t * step)
        found.append(float(loss(y_measured, network(x_measured))))
    for variable, value in zip(network.trainable_variables, theta, strict=True):
        variable.assign(value)
    return np.array(found)


distances = np.linspace(-0.2, 0.2, 21)
curves = {
    name: losses_along(network, pairs[name].eigenvectors[0], distances)
    for name, network in networks.items()
}
plt.figure(figsize=(5, 3))
for name, curve in curves.items():
    plt.plot(distances, curve, "o-", markersize=3, label=name)
plt.gca().set(
    xlabel="distance t along the eigenvector", ylabel="loss", xticks=np.linspace(-0.2, 0.2, 5)
)
plt.legend(frameon=False)
plt.show()

# %%
for name, network in networks.items():
    below, here, above = losses_along(network, pairs[name].eigenvectors[0], (-0.005, 0, 0.005))
    curvature = (below - 2 * here + above) / 0.005**2
    print(
        f"{name:17} curvature of the curve {curvature:5.1f}, "
        f"eigenvalue {pairs[name].eigenvalues[0]:5.1f}"
    )

# %% [markdown]
# The two values can differ slightly. The activation of the network, ReLU, has a kink at 0. The
# Hessian describes the smooth pieces between kinks, and a step of this length crosses some kinks.
#
# ## Many directions
#
# The *trace* is the sum of all eigenvalues. Divided by their number, it is the curvature in a
# typical direction, which is far smaller than the largest curvature. It is estimated from random
# directions.

# %%
for name, network in networks.items():
    trace = hessian_trace(network, loss, x_measured, y_measured, tolerance=0.1, verbose=0)
    print(
        f"{name:17} trace {trace.mean:4.0f} ± {trace.standard_error:.0f}, a typical direction "
        f"curves by {trace.mean / num_weights(network):.2g}"
    )

# %% [markdown]
# ## The same function, another sharpness
#
# Batch normalisation divides by the standard deviation of a layer's output. If the weights before
# it are multiplied by a positive factor, the network computes the same function, but its Hessian
# changes. Here the first kernel of a copy of LB is halved, and so are the moving mean and standard
# deviation of the normalisation:

# %%
halved = keras.models.clone_model(networks["LB"])
halved.set_weights(networks["LB"].get_weights())
dense = next(layer for layer in halved.layers if isinstance(layer, keras.layers.Dense))
norm = next(layer for layer in halved.layers if isinstance(layer, nlb.GhostBatchNormalization))
for variable, factor in ((dense.kernel, 0.5), (norm.moving_mean, 0.5)):
    variable.assign(factor * variable)
# The standard deviation is the square root of the variance plus a small constant, epsilon.
norm.moving_variance.assign(0.25 * (norm.moving_variance + norm.epsilon) - norm.epsilon)
change = np.abs(halved(x_measured) - networks["LB"](x_measured)).max()
print(f"largest change of an output: {change:.1g}")

# %%
raw = largest_eigenvalues(halved, loss, x_measured, y_measured, tolerance=1e-3, verbose=0)
plain = pairs["LB"].eigenvalues[0]
print(f"LB {plain:.1f}, LB halved {raw.eigenvalues[0]:.1f}")

# %% [markdown]
# ## A fairer measure
#
# As in the paper, `sharpness` first *folds* the normalisation into the weights before it, so that
# their scale has no influence. Then it divides the outputs by a *temperature*, which is fitted on
# the test images. Otherwise an overconfident network would have a flat loss only because its loss
# is nearly 0.


# %%
def measure(network):
    """The sharpness of a network."""
    return sharpness(
        network, loss, x_measured, y_measured, temperature_data=test_data, tolerance=1e-3, verbose=0
    )


pair = {name: measure(network) for name, network in (("LB", networks["LB"]), ("halved", halved))}
for name, found in pair.items():
    print(f"{name:6} sharpness {found.largest_eigenvalue:.2f}, temperature {found.temperature:.2f}")

# %% [markdown]
# Now LB and its halved copy agree.
#
# ## Who is sharper?
#
# One network of each kind is not enough, because other random numbers give another sharpness.
# Therefore every way is trained with several *seeds*. All networks have the same training loss.

# %%
measured = {key: measure(network) for key, (network, _) in trained.items()}
values = {
    name: np.array([measured[name, seed].largest_eigenvalue for seed in seeds]) for name in ways
}
for name, found in values.items():
    losses = [training_loss(trained[name, seed][0]) for seed in seeds]
    print(
        f"{name:17} sharpness {' '.join(f'{value:5.1f}' for value in found)}, mean "
        f"{found.mean():5.1f}; training losses {min(losses):.3f} to {max(losses):.3f}"
    )

# %%
plt.figure(figsize=(5, 2.6), layout="constrained")
for place, found in enumerate(values.values()):
    plt.plot([place] * len(seeds), found, "o", color="#0072B2")
    plt.plot([place - 0.2, place + 0.2], [found.mean()] * 2, color="#D55E00")
plt.gca().set(ylabel="sharpness", xlim=(-0.5, len(ways) - 0.5))
plt.ylim(0, 1.1 * max(found.max() for found in values.values()))
plt.xticks(range(len(ways)), list(ways))
plt.show()


# %%
def verdict(first, second):
    """Whether one way is sharper than another with every pair of seeds."""
    a, b = values[first], values[second]
    if a.min() > b.max():
        return f"{first} is sharper than {second} with all seeds"
    if a.max() < b.min():
        return f"{first} is flatter than {second} with all seeds"
    return f"{first} and {second} overlap"


for pair_of_ways in (("LB", "SB"), ("LB + full (split)", "LB"), ("LB + full (split)", "SB")):
    print(verdict(*pair_of_ways) + ".")

# %% [markdown]
# This is one small network with a constant learning rate. Figure 5b in `docs/figures.md` has five
# regimes of a larger network after equal numbers of epochs, so at different losses.
#
# ## What you have learned

# %%
print(f"1. The largest eigenvalue depends on the weights: {plain:.1f} and {raw.eigenvalues[0]:.1f}")
print("   for the same function. Folding and a temperature mend this.")
print("2. Compare networks at the same training loss and with several seeds.")
print(f"3. At a training loss of {target}: {verdict('LB', 'SB')};")
print(f"   {verdict('LB + full (split)', 'LB')}.")

# %% [markdown]
# ## What to try next
#
# - Another `target` in the first cell: a lower loss needs a longer training.
# - `nlb.DiagonalFisher(50, estimator="split", multiplier=multiplier)` instead of full noise.
# - `noisylb figure 5b` measures the regimes of the paper on a ResNet.
