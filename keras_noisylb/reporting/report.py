"""What a noise will do on a model, told before it runs."""

import dataclasses
import math
import warnings

import keras
import tensorflow as tf

from keras_noisylb.gradients.coverage import coverage
from keras_noisylb.gradients.engines import statistic_for
from keras_noisylb.gradients.kronecker import factored_places
from keras_noisylb.gradients.loss import call_model, check_trained
from keras_noisylb.gradients.microbatches import cut, ghost_sizes
from keras_noisylb.gradients.rules import RULES
from keras_noisylb.gradients.taps import all_layers, intercept, record_use
from keras_noisylb.gradients.vectorized import check_supported
from keras_noisylb.noise import Noise
from keras_noisylb.noise.base import not_negative
from keras_noisylb.reporting.memory import chunk_bytes, fewest_chunks
from keras_noisylb.schedules import matched_multiplier, noise_temperature, peak
from keras_noisylb.types import Nested

HOT = 4  # times the temperature of the small batch, beyond which a noise is warned of


@dataclasses.dataclass(frozen=True)
class Row:
    """What happens at one layer.

    Args:
        layer: its name and class.
        shapes: shapes of its trainable variables.
        method: how its part of the statistic is obtained.
        exact: whether it is what the noise's definition asks for.
        megabytes: size of its statistic.
        work: multiplications of a step with noise over those of the plain step.
    """

    layer: str
    shapes: str
    method: str
    exact: bool
    megabytes: float
    work: float


@dataclasses.dataclass(frozen=True)
class Report:
    """What `report` found; its `str` is a table.

    Args:
        rows: list of `Row`, one for each layer with trainable variables of its own.
        work: multiplications of a whole step with noise over those of the plain step. Time also
            depends on memory and hardware: see the measured ratios in the documentation.
        megabytes: size of the statistic, beside one gradient.
        notes: sentences that hold for the whole model.
        num_microbatches: the fewest, a power of two, that keep a step within the memory that was
            asked for; `None` if none was, or no number does.
        gibibytes: what a step then takes for activations, gradients and statistics, an estimate
            from its graph; `None` if no memory was asked for.
    """

    rows: list[Row]
    work: float
    megabytes: float
    notes: list[str]
    num_microbatches: int | None = None
    gibibytes: float | None = None

    def __str__(self) -> str:
        header = ("layer", "variables", "statistic", "exact", "MB", "work")
        cells = [header] + [
            (
                row.layer,
                row.shapes,
                row.method,
                "yes" if row.exact else "no",
                f"{row.megabytes:.2f}",
                f"{row.work:.2f}",
            )
            for row in self.rows
        ]
        widths = [max(len(line[k]) for line in cells) for k in range(len(header))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in cells
        ]
        total = f"whole step: work {self.work:.2f}, statistic {self.megabytes:.2f} MB"
        return "\n".join([*lines, total, *self.notes])


