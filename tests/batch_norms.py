"""Models with batch normalisation whose statistics have moved."""

from keras import layers
from oracle import perturb

import keras_noisylb as nlb


def norm(ghost=False, **options):
    if ghost:
        return nlb.GhostBatchNormalization(2, **options)
    return layers.BatchNormalization(**options)


def moved(model, rng):
    """Moves weights and moving statistics away from their special initial values."""
    perturb(model, rng)
    for v in model.non_trainable_variables:
        if v.name.startswith("moving"):
            v.assign(v + rng.uniform(0.1, 1, v.shape))
    return model
