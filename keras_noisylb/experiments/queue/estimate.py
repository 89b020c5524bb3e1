"""An estimate of the time that a plan takes, from a few timed updates of each row."""

import dataclasses
import json
import time

from keras_noisylb.experiments.queue.process import ask
from keras_noisylb.experiments.queue.run import examples
from keras_noisylb.experiments.regimes import REGIMES

TEST_EXAMPLES = 10_000  # evaluated after every epoch; forward only is a third of the work


def time_row(recipe):
    """Time updates of a row's network, without noise and on random images.

    Args:
        recipe: a `Recipe` of the row.

    Returns:
        Dictionary with "seconds", a dictionary of batch size to seconds of an update; "start", the
        approximate seconds before a process trains; and "device".
    """
    began = time.perf_counter()
    plain = dataclasses.replace(recipe, regime="lb")
    answer = json.loads(ask("time", json.dumps(plain.to_dict())))
    return {
        **answer,
        "start": time.perf_counter() - began,
        "seconds": {int(size): s for size, s in answer["seconds"].items()},
    }


def predict(recipe, timing):
    """The seconds of a run, if the time of an update is a linear function of the batch size.

    Args:
        recipe: its `Recipe`, scaled.
        timing: dictionary of two batch sizes to seconds of an update.

    Returns:
        A float.

    Example:
    >>> recipe = Scale("one", epochs=1 / 200).apply(RECIPES["mnist-mlp/lb"])
    >>> round(predict(recipe, {128: 0.1, 512: 0.4}), 3)
    49.479
    """
    (small, fast), (large, slow) = sorted(timing.items())
    each = max(0.0, (slow - fast) / (large - small))
    fixed = max(0.0, fast - each * small)
    part = (recipe.noise_epochs or 0) / recipe.epochs
    first = recipe.epochs if recipe.regime == "sb" else recipe.small_epochs or 0

    def epoch(batch_size):
        return -(-examples(recipe) // batch_size) * fixed + examples(recipe) * each

    plain = first * epoch(recipe.small_batch_size)
    plain += (recipe.epochs - first) * epoch(recipe.large_batch_size)
    looks = recipe.epochs * TEST_EXAMPLES * each / 3
    return plain * (1 + part * REGIMES[recipe.regime].cost) + looks
