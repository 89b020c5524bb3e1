"""What a noise does on a model, before training."""

import keras
import tensorflow as tf

from keras_noisylb.gradients.loss import check_trained
from keras_noisylb.gradients.statistics import STATISTICS
from keras_noisylb.noise import Noise
from keras_noisylb.noise.base import not_negative
from keras_noisylb.reporting.cost import rows_of
from keras_noisylb.reporting.memory import fit
from keras_noisylb.reporting.table import Report
from keras_noisylb.reporting.temperature import temperature_note
from keras_noisylb.types import Nested


def report(
    model: keras.Model,
    noise: Noise,
    batch_size: int,
    *,
    x: Nested = None,
    memory: float | None = None,
    small_learning_rate: float | None = None,
) -> Report:
    """Report, layer by layer, what a noise does on a model, without running it.

    With `memory`, the graph of a step is traced for a few sizes of microbatches, which takes as
    long as the first step of training, and the fewest `num_microbatches` that fit are named. The
    estimate is three times what the operations need one after another; processes were measured to
    take 1.4 to 2.7 times that. Weights, optimizer state and the program itself are not included.

    With `small_learning_rate`, a note compares the temperature of the training with that of the
    small batch that the noise imitates, and names the matched multiplier. The temperature is that
    of `noise_temperature`, at the peak of the learning rate that the model is compiled with. A
    warning says if it is more than 4 times that of the small batch.

    Args:
        model: a built Keras model.
        noise: the noise.
        batch_size: examples of one batch on one device.
        x: example inputs (nested arrays), needed for a model without Input layer.
        memory: GiB that a step may take.
        small_learning_rate: the peak rate that suits SGD with batches of the noise's
            `small_batch_size`, at the same momentum.

    Returns:
        A `Report`.

    Raises:
        ValueError: if the noise cannot be computed for the model, or the shapes of the inputs are
            not known. For `memory`, if it is negative, or the engine is vectorized_map. For
            `small_learning_rate`, if it is not positive, the noise imitates no small batch, or the
            model is not compiled with SGD.

    Example:
    ```python
    print(report(model, DiagonalFisher(small_batch_size=128), batch_size=4096))
    ```
    """
    if memory is not None:
        not_negative("memory", memory, "the GiB that a step may take")
    heat = None
    if small_learning_rate is not None:
        heat = temperature_note(model, noise, batch_size, small_learning_rate)
    specs = _specs(model, x)
    check_trained(model.trainable_variables)
    statistic = STATISTICS.make(noise, model, specs)
    rows, work = rows_of(model, statistic, specs, batch_size)
    notes = _notes(noise, batch_size, statistic.notes(model, batch_size))
    if heat is not None:
        notes.append(heat)
    megabytes = sum(row.megabytes for row in rows)
    number = gibibytes = None
    if memory is not None:
        number, gibibytes, note = fit(model, noise, statistic, specs, batch_size, memory)
        notes.append(note)
    return Report(rows, work, megabytes, notes, number, gibibytes)


def _notes(noise, batch_size, of_statistic):
    """The sentences below the table; `of_statistic` are those of the noise's statistic."""
    small, notes = noise.small_batch_size, []
    if small and batch_size <= small:
        notes.append(
            f"No noise: the batch of {batch_size} is no larger than small_batch_size={small}."
        )
    notes += of_statistic
    if noise.update_every > 1:
        notes.append(f"The statistic is computed at every {noise.update_every}th update only.")
    return notes


def _inputs(model):
    """The (nested) symbolic inputs of a model or of the model in a `NoisyModel`, or `None`."""
    for candidate in (model, getattr(model, "model", None)):
        inputs = getattr(candidate, "inputs", None)
        if inputs is not None:
            return inputs[0] if isinstance(candidate, keras.Sequential) else candidate.input
    return None


def _specs(model, x):
    x = _inputs(model) if x is None else x
    if x is None:
        raise ValueError(
            "the shapes of the model's inputs are not known: pass example inputs, "
            f"report(model, noise, batch_size, x=x[:1]). Received: {type(model).__name__}"
        )
    return keras.tree.map_structure(
        lambda t: tf.TensorSpec((None, *t.shape[1:]), keras.backend.standardize_dtype(t.dtype)), x
    )
