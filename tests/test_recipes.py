import dataclasses
import json

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

from keras_noisylb import data, models
from keras_noisylb.experiments import train
from keras_noisylb.experiments.regimes import REGIMES, choose
from noisylb.main import app
from noisylb.protocol.paper import OURS, PUBLISHED, RECIPES, TABLES
from noisylb.protocol.recipe import SCALES, Recipe

# Copied from the paper: Table 2, then the columns that Table 3 adds.
PAPER = """
mnist-mlp           98.10 97.95 98.08 98.10
mnist-lenet         99.10 98.88 99.02 99.11
fashion_mnist-lenet 91.15 88.89 90.29 90.79
cifar10-alexnet     87.80 86.42 n/a   87.61
cifar100-alexnet    59.21 56.79 n/a   59.10
cifar10-vgg16       93.25 91.81 92.91 93.19 93.18 90.98 93.06
cifar100-vgg16      72.83 69.45 71.35 72.11 72.44 68.77 71.86
cifar10-resnet44    93.42 91.93 92.33 92.88 93.02 91.28 92.81
cifar100-resnet44x2 75.55 73.13 73.77 74.26 75.16 71.98 73.84
"""
ORDER = ("sb", "lb", "lb-trace", "lb-diagonal", "batch-change", "multiplicative", "lb-kfac")
CELLS = {
    (row, regime): number
    for row, *numbers in map(str.split, PAPER.strip().splitlines())
    for regime, number in zip(ORDER, numbers, strict=False)
}
# A.7, of the rows where it names rates: LB, LB + diagonal Fisher.
RATES = {
    "cifar10-vgg16": (1.6, 1.6),
    "cifar100-vgg16": (1.6, 1.6),
    "cifar10-resnet44": (3.2, 1.6),
    "cifar100-resnet44x2": (3.2, 1.6),
}


def test_every_cell_is_present():
    for (row, regime), number in CELLS.items():
        assert f"{row}/{regime}" in RECIPES
        assert str(PUBLISHED[row].get(regime, "n/a")) == (
            number if number == "n/a" else str(float(number))
        )
    rows = {row for row, _ in CELLS}
    ours = {f"{row}/{regime}" for row in rows for regime in ("lb-diagonal-split", "lb-full-split")}
    assert set(RECIPES) == {"/".join(cell) for cell in CELLS} | ours
    assert len(RECIPES) == 4 * 9 + 3 * 4 + 2 * 9
    assert PUBLISHED["cifar10-resnet44"]["lb-full-split"] == 93.22  # caption of Table 2
    for rows, regimes in TABLES.values():
        assert all(f"{row}/{regime}" in RECIPES for row in rows for regime in regimes)
    assert [len(rows) for rows, _ in TABLES.values()] == [9, 4]


@pytest.mark.parametrize("name", RECIPES)
def test_the_protocol_of_the_paper(name):
    recipe = RECIPES[name]
    row, regime = name.split("/")
    assert (recipe.small_batch_size, recipe.large_batch_size) == (128, 4096)
    described = recipe.described()
    assert recipe.epochs == 200 and described["decay_epochs"] == (100, 150)
    assert (described["decay_factor"], described["seeds"], described["optimizer"]) == (
        0.1,
        3,
        "sgd",
    )
    assert recipe.train_size is None
    assert recipe.warmup_epochs == (0 if regime in {"sb", "batch-change"} else 10)
    assert recipe.noise_epochs == (None if regime in {"sb", "lb", "batch-change"} else 50)
    assert recipe.small_epochs == (50 if regime == "batch-change" else None)
    assert (recipe.estimator == "split") == (regime in OURS)
    assert recipe.augment == row.startswith("cifar")
    if row in RATES and regime in {"lb", "lb-diagonal"}:
        assert recipe.learning_rate == RATES[row][regime == "lb-diagonal"]
    assert row == f"{recipe.dataset}-{recipe.model}"
    assert recipe.dataset in data.names() and recipe.model in models.names()
    assert regime in REGIMES


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_has_one_source(name):
    recipe = RECIPES[name]
    known = recipe.described().keys() - {"row", "regime"}
    assert sorted(source.field for source in recipe.sources) == sorted(known)
    stated = {source.field: source.stated for source in recipe.sources}
    assert all(source.where for source in recipe.sources)
    assert stated["large_batch_size"] and stated.get("noise_epochs", True)
    assert not any(stated[f] for f in ("momentum", "weight_decay", "augment", "ghost_batch_size"))
    row, regime = name.split("/")
    assert stated["learning_rate"] == (row in RATES and regime in {"lb", "lb-diagonal"})
    assert stated["warmup_epochs"] == (regime in {"lb", "lb-diagonal"})


