"""Every estimator on third-party models: equal to a brute-force oracle, or a named error.

`TABLE` says which; each of its cells has a test of its own, and docs/foreign_models.md shows it.
`python tests/test_foreign_models.py` brings the table on that page up to date.
"""

import functools
import pathlib

import foreign_models as foreign
import foreign_oracle
import keras
import numpy as np
import pytest
from keras import applications, layers

import keras_noisylb as nlb

EXACT = "exact"
# Every reason is a part of the message.
NO_RULE = "has no layer rule"
FIRST_AXIS = "first axis is not the examples'"
BATCH = "normalises every example by the whole batch"
EINSUM = "makes TensorFlow's vectorized_map crash"
RANDOM = "draws random numbers"
FAILS = "TensorFlow's vectorized_map fails on it"

# What a message must name for each estimator, and its options.
ESTIMATORS = {
    "layerwise": ('engine="layerwise"', {"engine": "layerwise"}),
    "vectorized_map": ('engine="vectorized_map"', {"engine": "vectorized_map"}),
    "weighted": ('estimator="weighted"', {"estimator": "weighted"}),
    "split": ('"split"', {"estimator": "split"}),
}

HEADERS = ("`per_example`, layerwise", "`per_example`, vectorized_map", "`weighted`", "`split`")

MobileNetV2 = functools.partial(
    foreign.application, applications.MobileNetV2, "block_2_add", alpha=0.35
)
EfficientNetB0 = functools.partial(
    foreign.application, applications.EfficientNetB0, "block2b_add", brightest=255
)
ResNet50 = functools.partial(foreign.application, applications.ResNet50, "conv2_block2_out")
lstm = functools.partial(layers.LSTM, 4)

# Problem, then the outcome for "per_example" by either engine; "weighted" and "split" are exact.
TABLE = {
    "MobileNetV2": (MobileNetV2(), EXACT, BATCH),
    "MobileNetV2, `replace_batch_norm`": (MobileNetV2(norm="ghost"), EXACT, EXACT),
    "MobileNetV2, frozen batch normalisation": (MobileNetV2(norm="frozen"), EXACT, EXACT),
    "EfficientNetB0": (EfficientNetB0(), EXACT, BATCH),
    "EfficientNetB0, `replace_batch_norm`": (EfficientNetB0(norm="ghost"), EXACT, EXACT),
    "ResNet50": (ResNet50(), EXACT, BATCH),
    "ResNet50, `replace_batch_norm`": (ResNet50(norm="ghost"), EXACT, EXACT),
    "transformer": (foreign.transformer, EXACT, EINSUM),
    "transformer, dropout": (functools.partial(foreign.transformer, dropout=0.3), EXACT, EINSUM),
    "transformer, positions without an example axis": (
        functools.partial(foreign.transformer, shared_positions=True),
        FIRST_AXIS,
        EINSUM,
    ),
    "LSTM of vectors, masked": (foreign.recurrent(lstm), NO_RULE, EXACT),
    "LSTM, recurrent dropout": (
        foreign.recurrent(functools.partial(lstm, recurrent_dropout=0.3), coupled=True),
        NO_RULE,
        RANDOM,
    ),
    "LSTM of embedded words, masked": (foreign.recurrent(lstm, embedded=True), NO_RULE, FAILS),
    "the same with `unroll=True`": (
        foreign.recurrent(functools.partial(lstm, unroll=True), embedded=True),
        NO_RULE,
        EXACT,
    ),
    "autoencoder, Conv2DTranspose": (
        foreign.autoencoder(lambda: layers.Conv2DTranspose(3, 3, 2, padding="same")),
        NO_RULE,
        EXACT,
    ),
    "autoencoder, UpSampling2D": (
        foreign.autoencoder(
            lambda: layers.UpSampling2D(), lambda: layers.Conv2D(3, 3, padding="same")
        ),
        EXACT,
        EXACT,
    ),
    "variational autoencoder": (foreign.variational_autoencoder, EXACT, RANDOM),
    "convolutions behind RandomFlip": (foreign.augmented, EXACT, RANDOM),
    "two towers, one shared": (foreign.two_towers, EXACT, EXACT),
    "two towers, one call for both": (
        functools.partial(foreign.two_towers, concatenated=True),
        FIRST_AXIS,
        EXACT,
    ),
}
CELLS = {
    (name, estimator): outcome
    for name, (_, *outcomes) in TABLE.items()
    for estimator, outcome in zip(ESTIMATORS, [*outcomes, EXACT, EXACT], strict=True)
}


class Shown(nlb.DiagonalFisher):
    """Its sample is the statistic itself."""

    def sample(self, statistic, amplitude, draws):
        return statistic


