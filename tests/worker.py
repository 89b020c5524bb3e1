"""One worker of the tests: python tests/worker.py TASK FOLDER PART PORT PORT..."""

import json
import os
import pathlib
import signal
import sys

from clusters import leave_nothing_behind

leave_nothing_behind()
task, folder, part, *ports = sys.argv[1:]
folder = pathlib.Path(folder)
os.environ["WORKER"] = task
os.environ["TF_CONFIG"] = json.dumps({
    "cluster": {"worker": [f"localhost:{port}" for port in ports]},
    "task": {"type": "worker", "index": int(task)},
})

import keras
import numpy as np
import tensorflow as tf
import worker_checks as checks

import keras_noisylb as nlb

tf.config.threading.set_intra_op_parallelism_threads(1)
keras.config.set_floatx("float64")
keras.config.set_dtype_policy("float64")
strategy = nlb.multi_worker_strategy(timeout=600)


def save(name, arrays):
    np.savez(folder / f"{name}-{task}.npz", **arrays)


if part.startswith(("SIGKILL", "SIGSTOP")):
    name, _, failing = part.partition("-")  # the signal, and the worker that gets it
    fails = [checks.FailsAt(1, getattr(signal, name))] if task == failing else []
    try:
        checks.backed_up(strategy, folder / "backup", *fails)
    except RuntimeError as error:
        (folder / f"error-{task}.txt").write_text(str(error))
elif part == "resumed":
    save("resumed", checks.backed_up(strategy, folder / "backup"))
else:
    for name, check in getattr(checks, part).items():
        save(name, check(strategy))
    if part == "CHECKS":
        save("many steps", checks.noise_of_many_steps(strategy))
        noise = checks.NOISES["layerwise"]
        found = {
            "plain": checks.collectives(strategy, None),
            "noisy": checks.collectives(strategy, noise),
            "update": checks.collectives(strategy, noise, placement="update"),
            "refused": checks.refused(strategy),
        }
        (folder / f"found-{task}.json").write_text(json.dumps(found))
