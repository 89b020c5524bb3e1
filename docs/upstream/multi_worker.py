"""The smallest plain Keras training under MultiWorkerMirroredStrategy; Keras 3.15 cannot do it.

cd docs/upstream
python multi_worker.py 0 20001 20002 & python multi_worker.py 1 20001 20002
"""

import json
import os
import sys

task, *ports = sys.argv[1:]
os.environ["TF_CONFIG"] = json.dumps({
    "cluster": {"worker": [f"localhost:{port}" for port in ports]},
    "task": {"type": "worker", "index": int(task)},
})

import keras
import numpy as np
import tensorflow as tf

strategy = tf.distribute.MultiWorkerMirroredStrategy()
with strategy.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd", loss="mse")
x, y = np.ones((64, 4), "float32"), np.ones((64, 3), "float32")
model.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(16), verbose=0)
print("trained")
