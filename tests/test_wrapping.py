"""What a NoisyModel accepts and rejects, and its warnings about a training without noise."""

import itertools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

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


class TwoBatches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X, Y


def dataset():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).repeat(2)


@pytest.mark.parametrize(
    "data",
    [dataset, lambda: ((X, Y) for _ in itertools.count()), TwoBatches],
    ids=["tf.data", "generator", "PyDataset"],
)
def test_a_model_is_built_from_its_first_batch(data):
    """It trains as the model that was built before, with the same weights and the same noise."""
    trained = []
    for inputs in ([], [keras.Input((3,))]):
        keras.utils.set_random_seed(0)
        model = nlb.NoisyModel(keras.Sequential([*inputs, L.Dense(2, kernel_initializer="ones")]))
        noise = nlb.DiagonalFisher(2, estimator="split")
        model.compile(nlb.NoisyOptimizer(keras.optimizers.SGD(0.1), noise, seed=1), "mse")
        model.fit(data(), steps_per_epoch=2, verbose=0)
        assert model.optimizer.iterations == 2
        trained.append(model.get_weights()[0])
    np.testing.assert_allclose(*trained, rtol=1e-6)
    assert np.abs(trained[0] - 1).max() > 0.01


def test_microbatches_build_a_model_of_a_class():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = nlb.NoisyModel(Own(), num_microbatches=2)
    model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    assert np.isfinite(model.train_on_batch(X, Y))


def test_frozen_weights_are_evaluated_as_in_keras():
    model = network()
    model.trainable = False
    model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    before = model.get_weights()
    loss = model.fit(X, Y, verbose=0).history["loss"]
    wrapped = nlb.NoisyModel(model)
    wrapped.compile(noisy(), "mse", run_eagerly=True)
    with pytest.warns(UserWarning, match="does not have any trainable weights"):
        found = wrapped.fit(X, Y, verbose=0).history["loss"]
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    for a, b in zip(before, wrapped.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("built", [True, False])
def test_an_exported_model_predicts_the_same(built, tmp_path):
    model = nlb.NoisyModel(network() if built else keras.Sequential([L.Dense(2)]))
    expected = model(X)
    model.export(tmp_path, verbose=False)
    exported = tf.saved_model.load(tmp_path)
    np.testing.assert_allclose(exported.serve(X), expected, rtol=1e-6)


def test_fit_needs_a_compiled_model():
    with pytest.raises(ValueError, match=r"expects a compiled model.*model\.compile"):
        nlb.NoisyModel(network()).fit(X, Y)


@pytest.mark.parametrize("seed", ["abc", 1.5, True, 2**31])
def test_a_seed_is_an_integer_of_32_bits(seed):
    noise = nlb.DiagonalFisher(2)
    with pytest.raises(ValueError, match=rf"must be an integer.*seed={seed!r}"):
        nlb.NoisyOptimizer(keras.optimizers.SGD(), noise, seed=seed)


@pytest.mark.parametrize("number", [0, -1, 1.5, "two", True])
def test_a_number_of_microbatches_is_a_positive_integer(number):
    with pytest.raises(ValueError, match=rf"must be a positive integer.*={number!r}"):
        nlb.NoisyModel(network(), number)
    with pytest.raises(ValueError, match=rf"must be a positive integer.*={number!r}"):
        noise = nlb.DiagonalFisher(2)
        nlb.noisy_gradients(network(), "mse", X, Y, noise, seed=0, num_microbatches=number)


def test_hdf5_is_refused_when_a_model_is_saved(tmp_path):
    model = nlb.NoisyModel(network())
    with pytest.raises(ValueError, match=r"ends with \.keras.*model\.h5"):
        model.save(tmp_path / "model.h5")
    assert not list(tmp_path.iterdir())
