"""A user's program that mypy checks (`.ci/types`): every public symbol, and the types it gives.

Keras and TensorFlow have no types, so a tensor is `Any` here.
"""

from collections.abc import Callable
from typing import Any, assert_type

import keras
import numpy as np

import keras_noisylb as nlb
from keras_noisylb import callbacks, data, diagnostics, gradients, models, noise, quadratic, tuning
from keras_noisylb.advising.advice import Advice
from keras_noisylb.data import DatasetInfo
from keras_noisylb.gradients import LayerRule, Statistic
from keras_noisylb.gradients.batch import Batch
from keras_noisylb.gradients.loss import Objective, Recorded
from keras_noisylb.quadratic import ConvergenceBound, Quadratic
from keras_noisylb.reporting.table import Report, Row

Arrays = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def load() -> Arrays:
    assert_type(data.names(), list[str])
    info = assert_type(data.info("cifar10"), DatasetInfo)
    assert_type(info.image_shape, tuple[int, int, int])
    assert_type(info.num_classes, int)
    (x, y), test = assert_type(data.load("fashion_mnist_small"), Arrays)
    data.load(data_dir="copies")
    data.check_arrays(x, y)
    assert_type(data.split(x, y, fraction=0.2, seed=1), Arrays)
    assert_type(data.random_crop_flip(x, seed=(0, 1), padding=2), Any)
    assert_type(data.batches(x, y, batch_size=64, augment=True), Any)
    return (x, y), test


def build() -> list[Any]:
    assert_type(models.names(), list[str])
    builder = assert_type(models.get("resnet20x2"), Callable[..., Any])
    lenet = models.LeNet(num_classes=10, ghost_batch_size=64, normalization="batch")
    assert_type(nlb.replace_batch_norm(lenet, ghost_batch_size=64), Any)
    layer = assert_type(nlb.GhostBatchNormalization(64, epsilon=1e-5), nlb.GhostBatchNormalization)
    mean, variance = assert_type(layer.ghost_statistics(np.ones((8, 3))), tuple[Any, Any])
    assert_type(layer.scale_and_shift(layer.normalize(np.ones((8, 3)), mean, variance)), Any)
    return [
        builder(num_classes=3),
        models.AlexNet(dropout=0.3),
        models.MLP(input_shape=(12,), hidden_units=[32, 32], normalization=None),
        models.ResNet(depth=20, width=2),
        models.ResNet44(l2=1e-4),
        models.ResNet44x2(num_classes=100),
        models.VGG(stages=[(16, 1), (32, 2)]),
        models.VGG16(dense_units=(64,)),
    ]


def noises() -> list[noise.Noise]:
    assert_type(nlb.noise_scale(4096, small_batch_size=128), Any)
    assert noise.noise_scale is nlb.noise_scale
    diagonal = nlb.DiagonalFisher(
        small_batch_size=128,
        estimator="per_example",
        fisher="true",
        engine="layerwise",
        max_examples=512,
        conv="uncorrelated",
        multiplier=0.3,
        sampler=lambda y, y_pred, draws: y,
    )
    assert_type(diagonal.small_batch_size, int | None)
    assert_type(diagonal.statistic, str)
    assert_type(diagonal.get_config(), dict[str, Any])
    assert_type(noise.DiagonalFisher.from_config(diagonal.get_config()), nlb.DiagonalFisher)
    return [
        diagonal,
        noise.FullFisher(128, estimator="split"),
        noise.FisherTrace(128, estimator="weighted"),
        noise.KroneckerFactored(128, damping=0.1, update_every=10),
        noise.Isotropic(sigma=0.01),
        noise.Multiplicative(sigma=0.5, form="example"),
        nlb.FullFisher(128),
        nlb.FisherTrace(128),
        nlb.KroneckerFactored(128),
        nlb.Isotropic(0.01),
        nlb.Multiplicative(0.5),
    ]


