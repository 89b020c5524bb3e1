# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Many devices
#
# A large batch is often divided among several devices. Each device has a copy of the network,
# called a *replica*, and computes the gradient of its part of the batch. The gradients are summed,
# and all replicas make the same update. In Keras, `tf.distribute.MirroredStrategy` does this. With
# noise, each device draws independent noise, and still only the gradients are communicated.
#
# This page uses one CPU as two logical devices, so that it runs on any machine. With two GPUs, skip
# the cell that configures the logical devices, and use `MirroredStrategy()` in the cell after it.

# %% tags=["parameters"]
num_examples = 4000  # training images
epochs = 3
num_updates = 400  # of the experiment at the end

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import keras_noisylb as nlb

tf.get_logger().setLevel("ERROR")  # otherwise TensorFlow logs every sum over devices

# %% [markdown]
# ## Two logical devices
#
# This cell must run first, because TensorFlow cannot change its devices later.

# %%
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

# %%
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
print(f"{strategy.num_replicas_in_sync} replicas")

# %% [markdown]
# ## The model
#
# It is built and compiled in the *scope* of the strategy, so that each device gets a copy of every
# weight. Everything else is the same as on one device.


# %%
# Batches of 500 at the rate 0.1 get as much noise as batches of 50 have at the rate 0.02.
multiplier = nlb.matched_multiplier(500, 50, 0.1, 0.02)


def make_model():
    """LeNet, compiled with noise."""
    model = nlb.NoisyModel(nlb.models.LeNet(num_classes=10, ghost_batch_size=50))
    model.compile(
        nlb.NoisyOptimizer(
            keras.optimizers.SGD(0.1, momentum=0.9),
            nlb.FullFisher(small_batch_size=50, estimator="split", multiplier=multiplier),
            noise_fraction=0.5,
            seed=0,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


keras.utils.set_random_seed(0)
with strategy.scope():
    model = make_model()

# %% [markdown]
# ## Training
#
# `batch_size` is the global batch size: each of the two devices gets 250 of the 500 examples. The
# noise is computed for an update over 500 examples.

# %%
(x_train, y_train), (x_test, y_test) = nlb.data.load("fashion_mnist_small")
x_train, y_train = x_train[:num_examples], y_train[:num_examples]
history = model.fit(
    x_train,
    y_train,
    batch_size=500,
    epochs=epochs,
    verbose=0,
).history
print("training loss:", " ".join(f"{loss:.3f}" for loss in history["loss"]))

# %% [markdown]
# After training, the copies of a weight must still be equal, because the noises were part of the
# gradients that were summed.

# %%
kernel = model.trainable_variables[0].value
first, second = (copy.numpy() for copy in kernel.values)
print("copies are equal:", np.array_equal(first, second))

# %% [markdown]
# ## Does the sum have the right size?
#
# The noise of one device is computed from the examples of this device. It is scaled so that the sum
# over the devices has the same variance as the noise of one device with the whole batch. This can
# be measured with a small linear model. The experiment repeats one update with learning rate 1,
# always with the same batch and from the same weights, and computes the variance of the change of
# each weight. It uses diagonal (exact) noise, because a variance of each weight is then enough to
# describe the noise.


# %%
def changes_of_weights(num_updates):
    """The change of every weight in many single updates from the same weights."""
    keras.utils.set_random_seed(0)
    x, y = np.random.normal(size=(64, 20)), np.random.normal(size=(64, 10))
    model = nlb.NoisyModel(keras.Sequential([keras.Input((20,)), keras.layers.Dense(10)]))
    noise = nlb.DiagonalFisher(small_batch_size=8)
    model.compile(nlb.NoisyOptimizer(keras.optimizers.SGD(1.0), noise, seed=0), loss="mse")
    start, changes = model.get_weights(), []

    def note_and_return(batch, logs):
        changes.append(model.get_weights()[0] - start[0])
        model.set_weights(start)

    model.fit(
        np.tile(x, (num_updates, 1)),
        np.tile(y, (num_updates, 1)),
        batch_size=64,
        shuffle=False,
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=note_and_return)],
        verbose=0,
    )
    return np.array(changes)


one_device = changes_of_weights(num_updates)
with strategy.scope():
    two_devices = changes_of_weights(num_updates)

# %% [markdown]
# The picture shows the variance of each of the 200 weights, on one device and on two devices. If
# they agree, the points scatter around the diagonal, because the number of updates is finite.

# %%
variances = one_device.var(axis=0, ddof=1).ravel(), two_devices.var(axis=0, ddof=1).ravel()
plt.figure(figsize=(3.6, 3.4))
plt.plot(*variances, ".", markersize=4)
ends = np.min(variances), np.max(variances)
plt.plot(ends, ends, color="0.5")
plt.gca().set(xlabel="variance, one device", ylabel="variance, two devices")
plt.show()

# %%
ratios = variances[1] / variances[0]
mean, error = np.log(ratios).mean(), np.log(ratios).std(ddof=1) / np.sqrt(len(ratios))
print(f"two devices / one device: {np.exp(mean):.3f} ± {np.exp(mean) * error:.3f}")
print("They agree." if abs(mean) < 3 * error else "They differ by more than 3 standard errors.")

# %% [markdown]
# ## What you have learned

# %%
print("1. Build and compile in the scope of the strategy; nothing else changes.")
print(f"2. After training, the copies of a weight are equal: {np.array_equal(first, second)}.")
print(f"3. Noise of two devices has {np.exp(mean):.3f} times the variance of noise of one device.")

# %% [markdown]
# ## What to try next
#
# - `python examples/distributed.py` uses all GPUs of a machine.
# - `python examples/multi_worker.py` starts several processes, as on several machines
#   (`docs/multi_worker.md`).
# - `docs/gpu.md` says what has been tested with several devices.