def test_frozen_and_serialisable():
    for recipe in RECIPES.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            recipe.epochs = 1
        text = json.dumps(recipe.to_dict(), allow_nan=False)
        assert Recipe(**json.loads(text)) == recipe
    assert len(set(RECIPES.values())) == len(RECIPES)


def test_a_preset_scales_times_and_data_alone():
    for recipe in RECIPES.values():
        assert SCALES["paper"].apply(recipe) == recipe
        sample = SCALES["sample"].apply(recipe)
        assert (sample.epochs, sample.described()["decay_epochs"]) == (20, (10, 15))
        assert sample.warmup_epochs == pytest.approx(recipe.warmup_epochs / 10)
        for name in ("noise_epochs", "small_epochs"):
            assert getattr(sample, name) in {None, 5}
        before, after = dataclasses.asdict(recipe), dataclasses.asdict(sample)
        assert {name for name in before if before[name] != after[name]} <= {
            "epochs", "warmup_epochs", "noise_epochs", "small_epochs", "train_size",
        }  # fmt: skip


@pytest.mark.parametrize(("preset", "warm", "half"), [("paper", 130, 1300), ("sample", 3, 30)])
def test_the_trainer_gets_the_protocol(preset, warm, half):
    """13 updates an epoch of CIFAR-10, 3 of its part."""
    recipe = SCALES[preset].apply(RECIPES["cifar10-resnet44/lb-diagonal"])
    options = recipe.options(4, data_dir="there")
    assert options.seed_list == (4,) and options.data_dir == "there"
    regime, rate = choose(options)["lb-diagonal"]
    examples = recipe.train_size or 50_000
    schedule = train.schedule(regime, rate, options, examples)
    steps = [0, warm - 1, half - 1, half, half * 3 // 2 - 1, half * 3 // 2, 2 * half - 1]
    expected = [1.6 / warm, 1.6, 1.6, 0.16, 0.16, 0.016, 0.016]
    np.testing.assert_allclose([float(schedule(step)) for step in steps], expected, rtol=1e-5)
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model, noise_steps = train.compiled(network, regime, rate, options, examples, seed=0)
    assert noise_steps == half // 2
    assert model.optimizer.noise.get_config()["conv"] == "uncorrelated"


def test_batch_change_is_one_schedule():
    options = RECIPES["cifar10-vgg16/batch-change"].options(0)
    regime, rate = choose(options)["batch-change"]
    assert regime.batch_change(options).change_epoch == 50
    schedule = train.schedule(regime, rate, options, 50_000)
    small = 50 * 391
    steps = [0, *(small + epochs * 13 - before for epochs in (0, 50, 100) for before in (1, 0))]
    rates = [float(schedule(step)) for step in steps]
    np.testing.assert_allclose(rates, [0.1, 0.1, 1.6, 1.6, 0.16, 0.16, 0.016], rtol=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_options(name):
    recipe = RECIPES[name]
    options = recipe.options(0)
    ((regime, rate),) = choose(options).values()
    assert rate == recipe.learning_rate and options.ghost_batch_size == 128
    noise = regime.noise(options, rate)
    assert (noise is None) == (recipe.noise_epochs is None)


def test_weight_decay_is_what_the_gradient_gets():
    recipe = RECIPES["cifar10-vgg16/lb"]
    weights = np.linspace(-1, 1, 9)
    penalty = keras.regularizers.L2(recipe.options(0).l2)
    step = 1e-3
    up, down = (float(penalty(weights + s * np.eye(9)[8])) for s in (step, -step))
    assert (up - down) / (2 * step) == pytest.approx(1e-3 * weights[8], rel=1e-2)


def test_the_command_lists_and_prints(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["recipes"])
    assert result.exit_code == 0
    assert all(name in result.output for name in RECIPES)
    result = CliRunner().invoke(app, ["recipes", "cifar10-resnet44/lb", "--preset", "sample"])
    lines = {line.split()[0]: line for line in result.output.splitlines() if line.strip()}
    assert "3.2" in lines["learning_rate"] and "paper: A.7" in lines["learning_rate"]
    assert "0.9" in lines["momentum"] and "chosen: He et al. 2016" in lines["momentum"]
    assert "10000" in lines["train_size"] and "the preset" in lines["train_size"]
    for arguments, word in (
        (["cifar10-resnet44/lbb"], "NAME received 'cifar10-resnet44/lbb', expected a row and"),
        (
            ["--preset", "huge"],
            "--preset received 'huge', expected one of probe, short, long, sample, paper",
        ),
    ):
        result = CliRunner().invoke(app, ["recipes", *arguments])
        assert result.exit_code == 2 and word in result.stderr
