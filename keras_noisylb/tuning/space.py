"""The search space of the method, and the noise and schedule of a trial."""

import functools
import math
from collections.abc import Callable
from typing import Any

import keras_tuner

from keras_noisylb.noise import (
    DiagonalFisher,
    FisherTrace,
    FullFisher,
    Isotropic,
    KroneckerFactored,
    Multiplicative,
    Noise,
)
from keras_noisylb.schedules import WarmupStepDecay, updates_in

# A value, a list or tuple of choices, or a function of the trial's `HyperParameters`.
Part = Any | list[Any] | tuple[Any, ...] | Callable[[keras_tuner.HyperParameters], Any]

NONE = "none"  # the large batch alone
FISHER_PARTS = ("small_batch_size", "multiplier")
# What makes each noise, and the dimensions of the space that are its arguments.
NOISES: dict[str, tuple[Callable[..., Noise], tuple[str, ...]]] = {
    "full-split": (functools.partial(FullFisher, estimator="split"), FISHER_PARTS),
    "diagonal": (DiagonalFisher, (*FISHER_PARTS, "estimator")),
    "trace": (FisherTrace, (*FISHER_PARTS, "estimator")),
    "full": (FullFisher, FISHER_PARTS),
    "kronecker": (KroneckerFactored, FISHER_PARTS),
    "isotropic": (Isotropic, ("sigma",)),
    "multiplicative": (Multiplicative, ("sigma",)),
}
NOISE_PARTS = ("small_batch_size", "estimator", "multiplier", "sigma", "noise_fraction")
DECAYS = (1 / 2, 3 / 4)  # fractions of training: epochs 100 and 150 of 200 (paper, A.7)


def choose(space: dict[str, Part], hp: keras_tuner.HyperParameters) -> dict[str, Any]:
    """Register the space in `hp`, and return the values of a trial.

    Args:
        space: the dimensions by name.
        hp: the hyperparameters of a trial.

    Returns:
        Values by name, without dimensions that do not apply to the trial's noise. "made" is the
        noise itself, if the space contains functions that create noises.

    Raises:
        ValueError: if a noise is not in `NOISES`, or not registered under the name "noise".
    """
    own = _own_noises(space["noise"])
    if own:
        space = {**space, "noise": tuple(own)}
    chosen = {name: value_of(name, space[name], hp) for name in space if name not in NOISE_PARTS}
    parts: dict[str, tuple[str, ...]] = {name: found for name, (_, found) in NOISES.items()}
    if own:
        parts = dict.fromkeys(own, ())
    possible = _possible_noises(hp, parts)
    for name, make in own.items():
        with hp.conditional_scope("noise", [name]):
            if make is not None and chosen["noise"] == name:
                chosen["made"] = make(hp)
    for name in NOISE_PARTS:
        users = [n for n in possible if name == "noise_fraction" or name in parts[n]]
        if users:
            with hp.conditional_scope("noise", users):
                if chosen["noise"] in users:
                    chosen[name] = value_of(name, space[name], hp)
    return chosen


def value_of(name: str, part: Part, hp: keras_tuner.HyperParameters) -> Any:
    """Register one dimension in `hp`, and return its value in the trial.

    Args:
        name: name of the dimension.
        part: a fixed value, a list or tuple of choices, or a function of `hp`.
        hp: the hyperparameters of the trial.

    Raises:
        ValueError: if the part is or contains `None`.
    """
    if callable(part):
        return part(hp)
    if part is None or (isinstance(part, (list, tuple)) and None in part):
        raise ValueError(
            f"`{name}` must be values that KerasTuner can store, which None is not (for no "
            f"clipping, `global_clipnorm` is 0). Received: {name}={part!r}"
        )
    if isinstance(part, (list, tuple)):
        return hp.Choice(name, list(part))
    return hp.Fixed(name, part)


