"""Train LeNet with a large batch and noise, and print the size of the noise.

    python examples/quickstart.py [--examples 10000] [--epochs 8]

The noise is full (split), with the matched λ: batches of 500 at the learning rate 0.1 get as much
noise as batches of 50 have at the rate 0.02. It ends after half of the training; the rest is
ordinary large-batch training. The monitor compares the norms of noise and gradient.
"""

import argparse

import keras
import numpy as np

import keras_noisylb as nlb

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--examples", type=int, default=10_000, help="training images")
parser.add_argument("--epochs", type=int, default=8)
options = parser.parse_args()

(x_train, y_train), (x_test, y_test) = nlb.data.load("fashion_mnist_small")
x_train, y_train = x_train[: options.examples], y_train[: options.examples]

keras.utils.set_random_seed(0)
multiplier = nlb.matched_multiplier(500, 50, large_learning_rate=0.1, small_learning_rate=0.02)
model = nlb.NoisyModel(nlb.models.LeNet(num_classes=10, ghost_batch_size=50))
model.compile(
    nlb.NoisyOptimizer(
        keras.optimizers.SGD(0.1, momentum=0.9),
        nlb.FullFisher(50, estimator="split", multiplier=multiplier),
        noise_fraction=0.5,
        seed=0,
    ),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
history = model.fit(
    x_train,
    y_train,
    batch_size=500,
    epochs=options.epochs,
    callbacks=[nlb.GradientNoiseMonitor()],
    verbose=0,
).history

print("epoch   loss   noise / gradient")
for epoch, (loss, ratio) in enumerate(
    zip(history["loss"], history["noise_to_gradient"], strict=True), start=1
):
    print(f"{epoch:5}  {loss:5.3f}  {ratio:6.2f}")
accuracy = model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
error = np.sqrt(accuracy * (1 - accuracy) / len(y_test))
print(f"test accuracy {accuracy:.2%} ± {error:.2%} (standard error of {len(y_test)} images)")
