"""NoisyModel and NoisyOptimizer: the contracts of training with noise."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import flat
from small_nets import BRANCHED_LOSS, CROSSENTROPY, branched_data, branched_net

import keras_noisylb as nlb

M_L, M_S = 24, 4


def network(norm=True, dropout=0.2):
    norms = [nlb.GhostBatchNormalization(6)] if norm else []
    return keras.Sequential([
        keras.Input((6, 6, 2)),
        keras.layers.Conv2D(3, 3, use_bias=False),
        *norms,
        keras.layers.ReLU(),
        keras.layers.Dropout(dropout),
        keras.layers.Flatten(),
        keras.layers.Dense(3, kernel_regularizer="l2"),
    ])


def images(count=60):
    rng = np.random.default_rng(1)
    return rng.standard_normal((count, 6, 6, 2)).astype("float32"), rng.integers(0, 3, count)


def compile_noisy(model, optimizer=None, noise=None, options=None, **compile_options):
    noise = noise or nlb.DiagonalFisher(M_S)
    optimizer = nlb.NoisyOptimizer(
        optimizer or keras.optimizers.SGD(0.05, momentum=0.9), noise, seed=7, **(options or {})
    )
    model.compile(optimizer, **{"loss": CROSSENTROPY, "metrics": ["accuracy"], **compile_options})
    return model


def fit(model, epochs=2, count=60, **options):
    x, y = images(count)
    keras.utils.set_random_seed(3)
    options = {"batch_size": M_L, "verbose": 0, **options}
    return model.fit(x, y, epochs=epochs, **options).history


def off(engine="auto", **compile_options):
    """A model with its noise off."""
    keras.utils.set_random_seed(0)
    noise = nlb.DiagonalFisher(M_S, engine=engine)
    model = nlb.NoisyModel(network())
    return compile_noisy(model, noise=noise, options={"noise_steps": 0}, **compile_options)


def plainly_trained(count=60, **compile_options):
    """Histories and weights of Keras' own training: after two epochs, and after one more."""
    keras.utils.set_random_seed(0)
    model = network()
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        loss=CROSSENTROPY,
        metrics=["accuracy"],
        **compile_options,
    )
    return [(fit(model, epochs, count), model.get_weights()) for epochs in (2, 1)]


@pytest.fixture(scope="module")
def plain():
    return plainly_trained(jit_compile=False)


def assert_trains_plainly_until_it_is_on(model, plain, count=60):
    (history, weights), (_, later) = plain
    for key, values in fit(model, count=count).items():
        np.testing.assert_allclose(values, history[key], rtol=1e-5)
    for a, b in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    model.optimizer.noise_steps = None
    fit(model, 1, count)
    assert np.abs(later[0] - model.get_weights()[0]).max() > 1e-4


MODES = {
    "graph": {"jit_compile": False},
    "eager": {"run_eagerly": True},
    "several steps": {"steps_per_execution": 2},
}


@pytest.mark.parametrize(
    ("engine", "mode"),
    [
        *(("layerwise", mode) for mode in MODES),
        ("vectorized_map", "graph"),
        pytest.param("vectorized_map", "eager", marks=pytest.mark.slow),
        pytest.param("vectorized_map", "several steps", marks=pytest.mark.slow),
    ],
)
def test_off_is_off(engine, mode, plain):
    assert_trains_plainly_until_it_is_on(off(engine, **MODES[mode]), plain)


def test_off_is_off_compiled_by_xla():
    """XLA draws other masks of dropout. One size of batch: each takes seconds to compile."""
    plain = plainly_trained(48, jit_compile=True)
    assert_trains_plainly_until_it_is_on(off(jit_compile=True), plain, 48)


