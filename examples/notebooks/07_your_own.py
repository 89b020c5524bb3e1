# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Your own model, loss and training loop
#
# This package works with any network. This page adds noise to a network with a custom layer, a
# custom loss and a custom training loop.
#
# The noise imitates the gradient of a small batch. Its covariance is the difference between the
# covariances of a small and a large batch. It is computed from the gradients of single examples, or
# from the two halves of the batch.

# %% tags=["parameters"]
num_examples = 10_000  # training images
batch_size = 500
epochs = 6

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import keras_noisylb as nlb
from keras_noisylb.gradients import RULES, LayerRule, diagonal_fisher
from keras_noisylb.gradients.blocks import offset

keras.utils.set_random_seed(0)
(x_train, y_train), (x_test, y_test) = nlb.data.load("fashion_mnist_small")
x_train, y_train = x_train[:num_examples], y_train[:num_examples]

# %% [markdown]
# ## A custom layer
#
# The layer multiplies each feature by a trainable number.


# %%
class Gain(keras.layers.Layer):
    """Multiplies each feature by a trainable number."""

    def build(self, input_shape):
        self.gain = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="gain")

    def call(self, x):
        return x * self.gain


def make_model():
    """A network with two dense layers and a Gain between them."""
    inputs = keras.Input((28, 28, 1))
    x = keras.layers.Flatten()(inputs)
    x = Gain()(keras.layers.Dense(64, activation="relu")(x))
    return keras.Model(inputs, keras.layers.Dense(10)(x))


# %% [markdown]
# ## A custom loss
#
# A loss is a function of labels and outputs that returns one number per example, or their mean. The
# *focal loss* is −(1 − p)² log p with the probability p of the true class. Examples that are
# already classified with a high probability have a small weight.


# %%
def focal_loss(y, logits):
    """The focal loss of each example."""
    probability = tf.gather(tf.nn.softmax(logits), tf.cast(y, "int32"), batch_dims=1)
    return -((1 - probability) ** 2) * tf.math.log(probability + 1e-7)


# %% [markdown]
# ## What the noise computes
#
# The recommended noise is full (split) noise: the batch is computed as two halves, and the noise is
# the difference of their gradients. This costs almost nothing and works for every model, if the
# loss is a sum over examples. λ is the matched one: batches of 500 at the learning rate 0.1 get as
# much noise as batches of 50 have at the rate 0.02.

# %%
model = make_model()
multiplier = nlb.matched_multiplier(batch_size, 50, 0.1, 0.02)
noise = nlb.FullFisher(small_batch_size=50, estimator="split", multiplier=multiplier)
print(nlb.report(model, noise, batch_size))

# %% [markdown]
# For most purposes this is all. Go on with "Training with `fit`".
#
# ## Statistics of single examples
#
# Other noises, and functions such as `diagonal_fisher`, need the gradient of every example. This
# section uses diagonal (exact) noise to show how they are computed. For common layers the package
# has *rules*: formulas that are fast. It has no rule for `Gain`. `report` shows the consequence:
# TensorFlow's `vectorized_map` differentiates every example separately. This is exact and works for
# many models, but it is slow. (Training gives one warning.)

# %%
exact = nlb.DiagonalFisher(small_batch_size=50, multiplier=multiplier)
print(nlb.report(model, exact, batch_size))

# %% [markdown]
# ## A rule
#
# A rule receives the layer, its inputs (`use.inputs`) and d, the gradient of each example's loss
# with respect to the layer's output. For each example, the gradient with respect to `gain` is the
# product of the two. `offset` marks it as the gradient of a vector that acts on each feature
# separately.


# %%
def gain_rule(layer, use, d, conv):
    """Per-example gradients of a Gain."""
    return {"gain": offset(d * use.inputs, layer.gain.shape)}


RULES.register(Gain, LayerRule(gain_rule, ("gain",)))
model = make_model()
print(nlb.report(model, exact, batch_size))

# %% [markdown]
# Is the rule correct? `vectorized_map` does not use it and can therefore check it. The next cell
# computes the mean square of the per-example gradients in both ways.

# %%
x, y = x_train[:64], y_train[:64]
by_rules = diagonal_fisher(model, focal_loss, x, y, engine="layerwise")
one_by_one = diagonal_fisher(model, focal_loss, x, y, engine="vectorized_map")
for variable, a, b in zip(model.trainable_variables, by_rules, one_by_one, strict=True):
    difference = np.abs(a - b).max() / np.max(b)
    print(f"{variable.path:15} largest difference {difference:.0e} of the largest value")

# %% [markdown]
# ## Training with `fit`

# %%
noisy_model = nlb.NoisyModel(model)
noisy_model.compile(
    nlb.NoisyOptimizer(keras.optimizers.SGD(0.1, momentum=0.9), noise, noise_fraction=0.5, seed=0),
    focal_loss,
    metrics=["accuracy"],
)
history = noisy_model.fit(
    x_train,
    y_train,
    batch_size,
    epochs=epochs,
    verbose=0,
).history
print("training loss:", " ".join(f"{loss:.3f}" for loss in history["loss"]))

# %% [markdown]
# ## A custom training loop
#
# `noisy_gradients` returns the gradient and the noise of one batch separately. Here their sum is
# passed to an optimizer. `seed` determines the random numbers. It must be different in every step,
# so the loop passes the optimizer's number of updates.

# %%
model = make_model()
optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
optimizer.build(model.trainable_variables)


@tf.function
def step(x, y, noise_size):
    """One update; returns the norms of the gradient and of the noise that was added."""
    gradients, sample = nlb.noisy_gradients(
        model, focal_loss, x, y, noise=noise, seed=optimizer.iterations
    )
    sample = [noise_size * n for n in sample]
    optimizer.apply(
        [g + n for g, n in zip(gradients, sample, strict=True)], model.trainable_variables
    )
    return tf.linalg.global_norm(gradients), tf.linalg.global_norm(sample)


# %% [markdown]
# This loop does something that `fit` cannot do: the noise decreases linearly, from its full size in
# the first epoch to zero in the last.

# %%
batches = tf.data.Dataset.from_tensor_slices((x_train, y_train))
batches = batches.shuffle(num_examples, seed=0).batch(batch_size, drop_remainder=True)
norms, losses = [], []
for size in np.linspace(1, 0, epochs, dtype="float32"):
    norms.append(np.mean([step(x, y, tf.constant(size)) for x, y in batches], axis=0))
    logits = model.predict(x_train, batch_size=1000, verbose=0)
    losses.append(float(tf.reduce_mean(focal_loss(y_train, logits))))

# %%
figure, (sizes, curve) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
epoch = np.arange(1, epochs + 1)
for name, values in zip(("gradient", "noise"), np.transpose(norms), strict=True):
    sizes.plot(epoch, values, "o-", label=name)
sizes.set(xlabel="epoch", ylabel="norm")
sizes.legend(frameon=False)
curve.plot(epoch, losses, "o-")
curve.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
plt.show()

# %% [markdown]
# ## What you have learned

# %%
print("1. Full (split) noise needs nothing of your model but a loss that is a sum over examples.")
print("2. A rule makes per-example statistics of your own layer fast; `vectorized_map` checks it.")
print("3. In your own loop, `noisy_gradients` gives gradient and noise separately.")

# %% [markdown]
# ## What to try next
#
# - `num_microbatches=k` computes a batch that does not fit in memory in k parts, in sequence.
# - `docs/foreign_models.md` shows which estimators work for twenty third-party models.
# - `nlb.compare` trains your model with and without noise (`docs/your_problem.md`).
