# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Per-example gradients in Keras 3
#
# A training step computes the gradient of the mean loss of a batch. Sometimes one needs the
# gradient of *every example*: to limit the influence of single examples, to find unusual examples,
# or to know which weights matter. Keras and TensorFlow have no fast function for this.
# `keras_noisylb.gradients` has one for Keras models. No wrapper and no change of the model is
# needed.
#
# This page compares it with a loop over the examples, measures its time, clips gradients, and uses
# the squares of the gradients (the *Fisher*) to fine-tune a network without forgetting. It takes
# about one minute on two processor cores.

# %% tags=["parameters"]
num_examples = 10_000  # training images
batch_size = 256
repetitions = 9  # of each measurement of time
epochs = 3  # of each training

# %%
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import keras_noisylb as nlb
from keras_noisylb.gradients import diagonal_fisher, per_example_gradients

keras.utils.set_random_seed(0)
(x, y), (x_test, y_test) = nlb.data.load("fashion_mnist_small")
x, y = x[:num_examples], y[:num_examples]
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build():
    """A small convolutional network."""
    layers = keras.layers
    return keras.Sequential([
        keras.Input(x.shape[1:]),
        layers.Conv2D(16, 3, strides=2, activation="relu", name="conv1"),
        layers.Conv2D(32, 3, strides=2, activation="relu", name="conv2"),
        layers.Flatten(),
        layers.Dense(64, activation="relu", name="hidden"),
        layers.Dense(10, name="logits"),
    ])


def name(variable):
    """The name of a variable, without that of the model."""
    return variable.path.partition("/")[2]


# %% [markdown]
# ## One call
#
# The result has one tensor for each trainable variable. Its first dimension is the example.

# %%
model = build()
x_batch, y_batch = tf.constant(x[:batch_size]), tf.constant(y[:batch_size])
each = per_example_gradients(model, loss, x_batch, y_batch)
for variable, gradient in zip(model.trainable_variables, each, strict=True):
    print(f"{name(variable):13} {variable.shape!s:15} -> {gradient.shape}")

# %% [markdown]
# ## Checked against a loop
#
# The obvious way is a loop: one gradient for each example. Both must agree up to rounding.


# %%
@tf.function(reduce_retracing=True)
def plain_gradient(x, y):
    """The gradient of the mean loss, as in an ordinary training step."""
    with tf.GradientTape() as tape:
        value = loss(y, model(x, training=True))
    return tape.gradient(value, model.trainable_variables)


