"""The recipes of `noisylb table small`: a small network at many temperatures.

Each row is a setting. Its recipes differ in learning rate, noise and λ; their labels name these
values. Choices are made by the accuracy on held-out training images. The test set is only reported
on.
"""

import dataclasses
import random

from noisylb.protocol.recipe import Recipe


def label(rate, conv, multiplier, noise_fraction, decay, default_decay, clip):
    """The label of a recipe.

    Args:
        rate: peak learning rate.
        conv: formula for convolutions, which is named where it is A.5's.
        multiplier: λ, or `None` without noise.
        noise_fraction: the part of the training with noise, likewise.
        decay: weight decay.
        default_decay: that of the setting, which is not named.
        clip: norm to which the gradient is clipped, or `None`.

    Returns:
        A string that can be a folder's name.
    """
    parts = [f"rate{rate:g}"]
    if conv == "uncorrelated":
        parts.insert(0, "a5")
    if multiplier is not None:
        parts.append(f"lambda{multiplier:g}")
    if noise_fraction is not None:
        parts.append(f"part{noise_fraction:g}")
    if decay != default_decay:
        parts.append(f"decay{decay:g}")
    if clip is not None:
        parts.append(f"clip{clip:g}")
    return "-".join(parts)


def point(
    setting, regime, rate, multiplier=None, noise_fraction=None, decay=None, conv=None, clip=None
):
    """A recipe of a setting.

    Args:
        setting: dictionary of the fields of `Recipe` that all its recipes share.
        regime: name of a regime.
        rate: peak learning rate.
        multiplier: λ of the noise; `None` without noise.
        noise_fraction: the part of the training with noise, or with small batches in batch-change.
        decay: weight decay; `None` for the setting's.
        conv: formula for convolutions; `None` for the exact one.
        clip: norm to which the whole gradient is clipped; `None` without clipping.

    Returns:
        A `Recipe`.
    """
    epochs = setting["epochs"]
    decay = setting["weight_decay"] if decay is None else decay
    part = None if noise_fraction is None else noise_fraction * epochs
    times = {"small_epochs" if regime == "batch-change" else "noise_epochs": part}
    own = dict(setting)
    if "split" in regime:
        own["estimator"] = "split"
    if regime == "lb-kfac":
        own["damping"] = 0.01
    name = label(rate, conv, multiplier, noise_fraction, decay, setting["weight_decay"], clip)
    return Recipe(**own | times | {
        "regime": regime, "learning_rate": rate, "multiplier": multiplier, "weight_decay": decay,
        "conv": conv, "global_clipnorm": clip, "label": name,
    })  # fmt: skip