class OneBatch(keras.utils.PyDataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return images(M_L)


@pytest.mark.parametrize(
    "data",
    [
        {"x": OneBatch()},
        {"x": tf.data.Dataset.from_tensor_slices(images(M_L)).batch(M_L)},
        dict(zip("xy", images(M_L), strict=True)),
    ],
)
def test_the_first_step_is_traced_once(data):
    """Which holds only where metrics and optimizer are built before it."""
    traced = []

    class Traced(nlb.NoisyModel):
        def train_step(self, data):
            traced.append(data)
            return super().train_step(data)

    compile_noisy(Traced(network(norm=False))).fit(**data, verbose=0)
    assert len(traced) == 1


def test_a_dataset_that_can_be_read_once_is_trained_on_whole():
    """The state is built without reading it, and without knowing the width of its images."""
    x, y = images(2 * M_L)
    read = iter(zip(np.split(x, 2), np.split(y, 2), strict=True))
    specs = tf.TensorSpec(None, "float32"), tf.TensorSpec(None, "int64")
    once = tf.data.Dataset.from_generator(lambda: read, output_signature=specs)

    def known(x, y):
        return tf.ensure_shape(x, (None, 6, None, 2)), tf.ensure_shape(y, (None,))

    def trained(data):
        keras.utils.set_random_seed(0)
        model = compile_noisy(nlb.NoisyModel(network(norm=False, dropout=0)))
        logs = model.fit(data, verbose=0, shuffle=False).history
        return [*logs.values()], model.get_weights()

    again = tf.data.Dataset.from_tensor_slices((x, y)).batch(M_L)
    for a, b in zip(*(trained(data) for data in (once.map(known), again)), strict=True):
        for value, expected in zip(a, b, strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)


def applied_noise(draws, accumulated=None, multiplier=1.0, engine="auto"):
    """Noise that training adds to the gradient of one fixed batch, many times over."""
    x, y = images(M_L)
    model = nlb.NoisyModel(network(norm=False, dropout=0.0))
    sgd = keras.optimizers.SGD(1.0, gradient_accumulation_steps=accumulated)
    noise = nlb.DiagonalFisher(M_S, multiplier=multiplier, engine=engine)
    compile_noisy(model, sgd, noise)
    start = model.get_weights()
    fisher = nlb.gradients.diagonal_fisher(model, CROSSENTROPY, x, y)
    with tf.GradientTape() as tape:
        value = CROSSENTROPY(y, model(x, training=True)) + tf.add_n(model.losses)
    gradient = tape.gradient(value, model.trainable_variables)
    samples = []
    for _ in range(draws):
        model.set_weights(start)
        for _ in range(accumulated or 1):
            model.train_on_batch(x, y)
        moved = zip(start, model.get_weights(), gradient, strict=True)
        samples.append(np.concatenate([np.ravel(a - b - g) for a, b, g in moved]))
    return np.stack(samples), np.concatenate([np.ravel(f) for f in fisher])


def z_scores(samples, variance):
    """Of the mean and of the sum of squares over coordinates, under N(0, variance)."""
    draws = len(samples)
    used = variance > 1e-8
    standard = samples[:, used] / np.sqrt(variance[used])
    number = draws * used.sum()
    mean = standard.sum() / np.sqrt(number)
    return mean, (np.square(standard).sum() - number) / np.sqrt(2 * number)


@pytest.mark.parametrize("accumulated", [None, 2])
@pytest.mark.parametrize("engine", ["layerwise", "vectorized_map"])
def test_the_applied_noise_has_the_papers_covariance(accumulated, engine):
    samples, fisher = applied_noise(60, accumulated, multiplier=0.5, engine=engine)
    large = M_L * (accumulated or 1)
    variance = 0.25 * fisher * (large - M_S) / (large * M_S)
    mean, spread = z_scores(samples, variance)
    assert abs(mean) < 5
    assert abs(spread) < 5
    assert abs(z_scores(samples, 1.2 * variance)[1]) > 5  # a wrong covariance is noticed
    correlation = np.corrcoef(samples[:30].ravel(), samples[30:].ravel())[0, 1]
    assert abs(correlation) < 5 / np.sqrt(samples.size / 2)  # draws are independent


def test_the_seed_decides_the_noise():
    def weights(seed):
        keras.utils.set_random_seed(0)
        model = compile_noisy(nlb.NoisyModel(network()), run_eagerly=True)
        model.optimizer.seed = seed
        fit(model, epochs=1)
        return model.get_weights()[0]

    np.testing.assert_array_equal(weights(1), weights(1))
    assert np.abs(weights(1) - weights(2)).max() > 1e-4


def test_a_plain_model_raises_at_its_first_step():
    with pytest.raises(RuntimeError, match="NoisyModel"):
        fit(compile_noisy(network()), epochs=1)


def test_forms_of_data_and_weights():
    x, y = images(48)
    weight = np.linspace(0, 2, len(x)).astype("float32")
    dataset = tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(M_L)
    results = []
    for data, eager in (
        ({"x": x, "y": y, "sample_weight": weight, "batch_size": M_L, "shuffle": False}, False),
        ({"x": dataset}, False),
        ({"x": ((a, b, c) for a, b, c in dataset.as_numpy_iterator())}, True),
    ):
        keras.utils.set_random_seed(0)
        model = compile_noisy(nlb.NoisyModel(network()), run_eagerly=eager)
        model.fit(**data, verbose=0)
        results.append(model.get_weights()[0])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(results[0], results[2], rtol=1e-5, atol=1e-6)
    history = fit(model, class_weight={0: 1.0, 1: 2.0, 2: 0.5}, validation_split=0.2)
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(history)
    assert model.predict(x, verbose=0).shape == (48, 3)


def test_several_inputs_and_outputs(rng):
    """The noise has the diagonal Fisher of the weighted sum of the losses."""
    x, y = branched_data(rng, M_L)
    model, draws = nlb.NoisyModel(branched_net()), 20
    compile_noisy(
        model, keras.optimizers.SGD(1.0), loss=BRANCHED_LOSS,
        loss_weights={"p": 0.5, "q": 2.0}, metrics=None,
    )  # fmt: skip

    def gradient(rows=slice(None), extra=0.0):
        with tf.GradientTape() as tape:
            found = model({key: values[rows] for key, values in x.items()})
            mse = tf.reduce_mean((y["p"][rows] - found["p"]) ** 2)
            value = 0.5 * mse + 2.0 * CROSSENTROPY(y["q"][rows], found["q"])
            value += extra * tf.add_n(model.losses)
        return flat(tape.gradient(value, model.trainable_variables))

    every = np.array([gradient(slice(k, k + 1)) for k in range(M_L)])
    start, mean, samples = model.get_weights(), gradient(extra=1.0), []
    for _ in range(draws):
        model.set_weights(start)
        model.train_on_batch(x, y)
        samples.append(flat(start) - flat(model.get_weights()) - mean)
    variance = (every**2).mean(0) * (M_L - M_S) / (M_L * M_S)
    assert np.abs(z_scores(np.array(samples), variance)).max() < 5
    assert z_scores(np.array(samples), 1.4 * variance)[1] < -5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nlb.NoisyOptimizer("sgd", nlb.DiagonalFisher(8)), "'sgd'"),
        (lambda: nlb.NoisyOptimizer(keras.optimizers.SGD(), "fisher"), "'fisher'"),
        (lambda: nlb.NoisyModel("lenet"), "'lenet'"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_noise_scale_is_equation_5():
    assert float(nlb.noise_scale(4096, 128)) == pytest.approx(0.0870, abs=5e-5)
    assert float(nlb.noise_scale(128, 128)) == 0
    assert float(nlb.noise_scale(0, 128)) == 0


def test_callbacks_of_keras_see_an_ordinary_optimizer(tmp_path):
    x, y = images(48)
    model = compile_noisy(nlb.NoisyModel(network()), keras.optimizers.Adam(0.01))
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch: 0.02 / (epoch + 1)),
        keras.callbacks.ReduceLROnPlateau(monitor="loss"),
        keras.callbacks.EarlyStopping(monitor="loss", patience=5),
        keras.callbacks.BackupAndRestore(tmp_path / "backup"),
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="loss"),
    ]
    model.fit(x, y, M_L, 3, 0, callbacks)
    assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) == pytest.approx(
        0.02 / 3
    )
    assert len(keras.saving.load_model(tmp_path / "best.keras").optimizer.variables) == len(
        model.optimizer.variables
    )


