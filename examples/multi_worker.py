"""Train with noise by several workers: those that TF_CONFIG names, else two on this machine.

    python examples/multi_worker.py [--examples 4000] [--epochs 2]

On a cluster, start it on every machine with a TF_CONFIG of its own. Every worker draws noise of its
own for its part of the batch: nothing is communicated beyond the gradients.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--examples", type=int, default=4000, help="training images")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--backup", help="folder that all workers can read, to go on after a fault")
options = parser.parse_args()


def start_two_workers():
    """Run this script twice, each time as a worker of a cluster of two.

    Returns:
        The exit status.
    """
    with contextlib.ExitStack() as stack:
        # Held open, so that nobody else is given their ports; the workers share them.
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for reserved in sockets:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind(("localhost", 0))
        cluster = {"worker": [f"localhost:{held.getsockname()[1]}" for held in sockets]}
        workers = []
        for index in range(2):
            config = {"cluster": cluster, "task": {"type": "worker", "index": index}}
            environment = {"TF_CONFIG": json.dumps(config), "TF_GRPC_REUSE_PORT": "1"}
            worker = subprocess.Popen([sys.executable, *sys.argv], env=os.environ | environment)
            stack.callback(worker.kill)
            workers.append(worker)
        return max(abs(worker.wait()) for worker in workers)


if "TF_CONFIG" not in os.environ:
    sys.exit(start_two_workers())

import keras

import keras_noisylb as nlb

strategy = nlb.multi_worker_strategy()  # before anything else
worker = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
keras.utils.set_random_seed(0)  # the same on all workers
(x_train, y_train), (x_test, y_test) = nlb.data.load("fashion_mnist_small")
x_train, y_train = x_train[: options.examples], y_train[: options.examples]
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
callbacks = [keras.callbacks.BackupAndRestore(options.backup)] if options.backup else []
history = model.fit(
    x_train,
    y_train,
    batch_size=1000,  # of all workers together
    epochs=options.epochs,
    callbacks=callbacks,
    validation_data=(x_test, y_test),
    verbose=2 if worker == 0 else 0,
)
losses = ", ".join(f"{loss:.6f}" for loss in history.history["val_loss"])
print(f"worker {worker} of {strategy.num_replicas_in_sync}: validation losses {losses}")
