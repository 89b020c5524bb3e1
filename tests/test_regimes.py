"""The regimes: the noise, the batches and the learning rate that each of them gives a run."""

import dataclasses

import keras
import numpy as np
import pytest
from test_compare import load, options, small_data  # noqa: F401 -- all tests use the small data

from keras_noisylb.experiments import compare, train
from keras_noisylb.experiments.regimes import REGIMES, choose
from keras_noisylb.gradients import accumulate
from keras_noisylb.noise import DiagonalFisher
from keras_noisylb.training import step
from keras_noisylb.training.model import NoisyModel

NOISES = {
    "lb-trace": ("FisherTrace", {"estimator": "per_example"}),
    "lb-diagonal": ("DiagonalFisher", {"estimator": "per_example"}),
    "lb-diagonal-split": ("DiagonalFisher", {"estimator": "split"}),
    "lb-diagonal-a5": ("DiagonalFisher", {"estimator": "per_example", "conv": "uncorrelated"}),
    "lb-full": ("FullFisher", {"estimator": "weighted"}),
    "lb-full-split": ("FullFisher", {"estimator": "split"}),
    "lb-true": ("FullFisher", {"fisher": "true"}),
    "lb-kfac": ("KroneckerFactored", {"damping": 0.01}),
    "multiplicative": ("Multiplicative", {"sigma": 0.1, "form": "coordinate"}),
    "lb-isotropic": ("Isotropic", {"sigma": 0.1}),
}


def test_every_regime_trains(tmp_path):
    names = ",".join([*NOISES, "batch-change"])
    changes = {"epochs": 1, "noise_fraction": 1.0, "large_batch_size": 50}
    summary = compare.compare(options(tmp_path, regimes=names, **changes))
    assert all(row["diverged_epochs"] == [] for row in summary.values())
    losses = {name: row["train_loss"] for name, row in summary.items()}
    # A.5 is a formula for convolutions, which this network has none of.
    assert losses.pop("lb-diagonal-a5") == pytest.approx(losses["lb-diagonal"])
    assert len(set(losses.values())) == len(losses)
    assert NOISES.keys() == {name for name, regime in REGIMES.items() if regime.make_noise}
    for name, (kind, expected) in NOISES.items():
        noise = REGIMES[name].noise(options(tmp_path), 0.1)
        assert type(noise).__name__ == kind
        assert {key: getattr(noise, key) for key in expected} == expected


def test_noise_options_reach_the_regimes(tmp_path):
    chosen = options(
        tmp_path, estimator="weighted", fisher="true", damping=0.5, update_every=7, multiplier=1.0
    )
    assert REGIMES["lb-diagonal"].noise(chosen).estimator == "weighted"
    assert REGIMES["lb-trace"].noise(chosen).fisher == "true"
    assert REGIMES["lb-diagonal-split"].noise(chosen).fisher == "empirical"
    assert REGIMES["lb-diagonal-a5"].noise(chosen).estimator == "per_example"
    kronecker = REGIMES["lb-kfac"].noise(chosen)
    assert (kronecker.damping, kronecker.update_every) == (0.5, 7)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    chosen = options(tmp_path, placement="update", num_microbatches=2)
    noisy, _ = train.compiled(model, REGIMES["lb-diagonal"], 0.1, chosen, 100, 5)
    assert noisy.optimizer.placement == "update" and noisy.num_microbatches == 2
    plain, _ = train.compiled(model, REGIMES["sb"], 0.1, chosen, 100, 5)
    assert not isinstance(plain, NoisyModel)


@pytest.mark.parametrize("regime", ["lb", "lb-full-split"])
@pytest.mark.parametrize("norm", [0.01, None])
def test_the_whole_gradient_is_clipped_with_its_noise(tmp_path, regime, norm):
    chosen = options(tmp_path, warmup_fraction=0.0, global_clipnorm=norm, large_batch_size=50)
    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    model, _ = train.compiled(network, REGIMES[regime], 0.5, chosen, 100, 0)
    before = [w.numpy() for w in network.weights]
    random = np.random.default_rng(0)
    model.train_on_batch(random.normal(size=(50, 3)), random.integers(2, size=50))
    moved = [w.numpy() - old for w, old in zip(network.weights, before, strict=True)]
    length = np.sqrt(sum(np.sum(np.square(part)) for part in moved))
    if norm is None:
        assert length > 10 * 0.5 * 0.01
    else:
        assert length == pytest.approx(0.5 * norm, rel=1e-4)


