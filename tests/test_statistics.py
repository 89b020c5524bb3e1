"""The registry of statistics."""

import keras
import numpy as np
import pytest

import keras_noisylb as nlb

L = keras.layers
M = 12


class Unknown(nlb.noise.Noise):
    statistic = "nobody's"

    def amplitude(self, num_examples, parts, unit):
        return 1.0


def problem():
    model = keras.Sequential([keras.Input((3,)), L.Dense(2)])
    return model, "mse", np.ones((M, 3), "float32"), np.zeros((M, 2), "float32")


@pytest.mark.parametrize(
    "use",
    [
        lambda noise: nlb.noisy_gradients(*problem(), noise, 0),
        lambda noise: nlb.report(problem()[0], noise, M),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(use):
    with pytest.raises(ValueError, match=r"'squares'.*'split'.*Received: statistic=\"nobody's\""):
        use(Unknown())


def test_a_name_that_is_registered_anew_replaces_the_old_one():
    statistics = nlb.gradients.statistics.Statistics()

    class First(nlb.gradients.Statistic):
        pass

    class Second(nlb.gradients.Statistic):
        pass

    statistics.register("own", First)
    assert statistics.get("own") is First
    statistics.register("own", Second)
    assert statistics.get("own") is Second
    with pytest.raises(ValueError, match="'own'"):
        statistics.get("squares")
