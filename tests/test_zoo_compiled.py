"""Networks with noise, compiled by XLA, against the same step uncompiled.

Every noise on one network of the zoo and two noises on every network are slow, most of it XLA's:
`pytest -m slow tests/test_zoo_compiled.py`.
"""

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from small_nets import miniature

import keras_noisylb as nlb
from keras_noisylb.gradients import objective
from keras_noisylb.gradients.accumulate import compute
from keras_noisylb.gradients.batch import Batch
from keras_noisylb.gradients.labels import label_sampler
from keras_noisylb.gradients.statistics import STATISTICS
from keras_noisylb.training.randomness import Draws

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
M, M_S = 8, 4
ZOO = ("mlp", "lenet", "alexnet", "vgg16", "resnet44", "resnet8x2")  # beside resnet8
NOISES = {
    "per_example": nlb.DiagonalFisher(M_S),
    "max_examples": nlb.FisherTrace(M_S, max_examples=4),
    "uncorrelated": nlb.DiagonalFisher(M_S, conv="uncorrelated"),
    "true": nlb.DiagonalFisher(M_S, fisher="true"),
    "weighted": nlb.FullFisher(M_S, estimator="weighted"),
    "split": nlb.DiagonalFisher(M_S, estimator="split"),
    "kfac": nlb.KroneckerFactored(M_S),
    "multiplicative": nlb.Multiplicative(0.1),
    "multiplicative by example": nlb.Multiplicative(0.1, form="example"),
    "isotropic": nlb.Isotropic(0.1),
}
# What is left of a statistic of XLA's own random numbers is compared by tests/test_noise.py.
DRAWN = ("true", "weighted", "multiplicative by example")
MATRIX = [
    *(("miniature", noise) for noise in ("per_example", "split", "kfac")),
    *(pytest.param("resnet8", noise, marks=pytest.mark.slow) for noise in NOISES),
    *(
        pytest.param(model, noise, marks=pytest.mark.slow)
        for model in ZOO
        for noise in ("per_example", "split")
    ),
]


def numbers(structure):
    return [leaf for leaf in keras.tree.flatten(structure) if leaf is not None]


@pytest.mark.parametrize(("name", "noise"), MATRIX)
def test_a_compiled_step_computes_what_the_step_computes(name, noise, float64, rng):
    keras.utils.set_random_seed(1)
    noise = NOISES[noise]
    shape = {"miniature": (8, 8, 3), "mlp": (28, 28, 1), "lenet": (28, 28, 1)}.get(
        name, (32, 32, 3)
    )
    options = {"num_classes": 10, "input_shape": shape, "ghost_batch_size": M_S}
    model = (miniature if name == "miniature" else nlb.models.get(name))(**options)
    for layer in model._flatten_layers():  # a mask of dropout is a random number, too
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    x = rng.standard_normal((M, *shape))
    y = rng.integers(0, 10, M)
    labels = label_sampler(LOSS) if noise.fisher == "true" else None
    target = objective(model, LOSS, labels)

    def step(x, y):
        draws = Draws(tf.constant([3, 4]))
        statistic = STATISTICS.make(noise, model, x)
        found = compute(target, Batch(x, y), statistic, draws, statistic.num_microbatches)
        sample = statistic.arrange(noise.sample(found.statistic, tf.constant(1.0), draws))
        keep = [] if noise in drawn else keras.tree.flatten(found.statistic)
        return found.gradients, keep, [value for _, value in found.state], sample

    drawn = [NOISES[name] for name in DRAWN]
    plain = tf.function(step, autograph=False)(x, y)
    compiled = tf.function(step, autograph=False, jit_compile=True)(x, y)
    for a, b in zip(compiled[:3], plain[:3], strict=True):
        # No less: the halves of split are weighted in float32.
        oracle.assert_close(numbers(a), numbers(b), rtol=1e-6)
    assert all(np.all(np.isfinite(n)) for n in numbers(compiled[3]))
