"""The recipes of `noisylb table small`: one small network that fits its images, many temperatures.

Each row is a setting. Its recipes differ in learning rate, noise and λ, and have labels that say
so. Choices are made by the accuracy on training images that are held out; the test set is for the
report.
"""

from noisylb.protocol import Recipe

SEEDS = (0, 1, 2, 3, 4)


def label(rate, multiplier, noise_fraction, decay, default_decay):
    """The label of a recipe.

    Args:
        rate: peak learning rate.
        multiplier: λ, or `None` without noise.
        noise_fraction: the part of the training with noise, likewise.
        decay: weight decay.
        default_decay: that of the setting, which is not named.

    Returns:
        A string that can be a folder's name.
    """
    parts = [f"rate{rate:g}"]
    if multiplier is not None:
        parts.append(f"lambda{multiplier:g}")
    if noise_fraction is not None:
        parts.append(f"part{noise_fraction:g}")
    if decay != default_decay:
        parts.append(f"decay{decay:g}")
    return "-".join(parts)


def point(setting, regime, rate, multiplier=None, noise_fraction=None, decay=None):
    """A recipe of a setting.

    Args:
        setting: dictionary of the fields of `Recipe` that all its recipes share.
        regime: name of a regime.
        rate: peak learning rate.
        multiplier: λ of the noise; `None` without noise.
        noise_fraction: the part of the training with noise, or with small batches in batch-change.
        decay: weight decay; `None` for the setting's.

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
    if regime == "lb-diagonal-a5":
        own["conv"] = "uncorrelated"
    if regime == "lb-kfac":
        own["damping"] = 0.01
    return Recipe(**own | times | {
        "regime": regime, "learning_rate": rate, "multiplier": multiplier, "weight_decay": decay,
        "label": label(rate, multiplier, noise_fraction, decay, setting["weight_decay"]),
    })  # fmt: skip


def setting(row, model, dataset, epochs, small, large, **more):
    """What all recipes of a row share.

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
        "decay_epochs": (epochs / 2, epochs * 3 / 4), "decay_factor": 0.1, "seeds": SEEDS,
        "validation_freq": max(1, epochs // 10), **more,
    }  # fmt: skip


RESNET8 = setting(
    "cifar10-small", "resnet8", "cifar10", 150, 32, 512,
    train_size=8192, pool=2, held_out=10_000, small_learning_rate=0.1,
)  # fmt: skip
FULL, DIAGONAL = "lb-full-split", "lb-diagonal-split"

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
    ]
}
SMALL = {recipe.name: recipe for recipes in POINTS.values() for recipe in recipes}
