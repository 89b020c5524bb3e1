"""What a NoisyModel accepts and rejects, and its warnings about a training without noise."""

import warnings

import keras
import numpy as np
import pytest

import keras_noisylb as nlb

L = keras.layers
X, Y = np.ones((8, 3), "float32"), np.zeros((8, 2), "float32")
STEPS = ["train_step", "test_step", "compute_loss", "compute_metrics", "get_metrics_result"]


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((3,)), L.Dense(2)])


def noisy():
    return nlb.NoisyOptimizer(keras.optimizers.SGD(0.1), nlb.DiagonalFisher(2, estimator="split"))


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("of", ["class", "instance"])
def test_a_model_with_a_training_of_its_own_is_refused(name, of):
    def own(self, *args, **kwargs):
        raise AssertionError

    if of == "class":
        model = type("Contrary", (keras.Sequential,), {name: own})([keras.Input((3,)), L.Dense(2)])
    else:
        model = network()
        setattr(model, name, own)
    with pytest.raises(ValueError, match=f"which overrides {name}[.].*noisy_gradients"):
        nlb.NoisyModel(model)


def test_a_noisy_model_is_not_wrapped_again():
    with pytest.raises(ValueError, match="already a NoisyModel"):
        nlb.NoisyModel(nlb.NoisyModel(network()))


def test_what_a_subclass_of_noisy_model_overrides_is_run():
    class Weighted:
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return 3 * super().compute_loss(x, y, y_pred, sample_weight, training)

        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            return {**super().compute_metrics(x, y, y_pred, sample_weight), "mine": 7.0}

    class Plain(Weighted, keras.Sequential):
        pass

    class Noisy(Weighted, nlb.NoisyModel):
        pass

    keras.utils.set_random_seed(0)
    plain, wrapped = Plain([keras.Input((3,)), L.Dense(2)]), Noisy(network())
    optimizer = noisy()
    optimizer.noise_steps = 0
    plain.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    wrapped.compile(optimizer, "mse", run_eagerly=True)
    logs = [m.fit(X, Y, epochs=2, verbose=0).history for m in (plain, wrapped)]
    assert set(logs[0]) == set(logs[1]) == {"loss", "mine"}
    np.testing.assert_allclose(logs[0]["loss"], logs[1]["loss"], rtol=1e-5)
    np.testing.assert_allclose(plain.get_weights()[0], wrapped.get_weights()[0], rtol=1e-5)


def warned(optimizer, num_microbatches=None, callbacks=()):
    """Warnings of an evaluation, and of two calls of `fit` afterwards."""
    model = nlb.NoisyModel(network(), num_microbatches)
    model.compile(optimizer, "mse", run_eagerly=True)
    counts = []
    for train in (False, True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if train:
                model.fit(X, Y, verbose=0, callbacks=list(callbacks))
                model.compile(optimizer, "mse", run_eagerly=True)
                model.fit(X, Y, verbose=0, callbacks=list(callbacks))
            else:
                model.evaluate(X, Y, verbose=0)
        counts.append(sum("NoisyOptimizer(optimizer, noise)" in str(w.message) for w in caught))
    return counts


def test_a_training_without_noise_is_said_once():
    assert warned(keras.optimizers.SGD(0.1)) == [0, 1]
    assert warned(noisy()) == [0, 0]
    assert warned(keras.optimizers.SGD(0.1), num_microbatches=2) == [0, 0]
    assert warned(keras.optimizers.SGD(0.1), callbacks=[nlb.GradientNoiseMonitor()]) == [0, 0]
