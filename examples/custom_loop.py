"""Noise in a custom training loop: `noisy_gradients` inside a `tf.function`.

    python examples/custom_loop.py [--examples 10000] [--epochs 6]

`noisy_gradients` returns gradient and noise separately, so the loop can treat them differently.
Here it clips the gradient to a norm of 1 and adds the noise unclipped. It also ends the noise.
"""

import argparse

import keras
import numpy as np
import tensorflow as tf

import keras_noisylb as nlb

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--examples", type=int, default=10_000, help="training images")
parser.add_argument("--epochs", type=int, default=6)
options = parser.parse_args()

(x_train, y_train), (x_test, y_test) = nlb.data.load("fashion_mnist_small")
x_train, y_train = x_train[: options.examples], y_train[: options.examples]
batches = tf.data.Dataset.from_tensor_slices((x_train, y_train))
batches = batches.shuffle(len(x_train), seed=0).batch(500, drop_remainder=True)

keras.utils.set_random_seed(0)
model = nlb.models.LeNet(num_classes=10, ghost_batch_size=50)
loss_function = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
optimizer.build(model.trainable_variables)
# Batches of 500 at the rate 0.1 get as much noise as batches of 50 have at the rate 0.02.
multiplier = nlb.matched_multiplier(500, 50, large_learning_rate=0.1, small_learning_rate=0.02)
noise = nlb.FullFisher(small_batch_size=50, estimator="split", multiplier=multiplier)


@tf.function
def noisy_step(x, y):
    """One update with noise; returns the norms of the gradient and of the noise."""
    gradients, sample = nlb.noisy_gradients(
        model, loss_function, x, y, noise=noise, seed=optimizer.iterations
    )
    gradients, gradient_norm = tf.clip_by_global_norm(gradients, 1.0)
    total = [g + n for g, n in zip(gradients, sample, strict=True)]
    optimizer.apply(total, model.trainable_variables)
    return gradient_norm, tf.linalg.global_norm(sample)


@tf.function
def plain_step(x, y):
    """The same update without noise."""
    with tf.GradientTape() as tape:
        loss = loss_function(y, model(x, training=True))
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    gradients, gradient_norm = tf.clip_by_global_norm(gradients, 1.0)
    optimizer.apply(gradients, model.trainable_variables)
    return gradient_norm, 0.0


def logits(x):
    """The model's outputs, in inference."""
    return model.predict(x, batch_size=500, verbose=0)


noisy_epochs = -(-options.epochs // 2)  # half of the epochs, rounded up
norms, losses = [], []
print("epoch  train loss  |gradient|  |noise|")
for epoch in range(options.epochs):
    step = noisy_step if epoch < noisy_epochs else plain_step
    norms.append(np.mean([step(x, y) for x, y in batches], axis=0))
    losses.append(float(loss_function(y_train, logits(x_train))))
    print("{:5}  {:10.3f}  {:10.2f}  {:7.2f}".format(epoch + 1, losses[-1], *norms[-1]))
accuracy = float(keras.metrics.SparseCategoricalAccuracy()(y_test, logits(x_test)))
print(f"test accuracy {accuracy:.2%}")