def noise_of(chosen: dict[str, Any]) -> Noise | None:
    """The noise of a trial, or `None`.

    Args:
        chosen: from `choose`.
    """
    if chosen["noise"] == NONE:
        return None
    if "made" in chosen:
        return chosen["made"]
    make, parts = NOISES[chosen["noise"]]
    return make(**{name: chosen[name] for name in parts})


def learning_rate_of(chosen: dict[str, Any], updates: int) -> WarmupStepDecay:
    """The learning rate schedule of a trial.

    Args:
        chosen: from `choose`.
        updates: number of updates of the whole training.
    """
    return WarmupStepDecay(
        chosen["learning_rate"],
        warmup_steps=updates_in(chosen["warmup_fraction"], updates),
        decay_steps=[updates_in(fraction, updates) for fraction in DECAYS],
        decay_factor=chosen["decay_factor"],
    )


def check(chosen: dict[str, Any], num_examples: int | None) -> None:
    """Fail a trial whose values do not fit together.

    Args:
        chosen: from `choose`.
        num_examples: number of training examples, or `None` if it is unknown.

    Raises:
        FailedTrialError: if values do not fit together. KerasTuner records it and continues.
    """
    small, large = chosen.get("small_batch_size"), chosen["large_batch_size"]
    if small is not None and small >= large:
        raise keras_tuner.errors.FailedTrialError(
            "small_batch_size must be less than large_batch_size: the noise makes the large batch "
            f"imitate a smaller one. Received: small_batch_size={small}, "
            f"large_batch_size={large}. Choose ranges that do not overlap."
        )
    if num_examples is not None and large > num_examples:
        raise keras_tuner.errors.FailedTrialError(
            f"large_batch_size must be at most the {num_examples} training examples. Received: "
            f"large_batch_size={large}. Choose smaller values."
        )
    if not 0 <= chosen["warmup_fraction"] <= 1:
        raise keras_tuner.errors.FailedTrialError(
            "`warmup_fraction` must be a fraction of training, from 0 to 1. Received: "
            f"warmup_fraction={chosen['warmup_fraction']}"
        )
    if not 0 <= chosen["global_clipnorm"] < math.inf:
        raise keras_tuner.errors.FailedTrialError(
            "`global_clipnorm` must be a positive number, or 0 for no clipping. Received: "
            f"global_clipnorm={chosen['global_clipnorm']}"
        )


def check_finite(losses: list[float], seed: int) -> None:
    """Fail a trial whose training diverged.

    Args:
        losses: the training loss of each epoch.
        seed: seed of the training.

    Raises:
        FailedTrialError: if a loss is not finite.
    """
    for epoch, loss in enumerate(losses, start=1):
        if not math.isfinite(loss):
            raise keras_tuner.errors.FailedTrialError(
                f"The training diverged: loss={loss} in epoch {epoch} with seed {seed}. Lower the "
                "learning rates of the space."
            )


def _own_noises(part):
    """The functions that create custom noises, by name; empty if the part is not a dictionary."""
    if not isinstance(part, dict):
        return {}
    if not part or not all(
        make is None if name == NONE else callable(make) for name, make in part.items()
    ):
        raise ValueError(
            "A dictionary given for `noise` must have a function `hp -> Noise` for each name, and "
            f'None for "none". Received: noise={part}'
        )
    return part


def _possible_noises(hp, known):
    """All noises of the space except "none"; arguments of other noises are not registered."""
    registered = [parameter.values for parameter in hp.space if parameter.name == "noise"]
    if not registered:
        raise ValueError(
            'A function given for `noise` must register the name "noise", because other '
            'dimensions depend on it. Use lambda hp: hp.Choice("noise", [...]).'
        )
    possible = [name for values in registered for name in values if name != NONE]
    unknown = [name for name in possible if name not in known]
    if unknown:
        raise ValueError(
            f"`noise` must be one of {', '.join(map(repr, (NONE, *known)))}. "
            f"Received: {', '.join(map(repr, unknown))}"
        )
    return possible
