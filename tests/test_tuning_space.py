"""The search space, and the noise and schedule of a trial."""

import keras
import keras_tuner
import pytest
from test_tuning import DATA, by_hand, hypermodel, linear, random_search

import keras_noisylb as nlb
from keras_noisylb.tuning import results


def space_of(tmp_path, **changes):
    tuner = random_search(hypermodel(**changes), tmp_path)
    return {parameter.name: parameter for parameter in tuner.oracle.get_space().space}


def test_parts_are_values_choices_or_functions(tmp_path):
    space = space_of(
        tmp_path,
        noise=("none", "trace", "isotropic"),
        sigma=lambda hp: hp.Float("spread", 0.1, 0.2),
        estimator=("weighted", "split"),
    )
    fixed = {name for name, p in space.items() if type(p).__name__ == "Fixed"}
    assert fixed >= {"small_batch_size", "multiplier", "momentum", "warmup_fraction"}
    assert space["momentum"].value == 0.9
    assert space["estimator"].values == ["weighted", "split"]
    assert space["spread"].max_value == 0.2
    conditions = {name: p.conditions[0].values for name, p in space.items() if p.conditions}
    assert conditions.keys().isdisjoint({"noise", "large_batch_size", "learning_rate"})
    assert conditions["estimator"] == conditions["small_batch_size"] == ["trace"]
    assert conditions["spread"] == ["isotropic"]
    assert conditions["noise_fraction"] == ["trace", "isotropic"]


def test_parts_of_no_noise_of_the_space_are_left_out(tmp_path):
    assert "sigma" not in space_of(tmp_path / "diagonal")
    without = space_of(tmp_path / "none", noise="none")
    assert without.keys().isdisjoint({"estimator", "small_batch_size", "noise_fraction"})


@pytest.mark.parametrize(
    "noise", ["full-split", "diagonal", "trace", "full", "kronecker", "isotropic"]
)
def test_every_noise_is_built(noise):
    model = hypermodel(noise=noise, estimator="weighted", sigma=0.3)
    built = model.build(keras_tuner.HyperParameters()).optimizer.noise
    expected = {
        "full-split": nlb.FullFisher(10, estimator="split"),
        "diagonal": nlb.DiagonalFisher(10, estimator="weighted"),
        "trace": nlb.FisherTrace(10, estimator="weighted"),
        "full": nlb.FullFisher(10),
        "kronecker": nlb.KroneckerFactored(10),
        "isotropic": nlb.Isotropic(0.3),
    }[noise]
    assert type(built) is type(expected) and built.get_config() == expected.get_config()


@pytest.mark.parametrize("noise", ["full-split", "none"])
@pytest.mark.parametrize(("norm", "expected"), [(0.5, 0.5), (0.0, None)])
def test_gradients_are_clipped_to_the_norm_of_the_space(noise, norm, expected):
    model = hypermodel(noise=noise, global_clipnorm=norm)
    assert model.build(keras_tuner.HyperParameters()).optimizer.global_clipnorm == expected


@pytest.mark.parametrize("part", [None, (None, 1.0)])
def test_none_is_no_value_of_a_dimension(part):
    model = hypermodel(global_clipnorm=part)
    with pytest.raises(ValueError, match="for no clipping, `global_clipnorm` is 0"):
        model.build(keras_tuner.HyperParameters())


def own_noises():
    return {
        "capped": lambda hp: nlb.DiagonalFisher(
            hp.Choice("small_batch_size", [10, 20]), max_examples=hp.Choice("kept", [30, 60])
        ),
        "wide": lambda hp: nlb.Isotropic(hp.Float("sigma", 0.1, 0.2)),
        "none": None,
    }


def test_noises_of_ones_own(tmp_path):
    space = space_of(tmp_path, noise=own_noises())
    assert space["noise"].values == ["capped", "wide", "none"]
    conditions = {name: p.conditions[0].values for name, p in space.items() if p.conditions}
    assert conditions == {
        "small_batch_size": ["capped"],
        "kept": ["capped"],
        "sigma": ["wide"],
        "noise_fraction": ["capped", "wide"],
    }
    hp = keras_tuner.HyperParameters()
    hp.Fixed("kept", 60)
    built = hypermodel(noise=own_noises()).build(hp).optimizer.noise
    assert built.get_config() == nlb.DiagonalFisher(10, max_examples=60).get_config()
    hp = keras_tuner.HyperParameters()
    hp.Fixed("noise", "none")
    assert isinstance(hypermodel(noise=own_noises()).build(hp).optimizer, keras.optimizers.SGD)


def test_a_noise_of_ones_own_is_searched(tmp_path):
    made = {"mine": lambda hp: nlb.DiagonalFisher(hp.Fixed("size", 10), estimator="split")}
    tuner = random_search(hypermodel(noise=made), tmp_path, max_trials=1)
    tuner.search(**DATA, epochs=2)
    (trial,) = results(tuner)
    assert trial.values["noise"] == "mine" and trial.values["size"] == 10
    named = {**trial.values, "noise": "diagonal"}
    assert trial.score == pytest.approx(by_hand(named), rel=1e-5)


def test_the_builder_sees_the_space_and_may_give_microbatches():
    def builder(hp):
        return nlb.NoisyModel(linear(hp), num_microbatches=hp.get("large_batch_size") // 30)

    model = hypermodel(builder).build(keras_tuner.HyperParameters())
    assert model.num_microbatches == 2 and not isinstance(model.model, nlb.NoisyModel)


def test_bad_spaces_are_refused_before_the_search(tmp_path):
    for noise, message in (
        ("diagonl", "Received: 'diagonl'"),
        (lambda hp: hp.Choice("kind", ["full"]), "must register the name"),
        ({}, "a function `hp -> Noise` for each name"),
        ({"mine": None}, "a function `hp -> Noise` for each name"),
        ({"none": lambda hp: None}, 'and None for "none"'),
    ):
        with pytest.raises(ValueError, match=message):
            random_search(hypermodel(noise=noise), tmp_path)
    with pytest.raises(ValueError, match="distinct integers"):
        hypermodel(seeds=(1, 1))