def run(problem, estimator):
    """The gradient and the statistic of the problem's batch, as training computes them."""
    noise = Shown(2, **ESTIMATORS[estimator][1])
    return nlb.noisy_gradients(
        problem.model, problem.loss, problem.x, problem.y, noise, 0, add_loss_reduction="mean"
    )


def cells(exact):
    return [cell for cell, outcome in CELLS.items() if (outcome == EXACT) == exact]


@pytest.mark.parametrize(("name", "estimator"), cells(exact=True))
def test_exact(name, estimator, float64, rng, monkeypatch):
    assert_exact(TABLE[name][0](rng), estimator, rng, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "estimator"),
    [cell for cell in cells(exact=True) if cell[0].startswith(("Mobile", "Efficient", "ResNet"))],
)
def test_exact_with_all_blocks(name, estimator, float64, rng, monkeypatch):
    assert_exact(TABLE[name][0](rng, whole=True), estimator, rng, monkeypatch)


def assert_exact(problem, estimator, rng, monkeypatch):
    weights = rng.standard_normal(len(problem.y)).astype("float32")
    right_gradient, right = foreign_oracle.ORACLES[estimator](problem, weights)

    def known(draws, shape, dtype):
        assert shape == weights.shape
        return keras.ops.convert_to_tensor(weights, dtype)

    monkeypatch.setattr("keras_noisylb.training.randomness.Draws.normal", known)
    # One microbatch: tf.vectorized_map takes long to trace.
    monkeypatch.setattr("keras_noisylb.gradients.slices.SLICE_BYTES", 2**31)
    gradient, statistic = run(problem, estimator)
    assert_same(gradient, right_gradient, problem.rtol)
    if estimator == "split":  # each half is multiplied by a float32 number
        pairs = zip(right_gradient, right, strict=True)
        halves = [np.sqrt(len(weights)) * np.abs(g) + np.abs(v) for g, v in pairs]
        assert_same(statistic, right, max(problem.rtol, 1e-7), halves)
    elif estimator == "weighted":
        assert_same(statistic, right, problem.rtol)
    else:
        assert_same(*(list(map(np.sqrt, f)) for f in (statistic, right)), problem.rtol)


def assert_same(actual, expected, rtol, large=None):
    """Equal to a part of each variable's largest number, or, where that is 0, of the model's.

    (Batch normalisation makes many a bias before it of no consequence.)
    """
    sizes = [np.abs(numbers).max() for numbers in large or expected]
    for a, e, size in zip(actual, expected, sizes, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=max(rtol * size, 1e-12 * max(sizes)))


@pytest.mark.parametrize(("name", "estimator"), cells(exact=False))
def test_refused(name, estimator, rng):
    problem = TABLE[name][0](rng)
    with pytest.raises(ValueError) as refusal:
        run(problem, estimator)
    message = str(refusal.value)
    assert CELLS[name, estimator] in message
    named = [other for other, (how, _) in ESTIMATORS.items() if how in message]
    assert any(CELLS[name, other] == EXACT for other in named)


class Unseeded(layers.Layer):
    """Draws from Keras' global generator, as the stochastic depth of ConvNeXt does."""

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), dtype=x.dtype)


def stack(*middle):
    return keras.Sequential([keras.Input((6, 4)), *middle, layers.Flatten(), layers.Dense(3)])


@pytest.mark.parametrize(
    ("build", "engine", "message"),
    [
        (lambda: stack(layers.Dense(4), Unseeded()), "vectorized_map", RANDOM),
        (lambda: stack(layers.EinsumDense("abc,cd->abd", (6, 4))), "vectorized_map", EINSUM),
        (lambda: stack(layers.LSTM(4, dropout=0.5)), "auto", f"no engine.*{NO_RULE}.*{RANDOM}"),
    ],
)
def test_traps(build, engine, message, rng):
    model, x, y = build(), rng.standard_normal((5, 6, 4)), rng.standard_normal((5, 3))
    noise = nlb.DiagonalFisher(2, engine=engine)
    with pytest.raises(ValueError, match=f'{message}.*estimator="weighted" or "split"'):
        nlb.noisy_gradients(model, foreign.squared_error, x, y, noise, seed=0)


PAGE = pathlib.Path(__file__).parent.parent / "docs" / "foreign_models.md"


def with_table(text):
    """The page with the lines of its table as they ought to be."""
    rows = [["model", *HEADERS], ["---"] * 5]
    for name in TABLE:
        outcomes = [CELLS[name, estimator] for estimator in ESTIMATORS]
        rows.append([name, *(o if o == EXACT else f"refused: {o}" for o in outcomes)])
    before, _, rest = text.partition("\n|")
    after = rest[rest.rindex("|\n") + 2 :]
    return "\n".join([before, *(f"| {' | '.join(row)} |" for row in rows), after])


def test_the_page_shows_the_table():
    assert PAGE.read_text() == with_table(PAGE.read_text())


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
