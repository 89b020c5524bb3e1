"""The temperature of a training with noise, relative to that of the small batch."""

import warnings

import keras

from keras_noisylb.optimizer import CLIPPING
from keras_noisylb.schedules import matched_multiplier, noise_temperature, peak

HOT = 4  # times the temperature of the small batch; above it, a warning


def temperature_note(model, noise, batch_size, small_learning_rate):
    """A sentence on the temperature with the noise; a warning too, if it is above `HOT`."""
    optimizer, small = getattr(model, "optimizer", None), noise.small_batch_size
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    if not isinstance(optimizer, keras.optimizers.SGD):
        raise ValueError(
            "`small_learning_rate` compares temperatures, which are defined for SGD: compile the "
            f"model with keras.optimizers.SGD first. Received: {type(optimizer).__name__}"
        )
    if not small:
        raise ValueError(
            "`small_learning_rate` is the rate for the small batch that the noise imitates, but "
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
    if any(getattr(optimizer, name) is not None for name in CLIPPING):
        note += " Where the optimizer clips the gradient, the training is colder than that."
    if ratio > HOT:
        warnings.warn(note, stacklevel=3)
    return note