def train(x: np.ndarray, y: np.ndarray) -> None:
    assert_type(nlb.linear_scaling(0.1, batch_size=4096, base_batch_size=128), float)
    assert_type(nlb.sqrt_scaling(0.1, batch_size=4096, base_batch_size=128), float)
    rate = nlb.WarmupStepDecay(1.6, warmup_steps=120, decay_steps=[1200, 1800])
    assert_type(nlb.schedules.WarmupStepDecay(1.6)(3), Any)
    assert_type(nlb.schedules.peak(keras.optimizers.SGD(rate)), float)
    optimizer = nlb.NoisyOptimizer(
        keras.optimizers.SGD(rate, momentum=0.9), noise=noises()[0], placement="update", seed=1
    )
    assert_type(optimizer.noise_steps, int | None)
    quarter = nlb.NoisyOptimizer(keras.optimizers.SGD(), noises()[0], noise_fraction=0.25)
    assert_type(quarter.noise_fraction, float | None)
    optimizer.noise_steps = 100
    model = assert_type(nlb.NoisyModel(models.LeNet(), 4, add_loss_reduction="sum"), nlb.NoisyModel)
    model.compile(optimizer=optimizer, loss="mse", metrics=["accuracy"])
    monitor = callbacks.GradientNoiseMonitor()
    assert isinstance(monitor, nlb.GradientNoiseMonitor)
    history = model.fit(x, y, batch_size=1024, epochs=20, callbacks=[monitor])
    assert_type(history, Any)
    regime = nlb.BatchChange(128, large_batch_size=4096, change_epoch=50)
    assert_type(regime.updates(len(x), epoch=100), int)
    assert_type(regime.fit(model, x, y, epochs=200), Any)


def own_loop(model: keras.Model, x: np.ndarray, y: np.ndarray) -> list[Any]:
    found = nlb.noisy_gradients(
        model, "mse", x, y, noise=nlb.DiagonalFisher(64), seed=0, sample_weight=None
    )
    gradient, added = assert_type(found, tuple[list[Any], list[Any]])
    return [g + n for g, n in zip(gradient, added, strict=True)]


def on_several_machines() -> None:
    strategy = nlb.multi_worker_strategy(None, timeout=60)
    assert_type(strategy, Any)


def before_a_run(model: keras.Model) -> None:
    report = assert_type(nlb.report(model, nlb.FisherTrace(64), 4096, memory=8), Report)
    assert_type(report.rows, list[Row])
    assert_type(report.notes, list[str])
    assert_type(report.num_microbatches, int | None)
    assert_type(report.gibibytes, float | None)
    assert_type(str(report), str)


def advised(model: keras.Model, x: np.ndarray, y: np.ndarray) -> None:
    advice = assert_type(nlb.advise(model, x, y, batch_size=64, highest_rate="measure"), Advice)
    assert_type(advice.largest_batch_size, int)
    assert_type(advice.late, diagnostics.CriticalBatchSize)
    assert_type(advice.multiplier, float)
    rows = nlb.compare(models.LeNet, (x, y), None, learning_rate={"sb": 0.1}, multiplier="matched")
    assert_type(rows["lb"], dict[str, Any])
    assert_type(nlb.matched_multiplier(4096, 128, 1.6, small_learning_rate=0.1), float)
    assert_type(nlb.noise_temperature(0.1, batch_size=128, momentum=0.9), float)


def statistics(model: keras.Model, x: np.ndarray, y: np.ndarray) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert_type(gradients.per_example_gradients(model, loss, x, y, engine="layerwise"), list[Any])
    assert_type(gradients.diagonal_fisher(model, "mse", x, y, max_examples=8), list[Any])
    assert_type(gradients.objective(model, lambda y, y_pred: y_pred).variables, list[Any])
    rule = LayerRule(lambda layer, use, d, conv: {}, ("kernel",))
    gradients.RULES.register(keras.layers.Dense, rule)
    assert_type(gradients.RULES.get(keras.layers.Dense(3)), LayerRule | None)
    gradients.STATISTICS.register("own", OwnStatistic)
    assert_type(gradients.STATISTICS.get("own"), type[Statistic])
    assert_type(gradients.STATISTICS.stored_shapes(noises()[0], model), Any)
    made = assert_type(gradients.STATISTICS.make(noises()[0], model, x), Statistic)
    assert_type(made.notes(model, batch_size=64), list[str])
    cost = assert_type(made.cost(keras.layers.Dense(3), 12, 1, 64), gradients.Cost)
    assert_type(cost.multiplications, float)


class OwnStatistic(Statistic):
    """Twice the gradient."""

    num_microbatches = 2

    def measure(
        self, objective: Objective, batch: Batch, draws: Any
    ) -> tuple[Recorded, list[Any], Any]:
        recorded = assert_type(objective.record(batch, draws), Recorded)
        gradients = assert_type(recorded.data_gradients(), list[Any | None])
        assert_type(batch.num_examples, Any)
        return recorded, gradients, ()

    def finish(self, sums: Any, gradients: list[Any], num_examples: Any) -> list[Any]:
        return [g if g is None else 2 * g for g in gradients]


