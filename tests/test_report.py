"""The output of `report` against counts by hand and against a training step."""

import keras
import numpy as np
import pytest
import sampling

import keras_noisylb as nlb

L = keras.layers
M, M_S = 256, 32
MIB = 2**20


class Scale(keras.layers.Layer):
    """A layer without a rule."""

    def build(self, shape):
        self.factor = self.add_weight((shape[-1],), name="factor")

    def call(self, x):
        return x * self.factor


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(3)

    def call(self, x):
        return self.dense(x)


def stack(*layers):
    return keras.Sequential([keras.Input((6,)), *layers])


def convolutional():
    return keras.Sequential([
        keras.Input((8, 8, 2)),
        L.Conv2D(4, 3, strides=2, use_bias=False, name="conv"),
        nlb.GhostBatchNormalization(M_S, name="norm"),
        L.Flatten(),
        L.Dense(5, name="dense"),
    ])


LENET = {  # parameters, positions
    "conv1": (500, 24 * 24),
    "conv1_norm": (40, 1),
    "conv2": (25_000, 8 * 8),
    "conv2_norm": (100, 1),
    "dense1": (400_000, 1),
    "dense1_norm": (1000, 1),
    "logits": (5010, 1),
}


def names(report):
    return [row.layer.split(" ")[0] for row in report.rows]


@pytest.mark.parametrize("noise", [nlb.DiagonalFisher(M_S), nlb.FisherTrace(M_S)])
def test_lenet(noise):
    model = nlb.models.LeNet(ghost_batch_size=M_S)
    report = nlb.report(nlb.NoisyModel(model), noise, M)
    assert names(report) == list(LENET)
    assert {row.method for row in report.rows} == {"layer rule"}
    assert all(row.exact for row in report.rows)
    for row, (size, positions) in zip(report.rows, LENET.values(), strict=True):
        assert row.megabytes == pytest.approx(4 * size / MIB)
        if "norm" not in row.layer:
            extra = size if positions == 1 else 1.5 * size
            assert row.work == pytest.approx(1 + extra / (3 * positions * size))
    assert report.rows[2].shapes == "5×5×20×50"
    assert report.rows[-1].shapes == "500×10 10"
    assert report.rows[0].layer == "conv1 (Conv2D)"
    assert report.megabytes == pytest.approx(4 * model.count_params() / MIB, rel=0.01)
    assert not report.notes


def test_a_residual_network():
    model = nlb.models.ResNet(depth=8, ghost_batch_size=M_S)
    report = nlb.report(model, nlb.DiagonalFisher(M_S, conv="uncorrelated"), M)
    trained = sum(np.prod(v.shape) for v in model.trainable_variables)
    assert report.megabytes == pytest.approx(4 * trained / MIB)
    assert len(report.rows) == len({id(r) for r in names(report)})
    convolutions = [row for row in report.rows if "Conv2D" in row.layer]
    assert len(convolutions) >= 7
    for row in report.rows:
        uncorrelated = row in convolutions
        assert row.exact != uncorrelated
        assert row.method == ("A.5 (uncorrelated positions)" if uncorrelated else "layer rule")
    assert all(row.work == pytest.approx(4 / 3) for row in convolutions)


def test_kronecker_factors():
    noise = nlb.KroneckerFactored(M_S, update_every=5, max_examples=64)
    report = nlb.report(convolutional(), noise, M)
    conv, norm, dense = report.rows
    assert conv.method == "Kronecker factors 18×18, 4×4"
    assert dense.method == "Kronecker factors 37×37, 5×5"
    assert norm.method == "layer rule (diagonal)"
    assert [row.exact for row in report.rows] == [False] * 3
    numbers = [18**2 + 4**2, 4 + 4, 37**2 + 5**2]
    assert [row.megabytes * MIB / 4 for row in report.rows] == pytest.approx(numbers)
    # A quarter of the examples makes the factors.
    assert conv.work == pytest.approx(1 + (18**2 + 4**2) / 4 / (3 * 72))
    assert report.notes == [
        "The statistic uses 64 of 256 examples.",
        "The statistic is computed at every 5th update only.",
    ]


@pytest.mark.parametrize(
    ("noise", "method", "work"),
    [
        (nlb.FullFisher(M_S), "weighted backward pass", 1 + 2 / 3),
        (nlb.DiagonalFisher(M_S, estimator="split"), "difference of the halves", 1.0),
        (nlb.Multiplicative(0.1), "its gradient", 1.0),
        (nlb.Isotropic(0.1), "its gradient", 1.0),
        (nlb.DiagonalFisher(M_S, engine="vectorized_map"), "vectorized_map", None),
    ],
)
def test_other_estimators(noise, method, work):
    report = nlb.report(convolutional(), noise, M)
    assert {row.method for row in report.rows} == {method}
    assert all(row.exact for row in report.rows)
    assert work is None or report.work == pytest.approx(work)
    is_split = getattr(noise, "estimator", None) == "split"
    assert any("equation 3" in note for note in report.notes) == is_split


