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
# A network is trained by *updates*. Each update takes a *batch* of training examples and computes
# the *gradient* of each example, which is the direction that increases its error most. It then
# moves the weights in the opposite direction of the mean of these gradients.
#
# With a large batch, an *epoch* (one pass over the training examples) has fewer updates, and the
# mean of the gradients is more accurate. But such networks often perform worse on new examples:
# they *generalise* worse. One explanation is that the random error of a small batch's gradient, its
# *noise*, is useful. This package adds such noise to the gradient of a large batch.
#
# This page trains one network with this noise. It takes one or two minutes on two processor cores.

# %% tags=["parameters"]
num_examples = 10_000  # training images
large_batch_size = 500
small_batch_size = 50  # its noise is imitated
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
# The package contains 10,000 training images and 5,000 test images of clothes in 10 classes. They
# are a part of Fashion-MNIST.

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
# LeNet is a small network with two convolutions and two dense layers. Its *batch normalisation*
# subtracts the mean over the batch and divides by the standard deviation. *Ghost* batch
# normalisation computes both over 50 examples at a time, for every batch size. A large batch then
# changes only the gradient.

# %%
network = nlb.models.LeNet(num_classes=10, ghost_batch_size=small_batch_size)
print(f"{network.count_params():,} weights")

# %% [markdown]
# ## The noise
#
# Let Σ be the covariance of the gradients of single examples. The mean over M examples has the
# covariance Σ / M. The covariance for a batch of 500 is therefore smaller than for a batch of 50;
# the difference is Σ (1/50 − 1/500). `FullFisher` draws noise with this difference as its
# covariance. With `estimator="split"` it computes each batch as two halves, and the difference of
# their gradients gives the noise. This costs almost nothing and works with any model.
#
# `multiplier` is λ, a factor of the noise. How much noise training feels depends also on the
# learning rate: at a higher rate, a smaller λ is enough. `matched_multiplier` computes the λ at
# which batches of 500 at the rate 0.1 get as much noise as batches of 50 have at the rate 0.02
# (`docs/how_much_noise.md`).

# %%
multiplier = nlb.matched_multiplier(
    large_batch_size, small_batch_size, large_learning_rate=0.1, small_learning_rate=0.02
)
print(f"λ = {multiplier:.2f}")
noise = nlb.FullFisher(small_batch_size, estimator="split", multiplier=multiplier)

# %% [markdown]
# Wrap two objects: the optimizer defines the noise, and the model adds it. Everything else is
# ordinary Keras.

# %%
model = nlb.NoisyModel(network)
model.compile(
    nlb.NoisyOptimizer(keras.optimizers.SGD(0.1, momentum=0.9), noise, noise_fraction=0.5, seed=0),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)

# %% [markdown]
# ## Training
#
# `noise_fraction=0.5` ends the noise after the first half of the training.
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
# The norm of the noise divided by the norm of the gradient, for each epoch. In the second half
# there is no noise.

# %%
epoch = np.arange(1, epochs + 1)
figure, (ratio, losses) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
ratio.bar(epoch, history["noise_to_gradient"])
ratio.set(xlabel="epoch", ylabel="noise / gradient")
losses.plot(epoch, history["loss"], "o-")
losses.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
plt.show()

# %% [markdown]
# ## Test accuracy
#
# The test images are a sample, so an accuracy p on N images has the standard error √(p (1 − p) /
# N).

# %%
accuracy = model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
error = np.sqrt(accuracy * (1 - accuracy) / len(x_test))
print(f"test accuracy {accuracy:.2%} ± {error:.2%}")

# %% [markdown]
# A single run cannot show whether the noise *helped*, because there is nothing to compare it with.
# The notebook `05_generalisation_gap` makes a comparison.
#
# ## What the noise computes
#
# `report` shows, without training, how the noise of each layer's weights is computed, whether this
# is exact, and the work relative to a step without noise. Work counts only multiplications. The
# time can grow more, because it includes memory traffic and small operations.

# %%
print(nlb.report(network, noise, large_batch_size))

# %% [markdown]
# ## What you have learned

# %%
print("1. Two wrappers add noise to an ordinary Keras training: `NoisyModel` and `NoisyOptimizer`.")
print(f"2. The matched λ is {multiplier:.2f} here; the noise of the first epoch is", end=" ")
print(f"{history['noise_to_gradient'][0]:.2f} gradients long.")
print("3. One run says nothing about the benefit; that needs a comparison with several seeds.")

# %% [markdown]
# ## What to try next
#
# - `05_generalisation_gap`: when noise helps.
# - `01_batch_size`: how large a batch is useful for your model.
# - Another noise, such as the paper's `nlb.DiagonalFisher(small_batch_size)`, in the cell "The
#   noise". `docs/choosing.md` compares them.
