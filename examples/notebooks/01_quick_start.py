# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Quick start: a large batch with the noise of a small one
#
# A network is trained by *updates*. Each update takes a *batch* of training examples, computes for
# each of them the *gradient* (the direction in which the weights would make its error grow) and
# moves the weights against the mean of these gradients.
#
# A large batch has fewer updates in each *epoch*, which is one pass over the training examples, and
# its mean is more exact. Networks trained in that way often do worse on examples that they were not
# trained on: they *generalise* worse. One explanation is that the inexactness of a small batch, its
# *noise*, is useful. This package puts noise of that kind back into the gradient of a large batch.
#
# This page trains one network so. It takes a minute or two on two processor cores.

# %% tags=["parameters"]
num_examples = 10_000  # training images
large_batch_size = 500
small_batch_size = 50  # the one whose noise is imitated
epochs = 6

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_noisylb as nlb

keras.utils.set_random_seed(0)

# %% [markdown]
# ## The data
#
# 10,000 images of clothes for training and 5,000 for testing, in 10 classes, are part of the
# package: a part of Fashion-MNIST.

# %%
(x_train, y_train), (x_test, y_test) = nlb.data.load("fashion_mnist_small")
x_train, y_train = x_train[:num_examples], y_train[:num_examples]
print(x_train.shape, y_train.shape, x_test.shape, y_test.shape)

# %%
figure, axes = plt.subplots(1, 8, figsize=(8, 1.3))
for image, label, panel in zip(x_train, y_train, axes, strict=False):
    panel.imshow(image[:, :, 0], cmap="gray_r")
    panel.set(title=f"class {label}", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## The network
#
# LeNet is a small network of two convolutions and two dense layers. *Batch normalisation* in it
# subtracts means over the batch and divides by standard deviations. *Ghost* batch normalisation
# takes them over 50 examples at a time, however large the batch is, so that only the gradient sees
# a large batch.

# %%
network = nlb.models.LeNet(num_classes=10, ghost_batch_size=small_batch_size)
print(f"{network.count_params():,} weights")

# %% [markdown]
# ## The noise
#
# Let the gradients of single examples have the variance F. The mean over M examples then has the
# variance F / M. So a batch of 500 lacks, of the variance of a batch of 50, F (1/50 − 1/500).
# `DiagonalFisher` estimates F for every single weight from the examples of each batch (it is called
# the diagonal of the *Fisher* matrix), and draws Gaussian noise of the missing variance.
#
# `multiplier` scales the noise. At 1 it has the variance above; on this data 0.3 did better in a
# trial (see `docs/results.md`).

# %%
noise = nlb.DiagonalFisher(small_batch_size, multiplier=0.3)

# %% [markdown]
# Two things are wrapped: the optimizer says which noise is added, the model adds it. Everything
# else is Keras as always.

# %%
model = nlb.NoisyModel(network)
model.compile(
    nlb.NoisyOptimizer(keras.optimizers.SGD(0.1, momentum=0.9), noise, noise_fraction=0.25, seed=0),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)

# %% [markdown]
# ## Training
#
# `noise_fraction` ends the noise after a fraction of the training; the paper takes a quarter.
# `GradientNoiseMonitor` measures how long gradient and noise are.

# %%
history = model.fit(
    x_train,
    y_train,
    batch_size=large_batch_size,
    epochs=epochs,
    callbacks=[nlb.GradientNoiseMonitor()],
    verbose=0,
).history

# %% [markdown]
# The length of the noise over that of the gradient, epoch by epoch: noise at first, then none.

# %%
epoch = np.arange(1, epochs + 1)
figure, (ratio, losses) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
ratio.bar(epoch, history["noise_to_gradient"])
ratio.set(xlabel="epoch", ylabel="noise / gradient")
losses.plot(epoch, history["loss"], "o-")
losses.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
plt.show()

# %% [markdown]
# ## How well does it do?
#
# The test images are a sample, so the accuracy on them has a standard error of √(p (1 − p) / N).

# %%
accuracy = model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
error = np.sqrt(accuracy * (1 - accuracy) / len(x_test))
print(f"test accuracy {accuracy:.2%} ± {error:.2%}")

# %% [markdown]
# Whether the noise *helped* this one run cannot say: there is nothing to compare it with. The
# notebook `03_generalisation_gap` compares.
#
# ## What will be computed
#
# `report` says it without running anything: how the variance of each layer's weights is obtained,
# whether that is exact, and how much more work it is than a step without noise.

# %%
print(nlb.report(network, noise, large_batch_size))