@pytest.mark.parametrize(
    "noise",
    [
        nlb.DiagonalFisher(M_S),
        nlb.DiagonalFisher(M_S, engine="vectorized_map"),
        nlb.FisherTrace(M_S, estimator="split"),
        nlb.FullFisher(M_S),
        nlb.KroneckerFactored(M_S),
    ],
    ids=lambda noise: f"{type(noise).__name__} {noise.statistic}",
)
def test_the_size_of_the_statistic_is_that_of_a_step(noise, rng):
    model = convolutional()
    x, y = rng.standard_normal((64, 8, 8, 2)), rng.integers(0, 5, 64)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    report = nlb.report(model, noise, 64)
    (found,) = sampling.statistics(noise, model, loss, x, y)
    size = sum(np.asarray(t).nbytes for t in keras.tree.flatten(found) if t is not None)
    assert report.megabytes * MIB == pytest.approx(size)


def test_the_fallback_says_why():
    report = nlb.report(stack(L.Dense(4), Scale(name="gain")), nlb.DiagonalFisher(M_S), M)
    assert [row.method for row in report.rows] == ["vectorized_map"] * 2
    (note,) = report.notes
    assert "gain/factor of the Scale layer 'gain' has no layer rule" in note
    assert note in str(report)


@pytest.mark.parametrize(
    ("make", "noise", "message"),
    [
        (lambda: stack(Scale(), L.Dense(2)), nlb.DiagonalFisher(M_S, engine="layerwise"), "Scale"),
        (lambda: stack(Scale(), L.Dense(2)), nlb.DiagonalFisher(M_S, conv="uncorrelated"), "Scale"),
        (lambda: stack(Scale(), L.Dense(2)), nlb.KroneckerFactored(M_S), "Scale"),
        (lambda: stack(Scale(), L.BatchNormalization()), nlb.DiagonalFisher(M_S), "replace_batch"),
        (
            lambda: stack(L.Dense(2), L.BatchNormalization()),
            nlb.DiagonalFisher(M_S, engine="vectorized_map"),
            "replace_batch",
        ),
        (Subclassed, nlb.DiagonalFisher(M_S), r"report\(model, noise, batch_size, x=x\[:1\]\)"),
        (
            lambda: nlb.NoisyModel(Subclassed()),
            nlb.DiagonalFisher(M_S),
            "shapes of the model's inputs are not known",
        ),
    ],
)
def test_what_cannot_be_computed_raises(make, noise, message):
    with pytest.raises(ValueError, match=message):
        nlb.report(make(), noise, M)


def test_example_inputs_serve_where_shapes_are_not_known():
    model, x = Subclassed(), np.ones((2, 6), "float32")
    model(x)
    report = nlb.report(model, nlb.DiagonalFisher(M_S), M, x=x)
    assert [row.shapes for row in report.rows] == ["6×3 3"]
    sequences = nlb.report(model, nlb.DiagonalFisher(M_S), M, x=np.ones((2, 5, 6), "float32"))
    assert sequences.rows[0].work == pytest.approx(1 + 1.5 / 15)


def test_notes_and_the_printed_table():
    model = stack(nlb.GhostBatchNormalization(40), L.Dense(2))
    noise = nlb.DiagonalFisher(64, estimator="split")
    report = nlb.report(model, noise, 64)
    small, ghosts, centred = report.notes
    assert "batch of 64 is no larger than small_batch_size=64" in small
    assert "64 examples cannot be halved between ghost batches" in ghosts
    assert "equation 3" in centred
    lines = str(report).splitlines()
    assert lines[0].split() == ["layer", "variables", "statistic", "exact", "MB", "work"]
    assert len(lines) == 1 + len(report.rows) + 1 + len(report.notes)
    assert lines[-4] == "whole step: work 1.00, statistic 0.00 MB"
    assert lines[-3:] == report.notes


def test_a_report_changes_nothing():
    model = stack(L.Dense(4), nlb.GhostBatchNormalization(M_S), L.Dropout(0.5), L.Dense(2))
    before = [keras.ops.convert_to_numpy(v) for v in model.variables]
    nlb.report(model, nlb.KroneckerFactored(M_S), M)
    assert len(before) == 9  # the state of the dropout is one of them
    for a, b in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(a, b)
