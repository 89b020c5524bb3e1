"""K-FAC noise against factors made by hand, and against the dense true Fisher, in float64."""

import keras
import numpy as np
import oracle
import pytest
import sampling
import tensorflow as tf
from keras import layers
from scipy.linalg import block_diag

import keras_noisylb as nlb

pytestmark = pytest.mark.usefixtures("float64")
MSE = keras.losses.mean_squared_error
M, M_S = 8, 3
VARIANCE = (M - M_S) / (M * M_S)
IMAGE, SEQUENCE = (5, 6, 2), (5, 3)


def chain(shape, *middle):
    """A chain of layers, some of them possibly called twice, and the last layer."""
    ends = [] if len(shape) == 1 else [layers.Flatten(), layers.Dense(2)]
    x = inputs = keras.Input(shape)
    for layer in (*middle, *ends):
        x = layer(x)
    return keras.Model(inputs, x), [*middle, *ends]


def kernel_inputs(layer, x):
    """The inputs a of the kernel, (M, T, rows): the output is linear in the kernel, W ↦ aᵀ W."""
    with tf.GradientTape() as tape:
        z = tf.reshape(layer(x)[..., 0], (len(x), -1))
    a = np.asarray(tape.jacobian(z, layer.kernel))[..., 0]
    a = np.reshape(a, (*z.shape, -1))
    return a if layer.bias is None else np.concatenate([a, np.ones_like(a[..., :1])], axis=-1)


def factors(steps, loss, x, y, max_examples=None):
    """A and G for every layer that is called in `steps`, {layer: (A, G)}."""
    found = {}
    with tf.GradientTape() as tape:
        outputs = [tf.convert_to_tensor(x)]
        for layer in steps:
            outputs.append(layer(outputs[-1]))
        value = tf.reduce_mean(loss(y, outputs[-1]))
    gradients = tape.gradient(value, outputs)
    for layer, a, d in zip(steps, outputs[:-1], gradients[1:], strict=True):
        if hasattr(layer, "kernel"):
            d = np.reshape(d * len(x), (len(x), -1, d.shape[-1]))[:max_examples]
            a = kernel_inputs(layer, a)[:max_examples]
            found.setdefault(layer, []).append((a, d))
    result = {}
    for layer, used in found.items():
        a, d = (np.concatenate(parts, axis=1) for parts in zip(*used, strict=True))
        examples, positions = d.shape[:2]
        result[layer] = (
            np.einsum("mtr,mts->rs", a, a) / examples,
            np.einsum("mto,mtp->op", d, d) / examples / positions,
        )
    return result


def damped(matrix, damping):
    return matrix + damping * np.trace(matrix) / len(matrix) * np.eye(len(matrix))


CASES = {
    "dense": lambda: chain((3,), layers.Dense(4), layers.Activation("tanh"), layers.Dense(2)),
    "no bias": lambda: chain((3,), layers.Dense(4, use_bias=False), layers.Dense(2)),
    "dense on a sequence": lambda: chain(SEQUENCE, layers.Dense(4), layers.Activation("tanh")),
    "dense on an image": lambda: chain(IMAGE, layers.Dense(3)),
    "conv valid": lambda: chain(IMAGE, layers.Conv2D(3, (2, 3)), layers.Activation("tanh")),
    "conv same": lambda: chain(IMAGE, layers.Conv2D(3, (2, 3), padding="same", use_bias=False)),
    "conv strides": lambda: chain(IMAGE, layers.Conv2D(3, 2, strides=(2, 3))),
    "conv same strides": lambda: chain(IMAGE, layers.Conv2D(3, 3, 2, padding="same")),
    "conv dilation": lambda: chain(IMAGE, layers.Conv2D(3, 2, dilation_rate=(2, 3))),
    "conv1d": lambda: chain(SEQUENCE, layers.Conv1D(3, 2, 2, padding="same")),
    "conv1d causal": lambda: chain(
        SEQUENCE, layers.Conv1D(3, 2, padding="causal", dilation_rate=2)
    ),
    "shared": lambda: chain(
        SEQUENCE, *[shared := layers.Dense(3), layers.Activation("tanh"), shared]
    ),
    "frozen": lambda: chain((3,), layers.Dense(4, trainable=False), layers.Dense(2)),
}


