"""Layers with variables of their own kind: shared, adapted, in the activation or quantised."""

import foreign_oracle
import keras
import numpy as np
import oracle
import pytest
import sampling
from foreign_models import GHOST, Problem, squared_error
from keras import layers

import keras_noisylb as nlb
from keras_noisylb import gradients

M = 6


def build(rng, shape, stack, coupled=False):
    model = keras.Sequential([keras.Input(shape), *stack])
    oracle.perturb(model, rng)
    x, y = rng.standard_normal((M, *shape)), rng.standard_normal((M, *model.output_shape[1:]))
    return Problem(model, squared_error, x, y, coupled)


def parts(problem):
    return problem.model, problem.loss, problem.x, problem.y


def share(first, second, name):
    """Let `second` hold the variable of `first`, as Keras itself exchanges variables."""
    second._tracker.unlock()
    second._untrack_variable(getattr(second, name))
    setattr(second, name, getattr(first, name))
    second._tracker.lock()


def shared_dense(rng):
    """Two layers with one kernel and a bias each."""
    first, second = layers.Dense(4, activation="tanh"), layers.Dense(4)
    for layer in (first, second):
        layer.build((None, 4))
    share(first, second, "_kernel")
    return build(rng, (4,), [first, second])


def shared_bias(rng):
    first, second = layers.Conv1D(4, 3, activation="tanh"), layers.Dense(4)
    first.build((None, 5, 4))
    second.build((None, 3, 4))
    share(first, second, "bias")
    return build(rng, (5, 4), [first, second, layers.Flatten(), layers.Dense(3)])


def shared_conv(rng):
    first, second = layers.Conv1D(4, 3, padding="same"), layers.Conv1D(4, 3, strides=2)
    for layer in (first, second):
        layer.build((None, 5, 4))
    share(first, second, "_kernel")
    return build(rng, (5, 4), [first, layers.Activation("tanh"), second, layers.Flatten()])


def shared_gamma(rng):
    first, second = layers.LayerNormalization(), nlb.GhostBatchNormalization(GHOST)
    for layer in (first, second):
        layer.build((None, 4))
    share(first, second, "gamma")
    return build(rng, (4,), [first, layers.Dense(4, activation="tanh"), second], coupled=True)


SHARED = {  # with the number of layers that keep their Kronecker factors
    "kernel": (shared_dense, 0),
    "kernel of convolutions": (shared_conv, 0),
    "bias": (shared_bias, 1),
    "gamma": (shared_gamma, 1),
}


def assert_all_counted_once(report, model):
    numbers = sum(v.value.shape.num_elements() for v in model.trainable_variables)
    assert report.megabytes == pytest.approx(4 * numbers / 2**20)


@pytest.mark.parametrize("case", SHARED)
@pytest.mark.usefixtures("float64")
def test_gradients_of_layers_that_share_a_variable_are_added(case, rng):
    make, factored = SHARED[case]
    problem = make(rng)
    definition = foreign_oracle.contributions if problem.coupled else foreign_oracle.alone
    expected = [np.stack(column) for column in zip(*definition(problem), strict=True)]
    fisher = [np.mean(g**2, axis=0) for g in expected]
    oracle.assert_close(gradients.per_example_gradients(*parts(problem)), expected)
    oracle.assert_close(gradients.diagonal_fisher(*parts(problem)), fisher)

    found = nlb.diagnostics.fisher_norms(*parts(problem), verbose=0)
    grams = [g.reshape(M, -1) @ g.reshape(M, -1).T for g in expected]
    np.testing.assert_allclose(found.block_full, [np.linalg.norm(g) / M for g in grams])
    np.testing.assert_allclose(found.block_diagonal, [np.linalg.norm(f) for f in fisher])

    noise = nlb.KroneckerFactored(2)
    ((squares, roots),) = sampling.statistics(noise, *parts(problem))
    assert len(roots) == factored
    diagonal = [k for k, s in enumerate(squares) if s is not None]
    oracle.assert_close([squares[k] for k in diagonal], [fisher[k] for k in diagonal])
    whole, _ = nlb.noisy_gradients(*parts(problem), nlb.DiagonalFisher(2), 0)
    oracle.assert_close(whole, [g.mean(axis=0) for g in expected])
    assert_all_counted_once(nlb.report(problem.model, nlb.DiagonalFisher(2), M), problem.model)


def with_lora(rng, shape, layer, *more, words=False):
    """A model in which one layer's kernel is frozen and adapted by two small trained matrices."""
    model = keras.Sequential([
        keras.Input(shape, dtype="int32" if words else None),
        layer,
        layers.Flatten(),
        *more,
        layers.Dense(2),
    ])
    layer.enable_lora(2)
    oracle.perturb(model, rng)
    x = rng.integers(0, 5, (M, *shape)) if words else rng.standard_normal((M, *shape))
    return Problem(model, squared_error, x, rng.standard_normal((M, 2)))


