"""Labels drawn from a model's predictive distribution: the labels of the true Fisher."""

import contextlib

import keras
import tensorflow as tf


def labels_for(noise, model, loss):
    """The function that draws the labels of a noise's Fisher.

    Args:
        noise: the noise.
        model: the model that it is computed for.
        loss: as `label_sampler` takes it.

    Returns:
        Function `(y, y_pred, draws) -> y_sampled`, or `None` for the labels of the data.

    Raises:
        ValueError: if the distribution of the loss is not known.
    """
    if noise.fisher != "true":
        return None
    return noise.sampler or label_sampler(loss, getattr(model, "output_names", None))


def label_sampler(loss, output_names=None):
    """The function that draws labels from the distribution that a loss gives a model's outputs.

    The true Fisher is the mean over the inputs of E[g gᵀ], with labels from the model's predictive
    distribution (Wen et al. 2020, A.9). A loss that is a negative log likelihood defines it:

    - sparse categorical cross-entropy, categorical cross-entropy: one class per position, the
      classes on the last axis. Labels equal to `ignore_class` are kept.
    - binary cross-entropy: a Bernoulli variable per entry.
    - mean squared error: Keras averages (y - y_pred)² over the last axis, of size D, so exp(-loss)
      is the Gaussian with mean `y_pred` and variance D / 2 in every coordinate.

    Loss weights, sample weights and label smoothing do not change the distribution.

    Args:
        loss: what `compile` takes: a Keras loss, its name or its function; for several outputs a
            dict or list of them aligned with `y` and `y_pred` (`None` keeps an output's labels),
            or one loss for all.
        output_names: names of the model's outputs, which may be the keys of `loss` or `y` where
            `y_pred` is a list; `None` if it has none.

    Returns:
        Function `(y, y_pred, draws) -> y_sampled` of targets, the model's outputs, and an object
        whose methods `normal(shape, dtype)` and `uniform(shape, dtype)` give new independent
        numbers at every call. `y_sampled` has the structure, shapes and dtypes of `y`.

    Raises:
        ValueError: if the distribution of a loss is not known or its classes are not on the last
            axis; in the function, if `y` cannot have such labels or does not match the loss.

    Example:
    ```python
    sample = label_sampler("sparse_categorical_crossentropy")
    y_sampled = sample(y, model(x), draws)
    ```
    """
    if output_names is not None:
        return _by_name(loss, output_names)
    if isinstance(loss, (dict, list, tuple)):
        parts = {k: label_sampler(part) for k, part in _outputs(loss).items() if part is not None}
        return lambda y, y_pred, draws: _each_output(parts, y, y_pred, draws)
    loss = _instance(loss)
    # The loss' own `get_config` leaves out `axis`; that of its base class has every argument.
    options = super(type(loss), loss).get_config()
    draw = _DISTRIBUTIONS[type(loss)]
    if draw in {_sparse_classes, _one_hot_classes} and options.get("axis", -1) != -1:
        raise ValueError(
            "Labels can be drawn only where the classes are on the last axis, axis=-1. Received: "
            f"{type(loss).__name__}(axis={options['axis']}). Move the axis in the model, or "
            "pass `sampler`, a function (y, y_pred, draws) -> y, to the noise."
        )

    def sample(y, y_pred, draws):
        if isinstance(y, (dict, list, tuple)):
            return _each_output(dict.fromkeys(_outputs(y), sample), y, y_pred, draws)
        y, y_pred = tf.convert_to_tensor(y), tf.convert_to_tensor(y_pred)
        y_pred = tf.cast(y_pred, "float64" if y_pred.dtype == "float64" else "float32")
        return tf.cast(tf.reshape(draw(y, y_pred, draws, options), tf.shape(y)), y.dtype)

    return sample


def _by_name(loss, output_names):
    """The sampler of a model whose outputs have names."""
    aligned = label_sampler(loss)

    def named(structure):
        is_list = isinstance(structure, (list, tuple))
        return dict(zip(output_names, structure, strict=True)) if is_list else structure

    def sample(y, y_pred, draws):
        if not isinstance(y_pred, (list, tuple)):
            return aligned(y, y_pred, draws)
        sampled = label_sampler(named(loss))(named(y), named(y_pred), draws)
        return type(y)(sampled.values()) if isinstance(y, (list, tuple)) else sampled

    return sample


