"""Advice on batch size, learning rate and noise, from a short training."""

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

FEWEST_UPDATES = 20  # smallest number of updates of a short run with the large batch


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
    """Advise a batch size, a learning rate and a noise for a model and its data.

    A copy of the model is trained for a few updates with the current batch size and learning rate.
    The model itself is not changed, compiled state included.

    `diagnostics.critical_batch_size` measures the gradient noise scale tr Σ / ‖G‖² and its
    confidence interval twice: after a tenth of the updates and after all of them. The noise scale
    usually grows during training, so the end of this short run is still early in a full training.

    The advice follows rules of thumb:

    - The largest useful batch is the late noise scale. It estimates the batch with which training
      takes twice the smallest possible number of updates and twice the smallest possible number of
      examples (McCandlish et al. 2018, https://arxiv.org/abs/1812.06162, who find that the two
      agree within a small factor).
    - The learning rate is scaled linearly for SGD (Goyal et al. 2017,
      https://arxiv.org/abs/1706.02677), and by the square root for other optimizers (Malladi et al.
      2022, https://arxiv.org/abs/2205.10287). Both rules are for batches below the noise scale.
    - At the linearly scaled rate the large batch has the noise temperature of the small one: no
      noise is needed, λ = 0. If this rate is too high, λ is `matched_multiplier`. Its derivation
      assumes small steps and full noise. For diagonal noise it is a first guess; tune it within a
      factor of two.

    With `highest_rate="measure"`, copies are trained with the large batch at the scaled rate, at
    half of it, at a quarter, and so on, until a lower rate does not improve the loss. Each of these
    runs has as many examples as the first run, at least 20 updates, and warm-up in its first half.
    The result is the highest rate that lowers the loss at least half as much as the best rate does.
    The loss is taken in training mode on the examples of the measurement. A few updates do not
    predict a long training; they only detect rates at which it diverges or makes no progress.

    Args:
        model: a Keras model, which is copied, or a function without arguments that builds one.
        x: inputs, examples first, or nested; or a finite `tf.data.Dataset` of shuffled batches of
            equal size, `(x, y)` or `(x, y, sample_weight)`.
        y: targets; `None` with a dataset.
        batch_size: the batch size in use; `None` with a dataset.
        learning_rate: the peak of the learning rate in use; `None` for the optimizer's.
        loss: a Keras loss, its name, or a function `(y, y_pred)` that returns losses or their mean;
            `None` for the loss of the compiled model.
        optimizer: a Keras optimizer, which is copied; `None` for the optimizer of the compiled
            model. Its noise is ignored.
        updates: number of updates of the short run, at least 2.
        num_batches: largest number of batches of a measurement, at least 5.
        highest_rate: the highest learning rate at which training with large batches is stable, if
            it is known; `"measure"` to find it by short runs; `None` if it is unknown.
        confidence: coverage of the interval, between 0 and 1.
        seed: integer, seed of the order of the examples.
        verbose: 0, or 1 for progress bars.

    Returns:
        An `Advice`; print it. Warns if the interval has no upper end.

    Raises:
        ValueError: if numbers are not positive, if there are fewer than 5 batches of data, if the
            model has no loss or optimizer or cannot be copied, or if the run diverges.

    Example:
    ```python
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss)
    advice = keras_noisylb.advise(model, x_train, y_train, batch_size=64)
    print(advice)
    noise = FullFisher(64, estimator="split", multiplier=advice.multiplier)
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
            f"{confidence:g}. Raise `num_batches`, or pass more data.",
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
    """Losses after short runs at decreasing rates, until a lower rate does not improve the loss."""
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