@pytest.mark.parametrize("max_examples", [None, 5])
@pytest.mark.parametrize("case", CASES)
def test_factors(case, max_examples, rng):
    model, steps = CASES[case]()
    oracle.perturb(model, rng)
    x, y = rng.standard_normal((M, *model.inputs[0].shape[1:])), rng.standard_normal((M, 2))
    by_layer = factors(steps, MSE, x, y, max_examples)
    noise = nlb.KroneckerFactored(M_S, damping=0.03, max_examples=max_examples)
    ((squares, roots),) = sampling.statistics(noise, model, MSE, x, y)
    assert squares == [None] * len(squares)
    expected = [pair for layer, pair in by_layer.items() if layer.trainable]
    for pair, matrices in zip(roots, expected, strict=True):
        for root, matrix in zip(pair, matrices, strict=True):
            np.testing.assert_array_equal(np.triu(root, 1), 0)
            oracle.assert_close([root @ np.transpose(root)], [damped(matrix, 0.03)])


@pytest.mark.parametrize(
    ("layer", "max_examples"),
    [
        (layers.LayerNormalization, None),
        (layers.LayerNormalization, 5),
        (lambda: layers.DepthwiseConv2D(2), None),
        (lambda: layers.Conv2D(4, 2, groups=2), None),
    ],
)
def test_other_layers_have_the_diagonal(layer, max_examples, rng):
    model, _ = chain(IMAGE, layers.Conv2D(2, 2, use_bias=False), layer())
    oracle.perturb(model, rng)
    x, y = rng.standard_normal((M, *IMAGE)), rng.standard_normal((M, 2))
    noise = nlb.KroneckerFactored(M_S, max_examples=max_examples)
    ((squares, roots),) = sampling.statistics(noise, model, MSE, x, y)
    expected = oracle.one_by_one(model, MSE, x, y)
    assert len(roots) == 2 and [s is None for s in squares] == [True, False, False, True, True]
    fisher = [np.mean(g[:max_examples] ** 2, axis=0) for g in expected]
    oracle.assert_close(squares[1:3], fisher[1:3])


def test_factors_are_taken_before_the_activation(rng):
    apart, _ = chain(IMAGE, layers.Conv2D(3, 2), layers.ReLU(), layers.Dense(3), layers.ReLU())
    within, _ = chain(
        IMAGE, layers.Conv2D(3, 2, activation="relu"), layers.Dense(3, activation="relu")
    )
    oracle.perturb(apart, rng)
    within.set_weights(apart.get_weights())
    data = MSE, rng.standard_normal((M, *IMAGE)), rng.standard_normal((M, 2))
    noise = nlb.KroneckerFactored(M_S)
    expected, actual = (nlb.noisy_gradients(m, *data, noise, 0)[1] for m in (apart, within))
    oracle.assert_close(actual, expected)


def test_covariance_of_the_sample(rng):
    model, steps = chain(
        (4, 4, 1),
        layers.Conv2D(2, 2, strides=2),
        layers.LayerNormalization(),
        layers.Activation("tanh"),
    )
    oracle.perturb(model, rng)
    x, y = rng.standard_normal((M, 4, 4, 1)), rng.standard_normal((M, 2))
    pairs = list(factors(steps, MSE, x, y).values())
    gain, shift = (np.mean(g**2, axis=0) for g in oracle.one_by_one(model, MSE, x, y)[2:4])

    def covariance(damping):
        first, last = (np.kron(damped(a, damping), damped(g, damping)) for a, g in pairs)
        return VARIANCE * block_diag(first, np.diag(gain), np.diag(shift), last)

    right = covariance(0.1)
    fisher = VARIANCE * sampling.second_moment(oracle.one_by_one(model, MSE, x, y))
    samples = sampling.draw(nlb.KroneckerFactored(M_S, damping=0.1), model, MSE, x, y)
    sampling.assert_only(samples, right, covariance(0.0), np.diag(np.diag(right)), fisher)