def _instance(loss):
    """The Keras loss object that `loss` stands for."""
    with contextlib.suppress(ValueError):
        loss = keras.losses.get(loss)
    for family in _DISTRIBUTIONS:
        if type(loss) is family:
            return loss
        if loss is keras.losses.get(family().name):
            return family()
    supported = ", ".join(family.__name__ for family in _DISTRIBUTIONS)
    raise ValueError(
        f"The distribution of the labels is known for the losses {supported}, their names and "
        f"their functions. Received: {loss!r}. For another loss pass `sampler`, a function "
        "(y, y_pred, draws) -> y that draws labels, to the noise."
    )


def _outputs(structure):
    """A dict from the key or the position of each output; a tensor is a list of one."""
    if isinstance(structure, dict):
        return structure
    return dict(enumerate(structure if isinstance(structure, (list, tuple)) else [structure]))


def _each_output(samplers, y, y_pred, draws):
    targets, outputs = _outputs(y), _outputs(y_pred)
    if not (samplers.keys() <= targets.keys() and samplers.keys() <= outputs.keys()):
        raise ValueError(
            "`loss`, `y` and `y_pred` must have the same outputs, by key or by position. "
            f"Received: loss for {list(samplers)}, y for {list(targets)}, y_pred for "
            f"{list(outputs)}."
        )
    sampled = {
        key: samplers[key](target, outputs[key], draws) if key in samplers else target
        for key, target in targets.items()
    }
    if isinstance(y, dict):
        return sampled
    return type(y)(sampled.values()) if isinstance(y, (list, tuple)) else sampled[0]


def _classes(y_pred, draws, options):
    """Class numbers by inversion of the cumulative distribution on the last axis."""
    cumulative = tf.cumsum(tf.nn.softmax(y_pred) if options["from_logits"] else y_pred, axis=-1)
    uniform = draws.uniform(tf.shape(y_pred)[:-1], y_pred.dtype)[..., None]
    below = cumulative[..., :-1] <= uniform * cumulative[..., -1:]
    return tf.reduce_sum(tf.cast(below, "int32"), axis=-1)


def _sparse_classes(y, y_pred, draws, options):
    classes = tf.cast(tf.reshape(_classes(y_pred, draws, options), tf.shape(y)), y.dtype)
    if options.get("ignore_class") is None:
        return classes
    return tf.where(y == tf.cast(options["ignore_class"], y.dtype), y, classes)


def _one_hot_classes(y, y_pred, draws, options):
    return tf.one_hot(_classes(y_pred, draws, options), tf.shape(y_pred)[-1])


def _bernoulli(y, y_pred, draws, options):
    probability = tf.sigmoid(y_pred) if options["from_logits"] else y_pred
    return draws.uniform(tf.shape(y_pred), y_pred.dtype) < probability


def _gaussian(y, y_pred, draws, options):
    if not y.dtype.is_floating:
        raise ValueError(
            "Labels drawn for MeanSquaredError are real numbers, so `y` must have a floating "
            f"dtype. Received: y of dtype {y.dtype.name}. Convert it, for example to float32."
        )
    # Keras drops a last axis of size 1 that one of the two lacks before it averages.
    averaged = min(y_pred, y, key=lambda tensor: len(tensor.shape))
    size = tf.shape(averaged)[-1] if len(averaged.shape) > 1 else 1
    return y_pred + tf.sqrt(tf.cast(size, y_pred.dtype) / 2) * draws.normal(
        tf.shape(y_pred), y_pred.dtype
    )


_DISTRIBUTIONS = {
    keras.losses.SparseCategoricalCrossentropy: _sparse_classes,
    keras.losses.CategoricalCrossentropy: _one_hot_classes,
    keras.losses.BinaryCrossentropy: _bernoulli,
    keras.losses.MeanSquaredError: _gaussian,
}
