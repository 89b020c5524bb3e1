"""Train with noise on several devices: all GPUs, or two logical CPU devices without GPUs.

    python examples/distributed.py [--examples 10000] [--epochs 4]

Every device draws independent noise for its part of the batch. The noise is scaled so that the sum
over devices has the covariance of one large batch. Only the gradients are communicated.
"""

import argparse

import keras
import tensorflow as tf

import keras_noisylb as nlb

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--examples", type=int, default=10_000, help="training images")
parser.add_argument("--epochs", type=int, default=4)
options = parser.parse_args()

# Must run before TensorFlow initialises its devices.
gpus = tf.config.list_physical_devices("GPU")
if not gpus:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
kind = "GPU" if gpus else "CPU"
devices = [f"{kind}:{n}" for n in range(len(tf.config.list_logical_devices(kind)))]
strategy = tf.distribute.MirroredStrategy(devices)
print(f"{strategy.num_replicas_in_sync} devices: {', '.join(devices)}")

(x_train, y_train), (x_test, y_test) = nlb.data.load("fashion_mnist_small")
x_train, y_train = x_train[: options.examples], y_train[: options.examples]
keras.utils.set_random_seed(0)
# Batches of 1000 at the rate 0.1 get as much noise as batches of 50 have at the rate 0.02.
multiplier = nlb.matched_multiplier(1000, 50, large_learning_rate=0.1, small_learning_rate=0.02)
with strategy.scope():
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
model.fit(
    x_train,
    y_train,
    batch_size=1000,  # the global batch of all devices
    epochs=options.epochs,
    validation_data=(x_test, y_test),
    verbose=2,
)
kernel = model.trainable_variables[0].value
copies = [copy.numpy() for copy in getattr(kernel, "values", [kernel])]
print("copies of the first kernel equal:", all((copy == copies[0]).all() for copy in copies))
