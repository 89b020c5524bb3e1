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
# trains two networks, measures their sharpness, and shows the difficulties of this measurement.

# %% tags=["parameters"]
num_examples = 4000  # training images
num_measured = 1000  # training images on which the sharpness is measured
epochs = 10

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
# ## Two networks
#
# Each network has one hidden layer of 64 units with ghost batch normalisation. One is trained with
# batches of 50 (SB), the other with batches of 1000 (LB) at a higher learning rate. Both are
# trained for the same number of epochs.


# %%
def train(batch_size, learning_rate):
    """A trained network."""
    keras.utils.set_random_seed(0)
    network = nlb.models.MLP(hidden_units=(64,), ghost_batch_size=50)
    network.compile(keras.optimizers.SGD(learning_rate, momentum=0.9), loss)
    network.fit(x_train, y_train, batch_size, epochs=epochs, verbose=0)
    return network


def num_weights(network):
    """The number of weights that are trained."""
    return sum(v.numpy().size for v in network.trainable_variables)


networks = {"SB": train(50, learning_rate=0.02), "LB": train(1000, learning_rate=0.1)}

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
        f"{name}: {num_weights(networks[name]):,} weights, largest eigenvalue "
        f"{found.eigenvalues[0]:.1f} (residual {found.residuals[0]:.1g}, "
        f"{found.num_products} products)"
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
        f"{name}: curvature of the curve {curvature:.1f}, "
        f"eigenvalue {pairs[name].eigenvalues[0]:.1f}"
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
        f"{name}: trace {trace.mean:.0f} ± {trace.standard_error:.0f}, a typical direction curves "
        f"by {trace.mean / num_weights(network):.2g}"
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
print(f"LB {pairs['LB'].eigenvalues[0]:.1f}, LB halved {raw.eigenvalues[0]:.1f}")

# %% [markdown]
# ## A fairer measure
#
# As in the paper, `sharpness` first *folds* the normalisation into the weights before it, so that
# their scale has no influence. Then it divides the outputs by a *temperature*, which is fitted on
# the test images. Otherwise an overconfident network would have a flat loss only because its loss
# is nearly 0.

# %%
measured = {
    name: sharpness(
        network, loss, x_measured, y_measured, temperature_data=test_data, tolerance=1e-3, verbose=0
    )
    for name, network in {**networks, "LB halved": halved}.items()
}
for name, found in measured.items():
    print(
        f"{name:9}: sharpness {found.largest_eigenvalue:.1f}, temperature {found.temperature:.2f}"
    )

# %% [markdown]
# Now LB and its halved copy agree. The next cell compares SB and LB.

# %%
sharper = max(networks, key=lambda name: measured[name].largest_eigenvalue)
losses = {name: float(loss(y_train, network(x_train))) for name, network in networks.items()}
closer = min(losses, key=losses.get)
print(f"{sharper} is the sharper one here. Training loss:", end=" ")
print(", ".join(f"{name} {value:.3f}" for name, value in losses.items()), end=". ")
print(f"{closer} is closer to its minimum.")

# %% [markdown]
# With the same number of epochs, SB makes more updates than LB. If two networks have different
# training losses, their sharpness also depends on how far the training has come, not only on the
# minimum. Besides, two networks are only one pair of random seeds. Figure 5b in `docs/figures.md`
# has five regimes and three seeds of a larger network, with the same caution.
