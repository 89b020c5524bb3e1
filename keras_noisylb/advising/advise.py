"""How large a batch pays for a model and its data, at which learning rate and with which noise."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import keras

from keras_noisylb.advising.advice import Advice
from keras_noisylb.advising.short_runs import ShortRuns, positive_rate
from keras_noisylb.diagnostics.critical import FEWEST_BATCHES, critical_batch_size
from keras_noisylb.noise.base import positive_integer
from keras_noisylb.types import Loss, Nested

FEWEST_UPDATES = 20  # of a short run with the large batch


def advise(
    model: keras.Model | Callable[[], keras.Model],
    x: Any,
    y: Nested = None,
    *,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    loss: Loss | None = None,
    optimizer: keras.optimizers.Optimizer | None = None,
    updates: int = 200,
    num_batches: int = 64,
    highest_rate: float | Literal["measure"] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    verbose: int = 1,
) -> Advice:
    """How large a batch pays for a model and its data, at which rate and with which noise.

    A copy of the model is trained for a short time as it is trained now; the model itself stays as
    it is, compiled state included.

    Measured: the gradient noise scale tr Σ / ‖G‖² by `diagnostics.critical_batch_size`, with its
    confidence interval, after a tenth of the updates and after all of them. It usually grows during
    a training, so what is late in a short run is still early in a long one.

    Rules of thumb:

    - The largest batch that still pays is the late noise scale. There a training takes twice the
      fewest updates and twice the fewest examples (McCandlish et al. 2018,
      https://arxiv.org/abs/1812.06162; they find the two within a factor of a few).
    - The learning rate is scaled linearly for SGD (Goyal et al. 2017,
      https://arxiv.org/abs/1706.02677), and by the square root for other optimizers (Malladi et al.
      2022, https://arxiv.org/abs/2205.10287). Both are for batches below the noise scale.
    - At the linearly scaled rate the large batch is as hot as the small one: no noise is worth
      adding, λ = 0. Where the rate cannot go so high, λ is `matched_multiplier`. It is derived for
      small steps and full noise; for diagonal noise it is a first guess, to be tuned by a factor of
      two.

    With `highest_rate="measure"` copies are trained with the large batch at the scaled rate, at a
    half of it, a quarter, … until the lower rate ends no better, each for as many examples as the
    run before and at least 20 updates, with warm-up in the first half. The highest rate is the
    highest of those that lower the loss at least half as much as the best of them; the loss is that
    in training mode on the examples of the measurement. A few updates say little of a long
    training: they find rates at which it diverges or stands still.

    Args:
        model: a Keras model, which is copied, or a function without arguments that builds one.
        x: inputs, examples first, or nested; or a finite `tf.data.Dataset` of shuffled batches of
            one size, `(x, y)` or `(x, y, sample_weight)`.
        y: targets; `None` with a dataset.
        batch_size: the batch size in use; `None` with a dataset, whose batches say it.
        learning_rate: the learning rate in use, its peak; `None` takes that of the
            optimizer.
        loss: a Keras loss, its name, or a function `(y, y_pred)` to losses or their mean; `None`
            takes that which the model is compiled with.
        optimizer: a Keras optimizer, of which a copy is used; `None` takes that which the model is
            compiled with. A noise in it is left out.
        updates: number of updates of the run, at least 2.
        num_batches: number of batches of a measurement, if there are as many; at least 5.
        highest_rate: the highest learning rate at which training with large batches is stable, if
            that is known; `"measure"` to find it by short runs; `None` to leave it open.
        confidence: coverage of the interval, between 0 and 1.
        seed: integer, of the order of the examples.
        verbose: 0, or 1 for progress bars.

    Returns:
        An `Advice`; print it. Warns where the interval has no upper end.

    Raises:
        ValueError: for numbers that are not positive, fewer than 5 batches of data, a model without
            loss or optimizer or which cannot be copied, or if the run diverges.

    Example:
    ```python
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss)
    advice = keras_noisylb.advise(model, x_train, y_train, batch_size=64)
    print(advice)
    noise = DiagonalFisher(64, multiplier=advice.multiplier)
    ```
    """
    positive_integer("updates", updates, "the number of updates of the short run")
    positive_integer("num_batches", num_batches, "the number of batches of a measurement")
    if updates < 2 or num_batches < FEWEST_BATCHES:
        raise ValueError(
            f"`updates` must be at least 2 and `num_batches` at least {FEWEST_BATCHES}. Received: "
            f"updates={updates}, num_batches={num_batches}"
        )
    if isinstance(highest_rate, str) and highest_rate != "measure":
        raise ValueError(
            '`highest_rate` must be a positive number, "measure" or None. Received: '
            f"highest_rate={highest_rate!r}"
        )
    if highest_rate not in {None, "measure"}:
        positive_rate("highest_rate", highest_rate)
    runs = ShortRuns(model, loss, optimizer, learning_rate, x, y, batch_size, seed)
    sample, network = runs.sample(num_batches), runs.copy()
    stops = (max(updates // 10, 1), updates)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The critical batch size has no upper bound")
        early, late = [
            critical_batch_size(network, runs.loss, sample, confidence=confidence, verbose=verbose)
            for _ in runs.train(network, runs.learning_rate, stops[0], runs.batch_size, stops)
        ]
    if math.isinf(late.upper):
        warnings.warn(
            f"The gradient noise scale after {updates} updates has no upper bound at confidence "
            f"{confidence:g}. Raise `num_batches`, or hand more data.",
            stacklevel=2,
        )
    advice = Advice(
        batch_size=runs.batch_size,
        learning_rate=runs.learning_rate,
        num_examples=runs.num_examples,
        updates=stops,
        early=early,
        late=late,
        scaling="linear" if isinstance(runs.optimizer, keras.optimizers.SGD) else "square root",
        highest_rate=None if highest_rate == "measure" else highest_rate,
    )
    if highest_rate != "measure" or not advice.pays:
        return advice
    first_loss = runs.mean_loss(runs.copy(), sample)
    trials = _trials(runs, sample, advice)
    best = first_loss - min(loss for _, loss in trials)
    following = [rate for rate, loss in trials if first_loss - loss >= best / 2 > 0]
    return dataclasses.replace(
        advice,
        highest_rate=max(following, default=trials[-1][0]),
        trials=tuple(trials),
        first_loss=first_loss,
    )


def _trials(runs, sample, advice):
    """Losses after short runs at falling rates, until the lower rate ends no better."""
    large, trials = advice.largest_batch_size, []
    updates = max(round(advice.updates[1] * runs.batch_size / large), FEWEST_UPDATES)
    rate, before = advice.scaled_learning_rate, math.inf
    while True:
        network = runs.copy()
        for _ in runs.train(network, rate, updates // 2, large, (updates,)):
            loss = runs.mean_loss(network, sample)
        trials.append((rate, loss if math.isfinite(loss) else math.inf))
        if rate <= advice.learning_rate or math.inf > loss >= before:
            return trials
        rate, before = max(rate / 2, advice.learning_rate), trials[-1][1]