def setting(row, model, dataset, epochs, small, large, **more):
    """The fields that all recipes of a row share.

    Args:
        row: its name.
        model: one of `keras_noisylb.models`.
        dataset: one of `keras_noisylb.data`.
        epochs: of the training.
        small: M_S.
        large: M_L.
        **more: further fields of `Recipe`, in place of the family's.

    Returns:
        Dictionary.
    """
    return {
        "row": row, "model": model, "dataset": dataset, "epochs": epochs, "augment": False,
        "small_batch_size": small, "large_batch_size": large, "ghost_batch_size": small,
        "momentum": 0.9, "weight_decay": 5e-4, "warmup_epochs": 0.05 * epochs,
        "validation_freq": max(1, epochs // 10), **more,
    }  # fmt: skip


def heated(setting, rate, factor):
    """The multiplier of full noise for a temperature; 0 if LB without noise is hotter.

    Args:
        setting: dictionary of the fields that all recipes share.
        rate: peak learning rate of LB.
        factor: T(LB + noise) / T(SB), the temperatures of docs/how_much_noise.md.

    Returns:
        A float of two digits after the point.
    """
    small, large = 1 / setting["small_batch_size"], 1 / setting["large_batch_size"]
    wanted = factor * setting["small_learning_rate"] * small / rate - large
    return round((max(wanted, 0) / (small - large)) ** 0.5, 2)


def draws(setting, regime, rates, conv=None, larger=1):
    """Recipes of a regime at random: rate, weight decay, temperature and length of the noise.

    The seed is the regime's name, so the recipes are always the same.

    Args:
        setting: dictionary of the fields that all recipes share.
        regime: name of a regime.
        rates: learning rates to choose from.
        conv: formula for convolutions.
        larger: factor of the multiplier, for a noise with a part of the Fisher's variance.

    Returns:
        List of `TRIALS` different `Recipe`.
    """
    draw, found = random.Random(f"{regime} {conv}"), {}
    while len(found) < TRIALS:
        rate, decay = draw.choice(rates), draw.choice(DECAYS)
        factor, part = draw.choice(FACTORS), draw.choice(PARTS)
        if regime in {"sb", "lb"}:
            factor = part = None
        elif regime == "batch-change":
            factor = None
        multiplier = factor and round(larger * heated(setting, rate, factor), 2)
        # LB without noise is hotter; small batches in all of the training are SB.
        if multiplier == 0 or (regime, part) == ("batch-change", 1):
            continue
        recipe = point(setting, regime, rate, multiplier, part, decay, conv)
        found[recipe.label] = recipe
    return list(found.values())


def search(setting, small_rates, large_rates, larger):
    """A random search with the same effort for every regime.

    Args:
        setting: dictionary of the fields that all recipes share.
        small_rates: learning rates of SB to choose from.
        large_rates: those of large batches.
        larger: factor of the multiplier of A.5's formula, which has a part of the variance.

    Returns:
        List of `Recipe`: the first of each regime, the second of each, and so on. So a search that
        is stopped has tried all regimes as often.
    """
    found = [
        draws(setting, regime, small_rates if regime == "sb" else large_rates)
        for regime in SEARCHED
    ]
    found.append(draws(setting, "lb-diagonal", large_rates, "uncorrelated", larger))
    return [recipe for trial in zip(*found, strict=True) for recipe in trial]


TRIALS = 5  # of each regime in a search
DECAYS = (2.5e-4, 5e-4, 1e-3, 2e-3)
FACTORS, PARTS = (0.5, 1, 2), (0.25, 0.5, 1)
FULL, DIAGONAL = "lb-full-split", "lb-diagonal-split"
SEARCHED = ("sb", "lb", "lb-trace", "lb-diagonal", DIAGONAL, FULL, "lb-kfac", "batch-change")

RESNET8 = setting(
    "cifar10-small", "resnet8", "cifar10", 150, 32, 512,
    train_size=8192, pool=2, held_out=10_000, small_learning_rate=0.1,
)  # fmt: skip
# Without normalisation the learning rate has a limit that does not grow with the batch.
LENET = setting(
    "cifar10-lenet-2048", "lenet", "cifar10", 600, 32, 2048, normalization="none",
    train_size=8192, pool=2, held_out=10_000, small_learning_rate=0.01,
)  # fmt: skip
# The same gap in half a minute a run: half of the images and a third of the updates.
SHORT = LENET | {
    "row": "cifar10-lenet-1024", "large_batch_size": 1024, "epochs": 200, "warmup_epochs": 10,
    "validation_freq": 20, "train_size": 4096, "weight_decay": 2e-3,
}  # fmt: skip
HUGE = LENET | {
    "row": "cifar10-lenet-4096", "large_batch_size": 4096, "epochs": 1200, "warmup_epochs": 60,
    "validation_freq": 120,
}  # fmt: skip
VGG7 = LENET | {"row": "cifar10-vgg7-2048", "model": "vgg7"}
# A longer warm-up may lift that limit.
WARMED = LENET | {"warmup_epochs": 150}
# Clipping the gradient is the usual remedy for a network that fails at a high rate.
CLIPPED = LENET | {"row": "cifar10-lenet-clipped"}
# The rate of Adam follows the square root of the batch: 0.004 here, if that does not diverge.
ADAMW = LENET | {
    "row": "cifar10-lenet-adamw", "optimizer": "adamw", "weight_decay": 0.05,
    "small_learning_rate": 0.0005,
}  # fmt: skip


def variants(setting):
    """The recipes in which a setting is compared with the first one.

    Args:
        setting: dictionary of the fields that all recipes share.

    Returns:
        List of `Recipe`.
    """
    return [
        point(setting, "sb", 0.1),
        point(setting, "lb", 0.4),
        point(setting, FULL, 0.4, 0.5, 0.5),
        point(setting, DIAGONAL, 0.4, 0.5, 0.5),
        point(setting, "lb", 1.6),
    ]


def clipped(setting, rates, decays, regimes):
    """Every rate with every weight decay, clipped to the norm 1; noise is matched, in one half.

    Args:
        setting: dictionary of the fields that all recipes share.
        rates: learning rates.
        decays: weight decays.
        regimes: names of regimes.

    Returns:
        List of `Recipe`.
    """
    return [
        point(setting, regime, rate, decay=decay, clip=1.0)
        if regime in {"sb", "lb"}
        else point(setting, regime, rate, heated(setting, rate, 1), 0.5, decay, clip=1.0)
        for rate in rates
        for decay in decays
        for regime in regimes
    ]


POINTS = {
    "cifar10-small": [
        point(RESNET8, "sb", 0.1),
        point(RESNET8, "lb", 0.4),
        point(RESNET8, FULL, 0.4, 0.5, 0.5),
        point(RESNET8, DIAGONAL, 0.4, 0.5, 0.5),
        point(RESNET8, "lb", 0.8),
        point(RESNET8, FULL, 0.8, 0.3, 0.5),
        point(RESNET8, DIAGONAL, 0.8, 0.3, 0.5),
        point(RESNET8, "lb", 1.6),
        point(RESNET8, "sb", 0.05),
        point(RESNET8, "lb", 3.2),
        point(RESNET8, FULL, 0.4, 1.0, 0.5),
        point(RESNET8, DIAGONAL, 0.4, 1.0, 0.5),
        point(RESNET8, FULL, 0.4, 0.25, 0.5),
        point(RESNET8, DIAGONAL, 0.4, 0.25, 0.5),
        point(RESNET8, FULL, 0.4, 0.5, 1.0),
        point(RESNET8, DIAGONAL, 0.4, 0.5, 1.0),
    ],
    "cifar10-lenet-2048": [
        point(LENET, "lb", 0.1),
        point(LENET, FULL, 0.1, 0.25, 0.5),
        point(LENET, "lb", 0.15),
        point(LENET, DIAGONAL, 0.1, 0.25, 0.5),
        point(LENET, "lb", 0.2),
        point(LENET, "sb", 0.01),
        point(LENET, "lb", 0.05),
        *(
            dataclasses.replace(point(WARMED, "lb", rate), label=f"rate{rate:g}-warmup0.25")
            for rate in (0.1, 0.2, 0.4)
        ),
        # Half of the match and twice the match; noise that ends earlier, or cools with the rate.
        point(LENET, FULL, 0.1, 0.15, 0.5),
        point(LENET, FULL, 0.1, 0.58, 0.5),
        point(LENET, FULL, 0.1, 0.25, 0.25),
        point(LENET, FULL, 0.1, 0.25, 1.0),
        point(LENET, DIAGONAL, 0.1, 0.15, 0.5),
        point(LENET, DIAGONAL, 0.1, 0.58, 0.5),
    ],
    "cifar10-lenet-1024": [
        *(point(SHORT, "lb", rate) for rate in (0.05, 0.02, 0.1, 0.2)),
        *(point(SHORT, FULL, rate, heated(SHORT, rate, 1), 0.5) for rate in (0.05, 0.02, 0.1)),
        *clipped(SHORT, (0.1, 0.2), (2e-3,), ("lb", FULL)),
        point(SHORT, "lb", 0.4, clip=1.0),
        *(point(SHORT, DIAGONAL, rate, heated(SHORT, rate, 1), 0.5) for rate in (0.05, 0.02)),
        *(point(SHORT, "sb", rate) for rate in (0.01, 0.005, 0.02)),
    ],
    "cifar10-lenet-4096": [
        point(HUGE, "lb", 0.1),
        point(HUGE, FULL, 0.1, 0.3, 0.5),
        point(HUGE, DIAGONAL, 0.1, 0.3, 0.5),
        point(HUGE, "lb", 0.2),
        point(HUGE, "lb", 0.15),
        point(HUGE, "sb", 0.01),
        point(HUGE, "lb", 0.05),
        point(HUGE, "lb", 0.02),
        *clipped(HUGE, (0.2, 0.4), (5e-4,), ("lb", FULL)),
    ],
    "cifar10-vgg7-2048": [
        point(VGG7, "lb", 0.1),
        point(VGG7, FULL, 0.1, 0.29, 0.5),
        point(VGG7, "lb", 0.2),
        point(VGG7, DIAGONAL, 0.1, 0.29, 0.5),
        point(VGG7, "lb", 0.4),
        point(VGG7, "lb", 0.05),
        point(VGG7, FULL, 0.05, 0.43, 0.5),
        point(VGG7, "sb", 0.01),
        point(VGG7, FULL, 0.1, 0.43, 0.5),  # twice the temperature of SB
        *clipped(VGG7, (0.1, 0.2, 0.4), (5e-4,), ("lb", FULL)),
    ],
    "cifar10-lenet-adamw": [
        point(ADAMW, "sb", 0.0005),
        point(ADAMW, "lb", 0.001),
        point(ADAMW, FULL, 0.001, 0.49, 0.5),
        point(ADAMW, "lb", 0.002),
        point(ADAMW, FULL, 0.002, 0.22, 0.5),
        point(ADAMW, "lb", 0.004),
        point(ADAMW, "lb", 0.008),
        point(ADAMW, "lb", 0.016),
    ],
    "cifar10-lenet-clipped": [
        *clipped(CLIPPED, (0.1, 0.2, 0.4), (5e-4, 2e-3), ("lb", FULL)),
        *clipped(CLIPPED, (0.01, 0.02, 0.04), (5e-4, 2e-3), ("sb",)),
        *clipped(CLIPPED, (0.1, 0.2, 0.4), (5e-4, 2e-3), (DIAGONAL,)),
        point(CLIPPED, "lb", 0.8, clip=1.0),
        *(point(CLIPPED, "lb", rate, clip=0.3) for rate in (0.1, 0.2, 0.4, 0.8)),
    ],
    # A.5's formula has a fifth to two thirds of the variance on the ResNet8, and all on LeNet.
    "cifar10-small-search": search(
        RESNET8 | {"row": "cifar10-small-search"},
        (0.025, 0.05, 0.1, 0.2),
        (0.2, 0.4, 0.8, 1.6, 3.2),
        larger=4,
    ),
    "cifar10-lenet-search": search(
        LENET | {"row": "cifar10-lenet-search"},
        (0.005, 0.01, 0.02, 0.04),
        (0.05, 0.1, 0.15, 0.2),
        larger=1,
    ),
    "cifar10-small-augmented": variants(
        RESNET8 | {"row": "cifar10-small-augmented", "augment": True}
    ),
    "cifar10-small-32": variants(RESNET8 | {"row": "cifar10-small-32", "pool": None}),
}
SMALL = {recipe.name: recipe for recipes in POINTS.values() for recipe in recipes}