class StochasticDepth(keras.layers.Layer):
    """Draws from Keras' global generator, as the one of ConvNeXt does."""

    def call(self, x, training=False):
        if not training:
            return x
        return x * keras.ops.cast(keras.random.uniform((keras.ops.shape(x)[0], 1)) < 0.5, x.dtype)


@pytest.mark.parametrize("estimator", ["per_example", "split"])
@pytest.mark.parametrize("noise_steps", [0, None])
def test_unseeded_random_numbers_are_as_in_keras(estimator, noise_steps):
    x, y = np.ones((8, 4), "float32"), np.zeros((8, 1), "float32")
    found = []
    for noisy in (False, True):
        keras.utils.set_random_seed(3)
        layers = [keras.layers.Dense(4), StochasticDepth(), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((4,)), *layers])
        optimizer = keras.optimizers.SGD(0.0)
        if noisy:
            model = nlb.NoisyModel(model)
            noise = nlb.DiagonalFisher(2, estimator=estimator, multiplier=0.5)
            optimizer = nlb.NoisyOptimizer(optimizer, noise, noise_steps=noise_steps, seed=0)
        model.compile(optimizer, "mse", jit_compile=False)
        found.append([float(model.train_on_batch(x, y)) for _ in range(6)])
    assert len(set(found[0])) > 3
    if estimator == "per_example" or noise_steps == 0:  # the halves of split draw in turn
        np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    assert len(set(found[1])) > 3


def test_a_model_that_assigns_what_it_trains_is_refused():
    spectral = keras.layers.SpectralNormalization(keras.layers.Dense(3))
    model = nlb.NoisyModel(keras.Sequential([keras.Input((4,)), spectral]))
    optimizer = nlb.NoisyOptimizer(
        keras.optimizers.SGD(0.1), nlb.DiagonalFisher(2, estimator="weighted")
    )
    model.compile(optimizer, "mse")
    with pytest.raises(ValueError, match="assigns its trainable variable"):
        model.train_on_batch(np.ones((8, 4)), np.ones((8, 3)))
