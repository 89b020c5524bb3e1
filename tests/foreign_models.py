"""Third-party models, in tiny instances, each with data and a loss."""

import dataclasses
import functools
from collections.abc import Callable

import keras
import oracle
from keras import layers, ops

import keras_noisylb as nlb

GHOST = 3  # examples in a ghost batch
WORDS = 6


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model with one batch.

    Args:
        model: the model.
        loss: function `(y, y_pred) -> losses`, examples first.
        x: inputs.
        y: targets.
        coupled: whether an example's output depends on the others, or on random numbers.
        rtol: how closely two ways of computing the same in float64 can agree.
    """

    model: keras.Model
    loss: Callable
    x: object
    y: object
    coupled: bool = False
    rtol: float = 1e-9


def squared_error(y, y_pred):
    return keras.losses.mean_squared_error(y, y_pred)


def crossentropy(y, y_pred):
    return keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True)


def images(rng, shape=(8, 8, 3), count=7):
    return rng.uniform(0, 1, (count, *shape))


def sentences(rng, length=6, count=7):
    """Word numbers, with padding (0) at the end of some."""
    words = rng.integers(1, WORDS, (count, length))
    words[::2, -2:] = 0
    return words


def built(build, **options):
    return build(
        input_shape=(32, 32, 3), weights=None, classes=3, classifier_activation=None, **options
    )


@functools.cache
def up_to(last, build, floatx, **options):
    """The part of an application up to a layer, and a classifier behind it."""
    model = built(build, **options)
    features = layers.GlobalAveragePooling2D()(model.get_layer(last).output)
    return keras.Model(model.inputs, layers.Dense(3)(features))


def application(build, last, norm="batch", brightest=1, **options):
    """A classifier of `keras.applications` with its own, ghost or frozen batch normalisation.

    It has the blocks up to the layer `last`, among which every kind of block is, or all.
    """

    def problem(rng, whole=False):
        if whole:
            model = built(build, **options)
        else:
            model = keras.models.clone_model(up_to(last, build, keras.config.floatx(), **options))
        for v in model.trainable_variables:
            if len(v.shape) == 1:  # away from gamma = 1 and beta = 0
                v.assign(v + 0.3 * rng.standard_normal(v.shape))
        if norm == "ghost":
            model = nlb.replace_batch_norm(model, GHOST)
        x, y = brightest * images(rng, (32, 32, 3), 2 * GHOST), rng.integers(0, 3, 2 * GHOST)
        if norm == "frozen":
            norms = [n for n in model.layers if isinstance(n, layers.BatchNormalization)]
            for layer in norms:
                layer.momentum = 0.0
            model(x, training=True)  # so that the moving statistics are those of these images
            for layer in norms:
                layer.trainable = False
        # Normalising so few examples by a small variance, layer after layer, enlarges rounding.
        return Problem(model, crossentropy, x, y, coupled=norm != "frozen", rtol=1e-6)

    return problem


class EachPosition(layers.Layer):
    """Embeddings of words and places; the places are given with or without an example axis."""

    def __init__(self, shared):
        super().__init__()
        self.shared = shared
        self.words, self.places = layers.Embedding(WORDS, 8), layers.Embedding(6, 8)

    def call(self, x):
        places = ops.arange(x.shape[1], dtype="int32")
        if not self.shared:
            places = places + ops.zeros_like(x, dtype="int32")
        return self.words(x) + self.places(places)


def transformer(rng, shared_positions=False, dropout=0.0):
    inputs = keras.Input((6,), dtype="int32")
    x = EachPosition(shared_positions)(inputs)
    mixed = layers.MultiHeadAttention(2, 3, dropout=dropout)(x, x, use_causal_mask=True)
    x = layers.LayerNormalization()(x + mixed)
    hidden = layers.Dense(8)(layers.Dense(12, activation="gelu")(x))
    x = layers.LayerNormalization()(x + hidden)
    model = keras.Model(inputs, layers.Dense(WORDS)(x))
    oracle.perturb(model, rng)
    return Problem(model, crossentropy, sentences(rng), sentences(rng), coupled=dropout > 0)


def recurrent(*middle, embedded=False, coupled=False):
    """A classifier of sequences: of vectors with a mask, or of embedded words with a mask."""

    def problem(rng):
        first = layers.Embedding(WORDS, 4, mask_zero=True) if embedded else layers.Masking()
        shape, dtype = ((6,), "int32") if embedded else ((6, 4), None)
        stack = [keras.Input(shape, dtype=dtype), first, *(make() for make in middle)]
        model = keras.Sequential([*stack, layers.Dense(3)])
        oracle.perturb(model, rng)
        x = words = sentences(rng)
        if not embedded:
            x = rng.standard_normal((*words.shape, 4)) * (words > 0)[..., None]
        return Problem(model, crossentropy, x, rng.integers(0, 3, len(x)), coupled)

    return problem


def autoencoder(*decoder):
    def problem(rng):
        encoder = [layers.Conv2D(4, 3, activation="relu", padding="same"), layers.MaxPooling2D()]
        model = keras.Sequential([keras.Input((8, 8, 3)), *encoder, *(make() for make in decoder)])
        oracle.perturb(model, rng)
        x = images(rng)
        return Problem(model, squared_error, x, x)

    return problem


class Sampling(layers.Layer):
    """The reparametrised draw of a variational autoencoder, with its divergence as a loss."""

    def __init__(self):
        super().__init__()
        self.generator = keras.random.SeedGenerator(0)

    def call(self, mean, log_variance):
        terms = 1 + log_variance - ops.square(mean) - ops.exp(log_variance)
        self.add_loss(-0.5 * ops.mean(terms))
        noise = keras.random.normal(ops.shape(mean), seed=self.generator, dtype=mean.dtype)
        return mean + ops.exp(log_variance / 2) * noise


def variational_autoencoder(rng):
    inputs = keras.Input((5,))
    hidden = layers.Dense(6, activation="tanh")(inputs)
    code = Sampling()(layers.Dense(2)(hidden), layers.Dense(2)(hidden))
    outputs = layers.Dense(5)(layers.Dense(6, activation="tanh")(code))
    model = keras.Model(inputs, outputs)
    oracle.perturb(model, rng)
    x = rng.standard_normal((7, 5))
    return Problem(model, squared_error, x, x, coupled=True)


def augmented(rng):
    """An image classifier that flips and blurs its inputs in training."""
    stack = [layers.Rescaling(2.0, -1.0), layers.RandomFlip(), layers.Conv2D(4, 3)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *stack, layers.Flatten(), layers.Dense(3)])
    oracle.perturb(model, rng)
    return Problem(model, crossentropy, images(rng), rng.integers(0, 3, 7), coupled=True)


def two_towers(rng, concatenated=False):
    """A score of two texts by one tower, called for each or for both in one long batch."""
    inputs = {name: keras.Input((6,), dtype="int32", name=name) for name in ("query", "item")}
    embed, average = layers.Embedding(WORDS, 8, mask_zero=True), layers.GlobalAveragePooling1D()
    tower = keras.Sequential([layers.Dense(6, activation="tanh"), layers.Dense(4)])
    texts = list(inputs.values())
    if concatenated:
        texts = [layers.Concatenate(axis=0)(texts)]
    codes = [tower(average(embed(text))) for text in texts]
    if concatenated:
        codes = ops.split(codes[0], 2, axis=0)
    model = keras.Model(inputs, layers.Dense(1)(layers.Dot(1, normalize=True)(codes)))
    oracle.perturb(model, rng)
    x = {name: sentences(rng) for name in inputs}

    def loss(y, y_pred):
        return keras.losses.binary_crossentropy(y, y_pred, from_logits=True)

    return Problem(model, loss, x, rng.integers(0, 2, (7, 1)) * 1.0)