def loop(x, y):
    """Per-example gradients, one example after the other."""
    single = [plain_gradient(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    return [tf.stack(gradients) for gradients in zip(*single, strict=True)]


differences = []
for ours, theirs in zip(each, loop(x_batch, y_batch), strict=True):
    differences.append(float(tf.reduce_max(tf.abs(ours - theirs)) / tf.reduce_max(tf.abs(theirs))))
print(f"largest difference, relative to the largest entry: {max(differences):.0e}")

# %% [markdown]
# ## Timed against a loop
#
# All functions are compiled with `tf.function`. `diagonal_fisher` is the mean of the squares of all
# per-example gradients. It does not store the gradients of all examples at once. Times are medians,
# divided by the time of the plain gradient of the same batch.


# %%
functions = {
    "plain gradient": plain_gradient,
    "mean of squares": tf.function(lambda x, y: diagonal_fisher(model, loss, x, y)),
    "per-example gradients": tf.function(lambda x, y: per_example_gradients(model, loss, x, y)),
    "loop": loop,
}
times = {what: [] for what in functions}
for _ in range(repetitions + 1):  # the first one compiles
    for what, function in functions.items():
        begin = time.perf_counter()
        function(x_batch, y_batch)
        times[what].append(time.perf_counter() - begin)
plain = np.median(times["plain gradient"][1:])
ratios = {what: np.median(values[1:]) / plain for what, values in times.items()}
for what, ratio in ratios.items():
    print(f"{what:22} {ratio:5.1f}")

# %%
plt.figure(figsize=(5.5, 1.9), layout="constrained")
bars = plt.barh(list(ratios), list(ratios.values()), color="#0072B2")
plt.bar_label(bars, fmt="%.1f", padding=3)
plt.gca().set(xscale="log", xlabel="time, in plain gradients", xlim=(0.8, 4 * max(ratios.values())))
plt.gca().invert_yaxis()
plt.show()

# %% [markdown]
# `docs/benchmarks.md` compares the mean of squares with BackPACK, Opacus and torch.func.
#
# ## Clipped
#
# *Clipping* shortens every per-example gradient that is longer than a limit to this limit. One
# example can then change an update only by a bounded amount. Differentially private training
# (DP-SGD, [Abadi et al. 2016](https://arxiv.org/abs/1607.00133)) clips, averages, and adds Gaussian
# noise of a fixed size. Here are the lengths in one batch:


# %%
def lengths(gradients):
    """The length of every example's gradient over all variables."""
    return tf.sqrt(sum(tf.reduce_sum(tf.reshape(g, (len(g), -1)) ** 2, axis=1) for g in gradients))


def clipped(gradients, limit):
    """The same gradients, none longer than a limit."""
    factors = tf.minimum(1.0, limit / lengths(gradients))
    return [g * tf.reshape(factors, (-1, *[1] * (len(g.shape) - 1))) for g in gradients]


found = lengths(each)
limit = float(np.median(found))
print(f"median {limit:.2f}, largest {np.max(found):.2f}")
print(f"largest after clipping: {np.max(lengths(clipped(each, limit))):.2f}")

# %%
plt.figure(figsize=(5.5, 2.5), layout="constrained")
plt.hist(found.numpy(), bins=40, color="#0072B2")
plt.axvline(limit, color="#D55E00", label="limit")
plt.gca().set(xlabel="length of an example's gradient", ylabel="examples")
plt.legend(frameon=False)
plt.show()

# %% [markdown]
# Training with clipped gradients and noise needs a loop of its own. `noise` is the standard
# deviation of the noise, in limits, as in DP-SGD. This page does not compute a privacy guarantee.
# That also needs random batches and an accountant.


# %%
def train(limit=None, noise=0.0):
    """Trains the model, and returns its test accuracy."""
    keras.utils.set_random_seed(0)
    model.set_weights(build().get_weights())
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(x, y):
        if limit is None:
            gradients = plain_gradient(x, y)
        else:
            gradients = clipped(per_example_gradients(model, loss, x, y), limit)
            gradients = [tf.reduce_mean(g, axis=0) for g in gradients]
        size = noise * (limit or 0.0) / batch_size
        optimizer.apply(
            [g + size * tf.random.normal(g.shape) for g in gradients], model.trainable_variables
        )

    batches = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=0)
    for _ in range(epochs):
        for images, labels in batches.batch(batch_size, drop_remainder=True):
            step(images, labels)
    return np.mean(model.predict(x_test, verbose=0).argmax(axis=-1) == y_test)


for what, settings in {
    "plain": {},
    "clipped": {"limit": limit},
    "clipped, with noise": {"limit": limit, "noise": 1.0},
}.items():
    print(f"{what:20} test accuracy {train(**settings):.1%}")

# %% [markdown]
# At the same learning rate, clipped gradients make shorter steps, so this short training comes less
# far.
#
# ## The Fisher of a fine-tuned model
#
# A network that is fine-tuned on a new task forgets the old one. *Elastic weight consolidation*
# ([Kirkpatrick et al. 2017](https://arxiv.org/abs/1612.00796)) measures with the diagonal of the
# Fisher matrix which weights the old task needs, and holds these weights with a penalty
# $\tfrac12 s \sum_j F_j (\theta_j - \theta_j^*)^2$, where $\theta^*$ are the weights before
# fine-tuning and $s$ is the strength.
#
# The old task here is to classify images of clothes, the new task the same images upside down.

# %%
half = len(x) // 2
model = build()
model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
model.fit(x[:half], y[:half], 64, epochs=epochs, verbose=0)
old_weights = [tf.constant(variable) for variable in model.trainable_variables]
fisher = diagonal_fisher(model, loss, x[:half], y[:half])
print("Fisher of one weight, mean over each variable:")
for variable, values in zip(model.trainable_variables, fisher, strict=True):
    print(f"{name(variable):13} {float(tf.reduce_mean(values)):.1e}")


# %% [markdown]
# To see whether the Fisher matters, the same penalty is also tried with equal weights: every $F_j$
# is replaced by the mean.


# %%
def turned(images):
    """The images, upside down."""
    return images[:, ::-1]


def fine_tune(importance, strength):
    """Fine-tunes the network; returns its test accuracy on both tasks."""
    for variable, value in zip(model.trainable_variables, old_weights, strict=True):
        variable.assign(value)
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        held = zip(gradients, importance, model.trainable_variables, old_weights, strict=True)
        optimizer.apply(
            [g + strength * f * (v - old) for g, f, v, old in held], model.trainable_variables
        )

    batches = tf.data.Dataset.from_tensor_slices((turned(x[half:]), y[half:]))
    for images, labels in batches.shuffle(half, seed=0).batch(64, drop_remainder=True):
        step(images, labels)
    return [
        model.evaluate(images, y_test, verbose=0, return_dict=True)["accuracy"]
        for images in (x_test, turned(x_test))
    ]


mean = sum(float(tf.reduce_sum(values)) for values in fisher) / model.count_params()
equal = [tf.fill(values.shape, mean) for values in fisher]
strengths = (0.0, 30.0, 300.0, 3000.0)
curves = {
    "Fisher": np.array([fine_tune(fisher, strength) for strength in strengths]),
    "equal weights": np.array([fine_tune(equal, strength) for strength in strengths]),
}

# %%
plt.figure(figsize=(5.5, 3), layout="constrained")
for (what, points), marker in zip(curves.items(), "os", strict=True):
    plt.plot(*100 * points.T, f"{marker}-", label=f"penalty with {what}")
plt.plot(*100 * curves["Fisher"][0], "k*", markersize=12, label="no penalty")
plt.gca().set(xlabel="accuracy, old task, %", ylabel="accuracy, new task, %")
plt.legend(frameon=False, loc="lower left")
plt.show()

# %% [markdown]
# Along each curve, a stronger penalty keeps more of the old task and learns less of the new one. A
# curve further to the right and further up is better.
#
# ## What you have learned

# %%
both = {what: points.mean(axis=1).max() for what, points in curves.items()}
faster = ratios["loop"] / ratios["per-example gradients"]
print(f"1. Per-example gradients agree with a loop to {max(differences):.0e}, and are")
print(f"   {faster:.0f} times as fast as the loop here.")
print("2. Clipping or any other function of them is a few lines of TensorFlow.")
print(f"3. Mean accuracy on both tasks, best strength: Fisher {both['Fisher']:.1%}, equal weights")
print(f"   {both['equal weights']:.1%}, no penalty {curves['Fisher'][0].mean():.1%}.")

# %% [markdown]
# ## What to try next
#
# - Your own model. For layers without a fast formula, `engine="auto"` uses TensorFlow's
#   `vectorized_map`; `nlb.report` says which layers. `07_your_own` adds a formula for a layer.
# - `nlb.diagnostics.fisher_norms` gives the norm of the full Fisher matrix without storing it.
# - `docs/gradients.md` says what a per-example gradient is in a network with batch normalisation.