@pytest.mark.parametrize(("hidden", "outputs"), [((), 3), ((4,), 2)])
def test_true_fisher_of_linear_networks(hidden, outputs, rng):
    """E d dᵀ does not depend on x there, so F = A ⊗ G within each layer."""
    model, steps = chain((3,), *map(layers.Dense, hidden), layers.Dense(outputs))
    oracle.perturb(model, rng)
    x, y = rng.standard_normal((M, 3)), rng.standard_normal((M, outputs))
    with tf.GradientTape() as tape:
        predicted = model(x)
    jacobian = tape.jacobian(predicted, model.trainable_variables)
    j = np.concatenate([np.reshape(part, (M, outputs, -1)) for part in jacobian], axis=2)
    # Labels from N(f, D/2): E d dᵀ = (2/D)² (D/2) I at the outputs.
    dense = VARIANCE * 2 / outputs * np.einsum("mop,moq->pq", j, j) / M
    sizes = [layer.count_params() for layer in steps]
    blocks = block_diag(*[np.ones((size, size)) for size in sizes]) * dense
    empirical = VARIANCE * block_diag(*[
        np.kron(a, g) for a, g in factors(steps, MSE, x, y).values()
    ])
    noise = nlb.KroneckerFactored(M_S, fisher="true", damping=1e-8)
    samples = sampling.draw(noise, model, MSE, x, y)
    wrong = [empirical, np.diag(np.diag(dense))] + ([dense] if hidden else [])
    sampling.assert_only(samples, blocks, *wrong)
    gradients, _ = nlb.noisy_gradients(model, MSE, x, y, noise, 0)
    oracle.assert_close(gradients, oracle.batch_gradient(model, MSE, x, y))


def test_layers_without_gradient_have_no_noise(rng):
    model, _ = chain((3,), layers.Dense(4), layers.ReLU(), layers.Dense(2))
    model.set_weights([np.zeros((3, 4)), -np.ones(4), np.ones((4, 2)), np.zeros(2)])
    problem = (model, MSE, rng.standard_normal((M, 3)), rng.standard_normal((M, 2)))
    _, noise = nlb.noisy_gradients(*problem, nlb.KroneckerFactored(M_S), 0)
    assert np.all(np.abs(noise[0]) < 1e-12) and np.all(np.abs(noise[1]) < 1e-12)
    assert np.all(np.abs(noise[3]) > 1e-3)

    inputs = keras.Input((3,))
    aside = keras.Model(inputs, [layers.Dense(2)(inputs), layers.Dense(5)(inputs)])
    loss = lambda y, y_pred: MSE(y, y_pred[0])  # noqa: E731
    _, noise = nlb.noisy_gradients(aside, loss, *problem[2:], nlb.KroneckerFactored(M_S), 0)
    assert [n is None for n in noise] == [False, False, True, True]
    assert np.all(np.abs(noise[0]) > 1e-3)


def test_a_gradient_that_is_not_finite_is_not_hidden(rng):
    model, _ = chain((3,), layers.Dense(2))
    x, y = rng.standard_normal((M, 3)), rng.standard_normal((M, 2))
    x[0, 0] = np.inf
    _, noise = nlb.noisy_gradients(model, MSE, x, y, nlb.KroneckerFactored(M_S), 0)
    assert np.all(np.isnan(noise[0]))


def test_a_layer_without_a_rule_is_refused(rng):
    model, _ = chain(SEQUENCE, layers.LSTM(2, return_sequences=True))
    x, y = rng.standard_normal((M, *SEQUENCE)), rng.standard_normal((M, 2))
    with pytest.raises(ValueError, match="kernel of the LSTMCell layer"):
        nlb.noisy_gradients(model, MSE, x, y, nlb.KroneckerFactored(M_S), 0)