def test_titles_say_which_method_is_meant(tmp_path):
    titles = {name: regime.title() for name, regime in REGIMES.items()}
    assert len(set(titles.values())) == len(REGIMES)
    assert len({regime.look for regime in REGIMES.values()}) == len(REGIMES)
    assert titles["lb-diagonal"] == "LB + diagonal (exact)"
    assert titles["lb-diagonal-a5"] == "LB + diagonal (A.5)"
    assert titles["lb-diagonal-split"] == "LB + diagonal (split)"
    assert titles["lb-full"] == "LB + full (weighted)" and titles["lb"] == "LB"
    for changes, method in (
        ({"conv": "uncorrelated", "multiplier": "matched"}, "A.5"),
        ({"estimator": "weighted", "fisher": "true"}, "weighted, true Fisher"),
    ):
        chosen = options(tmp_path, **changes)
        assert REGIMES["lb-diagonal"].title(chosen) == f"LB + diagonal ({method})"
        assert REGIMES["lb-diagonal-split"].title(chosen) == "LB + diagonal (split)"


def test_batch_change_is_small_first(tmp_path):
    chosen = options(
        tmp_path, regimes="batch-change", epochs=4, noise_fraction=0.5, learning_rate="sb=0.02"
    )
    summary = compare.compare(chosen)
    assert summary["batch-change"]["steps"] == 2 * 10 + 2 * 3
    rate = train.schedule(REGIMES["batch-change"], 0.4, chosen, 100)
    found = [float(rate(step)) for step in range(26)]
    np.testing.assert_allclose(found, [0.02] * 20 + [0.04] * 3 + [0.004] * 3, rtol=1e-5)


def test_every_update_has_the_rate_of_its_batch(tmp_path):
    chosen = options(
        tmp_path, regimes="batch-change", epochs=5, noise_fraction=0.4, learning_rate="sb=0.02"
    )
    regime, seen = REGIMES["batch-change"], []
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model, _ = train.compiled(network, regime, 0.4, chosen, 100, 0)

    def note(batch, logs):
        seen.append(float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)))

    regime.batch_change(chosen).fit(
        model, np.ones((100, 2)), np.zeros(100), epochs=5, verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_begin=note)],
    )  # fmt: skip
    # 2 epochs of 10 small batches, 3 of 3 large ones; decays at epochs 2.5 and 3.75, rounded down.
    expected = [0.02] * 20 + [0.4] + [0.04] * 4 + [0.004] * 4
    np.testing.assert_allclose(seen, expected, rtol=1e-5)


def test_large_batches_of_a_change_are_computed_in_microbatches(tmp_path, monkeypatch):
    seen = []

    def compute(objective, batch, statistic, draws, num_microbatches):
        seen.append(num_microbatches)
        return accumulate.compute(objective, batch, statistic, draws, num_microbatches)

    monkeypatch.setattr(step, "compute", compute)
    # Ghosts of the small batch's size: it could not be cut.
    changes = {"regimes": "batch-change", "normalization": "ghost", "noise_fraction": 0.67}
    whole, parts = (options(tmp_path, output=str(tmp_path / n), **changes) for n in ("a", "b"))
    compare.compare(whole)
    assert seen == []
    compare.compare(dataclasses.replace(parts, num_microbatches=2))
    assert set(seen) == {1, 2} and seen == sorted(seen)
    a, b = (load(tmp_path / n / "batch-change-seed0" / "history.json") for n in ("a", "b"))
    assert len(a["batch_loss"]) == 2 * 10 + 3
    np.testing.assert_allclose(a["batch_loss"], b["batch_loss"], rtol=1e-5)


def test_regimes_take_their_options(tmp_path):
    chosen = choose(options(tmp_path, learning_rate="lb=0.5", multiplier=0.5, conv="uncorrelated"))
    assert {name: rate for name, (_, rate) in chosen.items()} == {
        "sb": 0.02, "lb": 0.5, "lb-diagonal": 0.5,
    }  # fmt: skip
    noise = REGIMES["lb-diagonal"].noise(options(tmp_path, multiplier=0.5, conv="uncorrelated"))
    assert isinstance(noise, DiagonalFisher)
    assert (noise.small_batch_size, noise.multiplier, noise.conv) == (10, 0.5, "uncorrelated")
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    noisy, steps = train.compiled(
        model, REGIMES["lb-diagonal"], 0.1, options(tmp_path, epochs=10), 100, 5
    )
    assert isinstance(noisy, NoisyModel) and steps == 15 == noisy.optimizer.noise_steps
    rates = [float(noisy.optimizer.inner_optimizer._learning_rate(k)) for k in (0, 14, 15, 22)]
    np.testing.assert_allclose(rates, [0.05, 0.1, 0.01, 0.001], rtol=1e-5)