def report(
    model: keras.Model,
    noise: Noise,
    batch_size: int,
    *,
    x: Nested = None,
    memory: float | None = None,
    small_learning_rate: float | None = None,
) -> Report:
    """Say, layer by layer, what a noise will do on a model, without running it.

    With `memory`, the graph of a step is traced for a few sizes of its chunks, which takes as long
    as the first step of training does, and the fewest `num_microbatches` that fit are named. The
    estimate is three times what the operations need one after the other: processes were measured to
    take 1.4 to 2.7 times that. Weights, optimizer state and the program itself come on top.

    With `small_learning_rate`, a note compares the temperature of the training with that of the
    small batch which the noise imitates, and names the matched multiplier. It is that of
    `noise_temperature` at the peak of the rate that the model is compiled with. More than 4 times
    as hot is warned of.

    Args:
        model: a built Keras model.
        noise: the noise.
        batch_size: examples of one batch on one device.
        x: example inputs (nested arrays), needed where the model has no Input layer.
        memory: GiB that a step may take.
        small_learning_rate: the peak rate that suits SGD with batches of the noise's
            `small_batch_size`, at the same momentum.

    Returns:
        A `Report`.

    Raises:
        ValueError: if the noise cannot be computed for the model, the shapes of the inputs are not
            known, or `memory` is negative, or asked for with the vectorized_map engine; for
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
        heat = _heat(model, noise, batch_size, small_learning_rate)
    specs = _specs(model, x)
    check_trained(model.trainable_variables)
    obstacles = ()
    engine, conv = getattr(noise, "engine", None), getattr(noise, "conv", None)
    if noise.statistic in {"squares", "factors"} and engine != "vectorized_map":
        obstacles = coverage(model, specs).obstacles
        if obstacles and (
            noise.statistic == "factors" or engine == "layerwise" or conv == "uncorrelated"
        ):
            raise ValueError(
                f"this noise needs a layer rule for every variable: {'; '.join(obstacles)}."
            )
    vectorized = bool(obstacles) or engine == "vectorized_map"
    if vectorized:
        check_supported(model, specs)
    positions = _positions(model, specs)
    places = (
        {id(p.layer): p for p in factored_places(model)} if noise.statistic == "factors" else {}
    )
    share = min((getattr(noise, "max_examples", None) or batch_size) / batch_size, 1)
    rows, plain, total = [], 0, 0
    for layer, variables in _owners(model):
        size = sum(math.prod(v.shape) for v in variables)
        count = positions.get(id(layer), 1)
        step = 3 * count * size  # forward, and backward to inputs and to parameters
        extra, method, exact, numbers = _cost(
            noise, layer, size, count, vectorized, places.get(id(layer))
        )
        if noise.fisher == "true" and noise.statistic in {"squares", "factors"}:
            extra += 2 * count * size / share
        extra *= share
        rows.append(
            Row(
                f"{layer.name} ({type(layer).__name__})",
                " ".join("×".join(map(str, v.shape)) or "1" for v in variables),
                method,
                exact,
                4 * numbers / 2**20,
                1 + extra / step,
            )
        )
        plain, total = plain + step, total + step + extra
    notes = _notes(model, noise, batch_size, obstacles)
    if heat is not None:
        notes.append(heat)
    megabytes = sum(row.megabytes for row in rows)
    number = gibibytes = None
    if memory is not None:
        number, gibibytes, note = _fit(model, noise, specs, batch_size, memory, vectorized)
        notes.append(note)
    return Report(rows, total / max(plain, 1), megabytes, notes, number, gibibytes)


def _fit(model, noise, specs, batch_size, memory, vectorized):
    """The fewest microbatches that fit into `memory`, what they take, and a sentence."""
    if vectorized:
        raise ValueError(
            "the memory of the vectorized_map engine cannot be read off the graph. Leave `memory` "
            'out, or use estimator="split" or "weighted".'
        )
    statistic = statistic_for(noise, model, specs)
    true_labels = noise.fisher == "true"
    parameters = sum(math.prod(v.shape) for v in model.trainable_variables)
    ghosts = ghost_sizes(model)

    def bytes_of(rows):
        # In chunks, the sums of the chunks before are kept: a gradient and a statistic.
        sums = 8 * parameters if rows < batch_size else 0
        return sums + chunk_bytes(model, statistic, specs, rows, true_labels)

    number, found = fewest_chunks(bytes_of, memory * 2**30, batch_size, ghosts)
    taken = found / 2**30
    if number is None:
        smallest = cut(batch_size, batch_size, ghosts).largest
        note = (
            f"No num_microbatches keeps a step within {memory:g} GiB: a chunk of {smallest} "
            f"examples, the smallest, takes {taken:.2f} GiB."
        )
    else:
        note = f"num_microbatches={number} keeps a step within {memory:g} GiB: {taken:.2f} GiB."
    return number, taken, note


def _heat(model, noise, batch_size, small_learning_rate):
    """A sentence on the temperature with the noise; warns where it is far too high."""
    optimizer, small = getattr(model, "optimizer", None), noise.small_batch_size
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    if not isinstance(optimizer, keras.optimizers.SGD):
        raise ValueError(
            "`small_learning_rate` compares temperatures, which are those of SGD: compile the "
            f"model with keras.optimizers.SGD first. Received: {type(optimizer).__name__}"
        )
    if not small:
        raise ValueError(
            "`small_learning_rate` is that of the small batch which the noise imitates, and "
            f"{type(noise).__name__} imitates none. Leave it out."
        )
    rate, momentum = peak(optimizer), optimizer.momentum
    ours = noise_temperature(
        rate, batch_size, small_batch_size=small, multiplier=noise.multiplier, momentum=momentum
    )
    ratio = ours / noise_temperature(small_learning_rate, small, momentum=momentum)
    matched = matched_multiplier(batch_size, small, rate, small_learning_rate)
    note = (
        f"At the rate {rate:g} the training is {ratio:.2g} times as hot as with batches of {small} "
        f"at {small_learning_rate:g}. The matched multiplier is {matched:.2f}; the noise has "
        f"{noise.multiplier:g}."
    )
    if getattr(noise, "conv", "exact") == "uncorrelated":
        note += " In convolutions, A.5's formula has less variance than that."
    if ratio > HOT:
        warnings.warn(note, stacklevel=3)
    return note


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


def _owners(model):
    """Pairs of a layer and its trainable variables, each with the smallest layer that holds it."""
    owners = {}
    for layer in all_layers(model):
        for v in layer.trainable_variables:
            known = owners.get(id(v), layer)
            smaller = len(layer.trainable_variables) <= len(known.trainable_variables)
            owners[id(v)] = layer if smaller else known
    found = {}
    for v in model.trainable_variables:
        layer = owners[id(v)]
        found.setdefault(id(layer), (layer, []))[1].append(v)
    return list(found.values())


def _positions(model, specs):
    """How often the variables of a layer are used for one example."""
    uses = []
    layers = [layer for layer in all_layers(model) if RULES.get(layer) is not None]

    def trace(x):
        uses.clear()  # TensorFlow traces again if the first call makes variables
        with keras.StatelessScope(), intercept(layers, record_use(uses)):
            call_model(model, x)

    tf.function(trace, autograph=False).get_concrete_function(specs)
    counts = {}
    for use in uses:
        shape = use.output.shape[1:]
        if getattr(use.layer, "data_format", None) == "channels_first":
            shape = shape[1:]
        else:
            shape = shape[:-1]
        number = math.prod(size or 1 for size in shape)
        counts[id(use.layer)] = counts.get(id(use.layer), 0) + number
    return counts


def _cost(noise, layer, size, count, vectorized, place):
    """Extra multiplications per example, how, whether exact, and numbers kept."""
    name = noise.statistic
    if name == "gradient":
        return 0, "its gradient", True, 0
    if name == "weighted":
        return 2 * count * size, "weighted backward pass", True, size
    if name == "split":
        return 0, "difference of the halves", True, size
    if place is not None:
        rows, columns = place.sides
        return (
            count * (rows**2 + columns**2),
            f"Kronecker factors {rows}×{rows}, {columns}×{columns}",
            False,
            rows**2 + columns**2,
        )
    if vectorized:
        return 3 * count * size + size, "vectorized_map", True, size
    if name == "factors":
        return 1.5 * size, "layer rule (diagonal)", False, size
    if noise.conv == "uncorrelated" and hasattr(layer, "kernel_size"):
        return count * size, "A.5 (uncorrelated positions)", False, size
    return (size if count == 1 else 1.5 * size), "layer rule", True, size


def _notes(model, noise, batch_size, obstacles):
    notes = []
    if obstacles:
        notes.append(f"vectorized_map, because {'; '.join(obstacles)}.")
    small = noise.small_batch_size
    if small and batch_size <= small:
        notes.append(
            f"No noise: the batch of {batch_size} is no larger than small_batch_size={small}."
        )
    if noise.statistic == "split" and cut(batch_size, 2, ghost_sizes(model)).number < 2:
        notes.append(
            f"The {batch_size} examples cannot be halved between ghost batches: the halves share "
            "them, which costs one more backward pass."
        )
    if noise.statistic == "split":
        notes.append("Covariance around the mean gradient (equation 3), not F around zero.")
    maximum = getattr(noise, "max_examples", None)
    if maximum and maximum < batch_size:
        notes.append(f"The statistic uses {maximum} of {batch_size} examples.")
    if noise.update_every > 1:
        notes.append(f"The factors are computed at every {noise.update_every}th update only.")
    return notes