def measured(model: keras.Model, x: np.ndarray, y: np.ndarray) -> None:
    hessian = assert_type(diagnostics.Hessian(model, "mse", x, y), diagnostics.Hessian)
    assert_type(hessian.size, int)
    assert_type(hessian.product([np.ones(3)]), list[np.ndarray])
    assert_type(hessian.matvec(np.ones(3)), np.ndarray)
    vectors = [np.ones(3)]
    assert_type(diagnostics.hessian_vector_product(model, "mse", x, y, vectors), list[np.ndarray])
    pairs = diagnostics.largest_eigenvalues(model, "mse", x, y, k=2)
    assert_type(pairs, diagnostics.Eigenpairs)
    assert_type(pairs.eigenvalues, np.ndarray)
    assert_type(pairs.eigenvectors, list[list[np.ndarray]])
    trace = diagnostics.hessian_trace(model, "mse", x, y)
    assert_type(trace, diagnostics.TraceEstimate)
    assert_type(trace.mean, float)
    critical = diagnostics.critical_batch_size(model, "mse", x, y, batch_size=64)
    assert_type(critical, diagnostics.CriticalBatchSize)
    assert_type(critical.upper, float)
    norms = diagnostics.fisher_norms(model, "mse", x, y, engine="auto")
    assert_type(norms, diagnostics.FisherNorms)
    assert_type(norms.paths, tuple[str, ...])
    variance = diagnostics.gradient_variance(
        model, "mse", x, y, batch_size=64, noise=nlb.Isotropic(0.1)
    )
    assert_type(variance, diagnostics.GradientVariance)
    assert_type(variance.block_variance, np.ndarray)
    assert_type(diagnostics.fit_temperature([[2.0, 0.0]], [0]), float)
    assert_type(diagnostics.fold_batch_norm(model), Any)
    found = diagnostics.sharpness(model, keras.losses.CategoricalCrossentropy(True), x, y)
    assert_type(found, diagnostics.Sharpness)
    assert_type(found.largest_eigenvalue, float)


def theory() -> None:
    hessian, start = [[2.0, 1.0], [1.0, 2.0]], [3.0, 3.0]
    factor = assert_type(quadratic.noise_factor(hessian, "diagonal", multiplier=0.5), np.ndarray)
    problem = assert_type(Quadratic(hessian, factor), quadratic.Quadratic)
    assert_type(problem.eigenvalues, np.ndarray)
    assert_type(problem.simulate(start, steps=10, step_size=lambda k: 0.1 / (k + 1)), np.ndarray)
    assert_type(problem.moments(start, 10, 0.1), tuple[np.ndarray, np.ndarray])
    assert_type(problem.expected_losses(start, 10, 0.1), np.ndarray)
    assert_type(problem.stationary_covariance(0.1), np.ndarray)
    for bound in (
        quadratic.theorem_bound(problem, start),
        quadratic.variance_bound(problem, start),
    ):
        assert_type(bound, quadratic.ConvergenceBound)
        assert_type(bound.nu, float)
        assert_type(bound.steps_to_reach(0.01), int)
        assert_type(problem.steps_to_reach(0.01, start, bound.step_size), int)
    assert_type(ConvergenceBound(1.0, gamma=2.0, smallest_eigenvalue=1.0)(3), Any)
    assert_type(quadratic.rate_constant(problem), float)
    mean = assert_type(quadratic.diffusion_mean(problem, 1.0, start), np.ndarray)
    covariance = assert_type(quadratic.diffusion_covariance(problem, 1.0, 0.1), np.ndarray)
    assert_type(quadratic.squared_hellinger(mean, covariance, mean, covariance), float)
    assert_type(quadratic.uniform_stability([(mean, covariance)]), float)


def search(x: np.ndarray, y: np.ndarray) -> float | None:
    hypermodel = tuning.NoisyHyperModel(
        lambda hp: models.MLP(), "mse", seeds=(0, 1), noise="diagonal", momentum=(0.9, 0.0)
    )
    assert_type(hypermodel, tuning.NoisyHyperModel)
    tuner = tuning.GridSearch(hypermodel, objective="val_loss")
    tuner.search(x, y, epochs=2, validation_split=0.2)
    best = assert_type(tuning.results(tuner), list[tuning.TrialResult])[0]
    assert_type(best.seed_scores, dict[int, float])
    return assert_type(best.std, float | None)
