"""The jobs that a process of the queue can do. It does one job and ends with its parent.

`python -m keras_noisylb.experiments.queue.jobs train FOLDER SETTINGS`; `search`, `data` and
`time` likewise.
"""

import dataclasses
import json
import os
import pathlib
import sys
import threading
import time

import keras

from keras_noisylb import data as data_sets
from keras_noisylb.experiments import estimate, records, splits
from keras_noisylb.experiments.journal import HISTORY
from keras_noisylb.experiments.problem import builder
from keras_noisylb.experiments.queue.run import RUN, recipe_of
from keras_noisylb.experiments.regimes import choose
from keras_noisylb.experiments.train import train_run


def train(folder, settings):
    """Train the recipe of a folder's `config.json`, or continue it, and write its one record.

    Args:
        folder: of the run, made by `folders.open_folder`.
        settings: arguments of `Recipe.options`, as JSON.

    Raises:
        ValueError: if the recipe cannot be trained.
        OSError: if the data cannot be read or the results not be written.
    """
    began = time.perf_counter()
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    recipe, (seed,) = recipe_of(config["options"]), config["options"]["seeds"]
    options = recipe.options(seed, **json.loads(settings))
    regime, rate = choose(options)[recipe.regime]
    split = splits.load(options)
    build = builder(options, split.num_classes, split.x_train.shape[1:])
    earlier = records.read_json(folder / "history.json", HISTORY, print) or HISTORY
    metrics, history = train_run(folder, build, regime, rate, options, seed, split, print)
    # Lists with a number for each update would make records of many megabytes; the metrics have
    # the number of updates and the median of their times.
    by_epoch = {k: v for k, v in history.items() if k not in {"batch_loss", "step_seconds"}}
    record = {
        "config": config["options"],
        "versions": records.versions(),
        "seed": seed,
        "device": estimate.device(),
        "num_microbatches": options.num_microbatches,
        "metrics": metrics,
        # This process, and the epochs that earlier ones had finished.
        "wall_seconds": time.perf_counter() - began + sum(e["seconds"] for e in earlier["epochs"]),
        "history": records.rounded(by_epoch),
    }
    records.write_json(folder / RUN, record, indent=None)
    for name in ("record.json", "history.json"):  # which it holds
        (folder / name).unlink()


def search(folder, settings, max_trials):
    """Search around the recipe of a folder's `config.json`, or go on, and write the one record.

    Args:
        folder: of the search, made by `folders.open_folder`.
        settings: arguments of `Recipe.options`, as JSON.
        max_trials: number of trials, as a string.

    Raises:
        ValueError: if the recipe cannot be trained.
        OSError: if the data cannot be read or the results not be written.
    """
    from keras_noisylb.experiments.tune import search as searching  # KerasTuner is an extra

    folder, settings = pathlib.Path(folder), json.loads(settings)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["options"]
    found = searching.run(
        folder, recipe_of(config), config["parts"], config["seeds"], int(max_trials), settings
    )
    record = {
        "config": config,
        "versions": records.versions(),
        "device": estimate.device(),
        "num_microbatches": settings.get("num_microbatches"),
        "max_trials": int(max_trials),
        "trials": [records.rounded(dataclasses.asdict(trial)) for trial in found],
    }
    records.write_json(folder / searching.RECORD, record)


def data(settings, *names):
    """Load data sets, to find a missing one before anything is trained.

    Args:
        settings: arguments of `Recipe.options`, as JSON.
        *names: of the data sets.
    """
    for name in names:
        data_sets.load(name, data_dir=json.loads(settings).get("data_dir"))


def measure():
    """Print an `estimate.Speed`, and the seconds in which it was measured, as a JSON object."""
    began = time.perf_counter()
    speed = dataclasses.asdict(estimate.measure())
    print(json.dumps({"speed": speed, "took": time.perf_counter() - began}))


JOBS = {"train": train, "search": search, "data": data, "time": measure}


def end_with_parent():
    """End this process when its parent ends for any reason: then the pipe from it is closed.

    Otherwise this process would write into the folder of the run that continues it.
    """

    def wait():
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main():
    """Do the job that the command line names. If it fails, the last line of errors says why."""
    end_with_parent()
    job, *arguments = sys.argv[1:]
    try:
        JOBS[job](*arguments)
    except (records.CompareError, ValueError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr, flush=True)
        sys.exit(2)


if __name__ == "__main__":
    keras.utils.disable_interactive_logging()
    main()