def with_trained_activation(rng):
    stack = [layers.Dense(4, activation=layers.PReLU(shared_axes=[1])), layers.Flatten()]
    return build(rng, (5, 3), [*stack, layers.Dense(2)])


def lora_dense(rng):
    return with_lora(rng, (5,), layers.Dense(4, activation="tanh"))


BEYOND_THE_RULE = {
    "lora_kernel_a of the Dense": lora_dense,
    "lora_kernel_b of the Conv2D": lambda rng: with_lora(rng, (4, 4, 3), layers.Conv2D(3, 2)),
    "lora_kernel_a of the EinsumDense": lambda rng: with_lora(
        rng, (4, 3), layers.EinsumDense("abc,cde->abde", (4, 2, 3), bias_axes="de")
    ),
    "lora_embeddings_b of the Embedding": lambda rng: with_lora(
        rng, (4,), layers.Embedding(5, 3), words=True
    ),
    "alpha of the PReLU": with_trained_activation,
}


@pytest.mark.parametrize("variable", BEYOND_THE_RULE)
@pytest.mark.usefixtures("float64")
def test_variables_that_a_layer_s_rule_does_not_cover_are_seen(variable, rng):
    problem = BEYOND_THE_RULE[variable](rng)
    told = f"{variable} layer '.*' has no layer rule"
    for refused in (
        lambda: gradients.diagonal_fisher(*parts(problem), engine="layerwise"),
        lambda: nlb.noisy_gradients(*parts(problem), nlb.KroneckerFactored(2), 0),
        lambda: nlb.report(problem.model, nlb.KroneckerFactored(2), M),
    ):
        with pytest.raises(ValueError, match=told):
            refused()
    report = nlb.report(problem.model, nlb.DiagonalFisher(2), M)
    assert {row.method for row in report.rows} == {"vectorized_map"}
    assert_all_counted_once(report, problem.model)
    assert variable in report.notes[0]
    expected = oracle.one_by_one(problem.model, problem.loss, problem.x, problem.y)
    with pytest.warns(UserWarning, match=told):
        actual = gradients.per_example_gradients(*parts(problem))
    # Keras holds what LoRA trains in float32.
    oracle.assert_close(actual, expected, rtol=1e-9 if "PReLU" in variable else 1e-6)


@pytest.mark.parametrize("estimator", ["per_example", "weighted", "split"])
@pytest.mark.filterwarnings("ignore:per-example gradients come from the slow")
def test_adapted_layers_are_trained_with_noise(estimator, rng):
    problem = lora_dense(rng)
    start = [keras.ops.convert_to_numpy(v) for v in problem.model.trainable_variables]
    model = nlb.NoisyModel(problem.model)
    noise = nlb.DiagonalFisher(2, estimator=estimator)
    model.compile(nlb.NoisyOptimizer(keras.optimizers.SGD(1.0), noise, seed=0), problem.loss)
    whole = oracle.batch_gradient(*parts(problem))
    model.fit(problem.x, problem.y, batch_size=M, verbose=0)
    for v, before, gradient in zip(model.trainable_variables, start, whole, strict=True):
        added = before - gradient - keras.ops.convert_to_numpy(v)
        assert np.all(np.abs(added) > 1e-6)


@pytest.mark.parametrize("lora", [False, True])
def test_quantised_layers_are_left_to_the_other_engine(lora, rng):
    stack = [layers.Dense(4, activation="tanh"), layers.Dense(2)]
    problem = lora_dense(rng) if lora else build(rng, (5,), stack)
    for layer in problem.model.layers:
        if isinstance(layer, layers.Dense):
            layer.quantize("int8")
    with pytest.warns(UserWarning, match="of the quantised Dense layer '.*' has no layer rule"):
        actual = gradients.per_example_gradients(*parts(problem))
    expected = oracle.one_by_one(*parts(problem))
    oracle.assert_close(actual, expected, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:per-example gradients come from the slow")
def test_values_that_are_no_gradients_are_refused(rng):
    """Keras' float8 layers return the next scales where others return gradients."""
    problem = build(rng, (4,), [layers.Dense(4), layers.Dense(2)])
    problem.model.layers[0].quantize("float8")
    noise = nlb.DiagonalFisher(2, estimator="split")
    for refused in (
        lambda: gradients.diagonal_fisher(*parts(problem)),
        lambda: nlb.noisy_gradients(*parts(problem), noise, 0),
        lambda: nlb.report(problem.model, noise, M),
    ):
        with pytest.raises(ValueError, match=r"overwrites .*inputs_scale'.*float8"):
            refused()
