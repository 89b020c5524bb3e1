"""Placement of the noise: gradient or parameters, on one device and on several."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracle import dense, flat, on_devices, one_by_one, total_gradient

import keras_noisylb as nlb

L = keras.layers
LOSS = keras.losses.MeanSquaredError()
M, M_S, BETA = 24, 4, 0.9
RATE = 1e-8  # so small that the batches of a test meet the same weights in float64
LARGE_RATE = 0.5


def network(**options):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((3,)), L.Dense(3, "tanh"), L.Dense(2, **options)])


def batch(rng, size=M):
    x, y = rng.standard_normal((size, 3)), rng.standard_normal((size, 2))
    return x.astype("float32"), y.astype("float32")


class Displacements(keras.callbacks.Callback):
    """Records how far each batch moves the weights; in float32 it puts them back."""

    def on_train_begin(self, logs=None):
        self.start, self.found = self.model.get_weights(), [self.replicas()]
        self.reset = keras.config.floatx() == "float32"

    def replicas(self):
        values = [v.value for v in self.model.trainable_variables]
        if not isinstance(values[0], tf.distribute.DistributedValues):
            return [flat(values)]
        return [flat(v.values[d] for v in values) for d in range(len(values[0].values))]

    def on_train_batch_end(self, step, logs=None):
        self.found.append(self.replicas())
        if self.reset:
            self.model.set_weights(self.start)

    def result(self):
        found = np.array(self.found)
        np.testing.assert_array_equal(found, found[:, :1].repeat(found.shape[1], 1))
        found = found[:, 0]
        return found[1:] - (found[:1] if self.reset else found[:-1])


def compiled(noise, placement, inner=None, wrap=lambda optimizer: optimizer, make=network):
    model = nlb.NoisyModel(make())
    inner = inner or keras.optimizers.SGD(RATE)
    optimizer = nlb.NoisyOptimizer(inner, noise, placement=placement, seed=5)
    model.compile(wrap(optimizer), LOSS, jit_compile=False)
    return model


def displacements(model, x, y, steps, batch_size=M):
    """How each of `steps` batches, the same ones over and over, moves the weights."""
    recorder = Displacements()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size, drop_remainder=True)
    repeats = steps * batch_size // len(x)
    model.fit(data.repeat(repeats), verbose=0, callbacks=[recorder])
    return recorder.result()


def gradient_and_fisher(x, y):
    model = network()
    return flat(total_gradient(model, LOSS, x, y)), [
        np.square(g) for g in one_by_one(model, LOSS, x, y)
    ]


def diagonal(squares):
    return np.concatenate([np.ravel(s.mean(0)) for s in squares])


def variance_of(large=M):
    return (large - M_S) / (large * M_S)


def deviations(samples, variance):
    """In standard errors: of the variances, their mean, the correlations, and those in time."""
    count = len(samples)
    standard = samples / np.sqrt(variance)
    squares = np.square(standard)
    mean = squares.mean(1)
    moments = standard.T @ standard / count
    errors = (squares.T @ squares / count - moments**2) / count
    pairs = (np.abs(moments) / np.sqrt(errors))[~np.eye(len(moments), dtype=bool)]
    return np.array([
        np.abs(standard.mean(0)).max() * np.sqrt(count) / np.sqrt(mean.mean()),
        abs(mean.mean() - 1) * np.sqrt(count) / mean.std(),
        pairs.max(),
        np.abs((standard[1:] * standard[:-1]).mean(0)).max() * np.sqrt(count) / mean.mean(),
    ])


def assert_noise(samples, variance):
    assert (deviations(samples, variance) < 5).all()
    assert deviations(samples, 1.2 * variance)[1] > 5


def test_noise_for_the_parameters_is_not_amplified(float64, rng):
    x, y = batch(rng)
    gradient, squares = gradient_and_fisher(x, y)
    variance = variance_of() * diagonal(squares)
    velocity = np.cumsum(BETA ** np.arange(400))[:, None] * gradient
    noises = {}
    for placement in ("update", "gradient"):
        inner = keras.optimizers.SGD(RATE, momentum=BETA)
        model = compiled(nlb.DiagonalFisher(M_S), placement, inner)
        noises[placement] = -displacements(model, x, y, 400) / RATE - velocity
    assert_noise(noises["update"], variance)
    # The same noise, summed up by the momentum.
    assert deviations(noises["gradient"], variance)[[1, 3]].min() > 5
    raw = noises["gradient"][1:] - BETA * noises["gradient"][:-1]
    np.testing.assert_allclose(raw, noises["update"][1:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("placement", ["update", "gradient"])
def test_accumulated_batches_make_one_large_batch(placement, float64, rng):
    x, y = batch(rng, 2 * M)
    gradient, squares = gradient_and_fisher(x, y)
    inner = keras.optimizers.SGD(RATE, momentum=BETA, gradient_accumulation_steps=2)
    model = compiled(nlb.DiagonalFisher(M_S), placement, inner)
    moved = displacements(model, x, y, 800)
    np.testing.assert_array_equal(moved[::2], 0)
    moved = -moved[1::2] / RATE
    if placement == "gradient":
        moved = np.concatenate([moved[:1], moved[1:] - BETA * moved[:-1]]) - gradient
        used = squares
    else:
        moved -= np.cumsum(BETA ** np.arange(400))[:, None] * gradient
        used = [s[M:] for s in squares]  # of the last batch
    assert_noise(moved, variance_of(2 * M) * diagonal(used))


class Alternating(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return tf.where(tf.cast(step, "int32") % 2 == 0, RATE, 10 * RATE)


def test_the_learning_rate_is_that_of_the_same_update(float64, rng):
    x, y = batch(rng)
    gradient, squares = gradient_and_fisher(x, y)
    model = compiled(nlb.DiagonalFisher(M_S), "update", keras.optimizers.SGD(Alternating()))
    moved = displacements(model, x, y, 400)
    rates = np.resize([[RATE], [10 * RATE]], (400, 1))
    assert_noise(-moved / rates - gradient, variance_of() * diagonal(squares))


@pytest.mark.parametrize(
    ("placement", "policy"),
    [("update", "float32"), ("update", "mixed_float16"), ("gradient", "mixed_float16")],
)
def test_scaled_losses_leave_the_noise_as_it_is(placement, policy, rng):
    x, y = batch(rng)
    gradient, squares = gradient_and_fisher(x, y)
    keras.config.set_dtype_policy(policy)
    try:
        model = compiled(
            nlb.DiagonalFisher(M_S), placement, keras.optimizers.SGD(LARGE_RATE),
            wrap=lambda o: keras.optimizers.LossScaleOptimizer(
                o, initial_scale=256.0, dynamic_growth_steps=100
            ),
        )  # fmt: skip
        moved = displacements(model, x, y, 350)
    finally:
        keras.config.set_dtype_policy("float32")
    assert float(model.optimizer.dynamic_scale) == 2048
    assert_noise(-moved / LARGE_RATE - gradient, variance_of() * diagonal(squares))


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("placement", ["update", "gradient"])
def test_an_overflow_leaves_the_weights_as_they_are(placement, devices, rng):
    x, y = batch(rng)
    with on_devices(devices).scope():
        inner = keras.optimizers.SGD(LARGE_RATE, momentum=BETA)
        model = compiled(
            nlb.DiagonalFisher(M_S), placement, inner, keras.optimizers.LossScaleOptimizer
        )
    before = flat(model.get_weights())
    model.fit(np.where(x > 1.5, np.inf, x), y, batch_size=M, verbose=0)
    np.testing.assert_array_equal(flat(model.get_weights()), before)
    model.fit(x, y, batch_size=M, verbose=0)
    step = (before - flat(model.get_weights())) / LARGE_RATE
    gradient, squares = gradient_and_fisher(x, y)
    standard = (step - gradient) / np.sqrt(variance_of() * diagonal(squares))
    assert 0.3 < np.sqrt(np.square(standard).mean()) < 2


@pytest.mark.parametrize("constraint", [None, "non_neg"])
def test_constraints_hold_after_the_noise(constraint, rng):
    model = compiled(
        nlb.Isotropic(2.0),
        "update",
        keras.optimizers.SGD(LARGE_RATE),
        make=lambda: network(kernel_constraint=constraint),
    )
    model.train_on_batch(*batch(rng))
    kernel = dense(model.trainable_variables)[2]
    assert (kernel >= 0).all() == (constraint is not None)
    assert (kernel != 0).any()


def halves(x, y, parts):
    """v of the split estimator on each of `parts` devices."""
    every = np.concatenate(
        [np.reshape(g, (len(x), -1)) for g in one_by_one(network(), LOSS, x, y)], axis=1
    )
    size = len(x) // parts
    return [
        np.sqrt(size) / 2 * (part[: size // 2].mean(0) - part[size // 2 :].mean(0))
        for part in np.split(every, parts)
    ]


@pytest.mark.parametrize(
    ("devices", "estimator", "placement"),
    [
        (2, "per_example", "gradient"),
        (4, "per_example", "update"),
        (2, "weighted", "update"),
        (2, "split", "gradient"),
    ],
)
def test_devices_together_make_the_noise_of_one(devices, estimator, placement, float64, rng):
    x, y = batch(rng)
    gradient, squares = gradient_and_fisher(x, y)
    with on_devices(devices).scope():
        model = compiled(nlb.DiagonalFisher(M_S, estimator=estimator), placement)
    moved = displacements(model, x, y, 400)
    variance = diagonal(squares)
    if estimator == "split":  # a batch that stays the same has always the same halves
        variance = np.mean(np.square(halves(x, y, devices)), axis=0)
    assert_noise(-moved / RATE - gradient, variance_of() * variance)


def test_split_noise_of_one_device_is_the_difference_of_the_halves(float64, rng):
    x, y = batch(rng)
    model = compiled(nlb.DiagonalFisher(M_S, estimator="split"), "update")
    moved = displacements(model, x, y, 40)
    gradient, _ = gradient_and_fisher(x, y)
    standard = (-moved / RATE - gradient) / np.abs(halves(x, y, 1)[0]) / np.sqrt(variance_of())
    np.testing.assert_allclose(np.abs(standard), 1, rtol=1e-2)
    assert abs(standard.mean()) < 5 / np.sqrt(standard.size)


def test_uneven_devices(rng):
    """The last batch of 9 has one example on one device and none on the other, and no noise."""
    x, y = batch(rng, 9)
    moved = []
    with on_devices(2).scope():
        inner = keras.optimizers.SGD(LARGE_RATE)
        noisy = compiled(nlb.DiagonalFisher(M_S, estimator="split"), "update", inner)
        plain = network()
        plain.compile(keras.optimizers.SGD(LARGE_RATE), LOSS)
    for model in (noisy, plain):
        recorder = Displacements()
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[recorder])
        moved.append(recorder.result() / LARGE_RATE)
    (first, last), (plain_first, plain_last) = moved
    np.testing.assert_allclose(last, plain_last, rtol=1e-4, atol=1e-6)
    noise = np.abs(first - plain_first)
    a, b = np.sqrt(variance_of(8) / 2) * np.array(halves(x[:8], y[:8], 2))
    differences = [np.abs(noise - np.abs(a + sign * b)) for sign in (-1, 1)]
    assert np.min(differences, axis=0).max() < 1e-5 < np.max(differences, axis=0).min()


def test_multiplicative_noise_is_shared_by_the_devices(float64, rng):
    x, y = batch(rng)
    gradient, _ = gradient_and_fisher(x, y)
    sigma, numbers = 0.5, {}
    for devices in (1, 2):
        with on_devices(devices).scope():
            model = compiled(nlb.Multiplicative(sigma), "gradient")
        moved = displacements(model, x, y, 60)
        numbers[devices] = (-moved / RATE / gradient - 1) / sigma
    np.testing.assert_allclose(numbers[1], numbers[2], rtol=1e-2, atol=1e-3)
    assert abs(np.square(numbers[2]).mean() - 1) < 5 * np.sqrt(2 / numbers[2].size)
    assert abs(numbers[2].mean()) < 5 / np.sqrt(numbers[2].size)


def test_multiplicative_noise_has_no_place_in_the_update():
    with pytest.raises(ValueError, match="placement='update'"):
        nlb.NoisyOptimizer(keras.optimizers.SGD(), nlb.Multiplicative(0.1), placement="update")
    nlb.NoisyOptimizer(
        keras.optimizers.SGD(), nlb.Multiplicative(0.1, form="example"), placement="update"
    )
