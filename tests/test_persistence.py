"""Everything public can be saved and loaded, and continues training after loading."""

import copy
import inspect
import json
import pickle
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_noisylb as nlb

M, M_S = 24, 4
L = keras.layers
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@keras.saving.register_keras_serializable(package="tests.persistence")
def first_class(y, y_pred, draws):
    return tf.zeros_like(y)


def network(dropout=0.0):
    return keras.Sequential([
        keras.Input((6, 6, 1)),
        L.Conv2D(2, 3, use_bias=False),
        nlb.GhostBatchNormalization(6),
        L.ReLU(),
        L.Dropout(dropout),
        L.Flatten(),
        L.Dense(3, kernel_regularizer="l2"),
    ])


def schedule():
    return nlb.WarmupStepDecay(0.1, warmup_steps=2, decay_steps=(4,), decay_factor=0.5)


def sgd():
    return keras.optimizers.SGD(schedule(), momentum=0.9)


def accumulating():
    return keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=2)


def averaging():
    return keras.optimizers.Adam(
        schedule(), use_ema=True, ema_momentum=0.9, global_clipnorm=1.0, weight_decay=1e-3
    )


TRUE = {"fisher": "true", "sampler": first_class}
PART = {"max_examples": 9, "conv": "uncorrelated", "engine": "layerwise", "multiplier": 0.5}
NOISES = [
    nlb.DiagonalFisher(M_S, **PART),
    nlb.DiagonalFisher(M_S, engine="vectorized_map"),
    nlb.DiagonalFisher(M_S, estimator="weighted", **TRUE),
    nlb.DiagonalFisher(M_S, estimator="split"),
    nlb.FullFisher(M_S, multiplier=0.5, **TRUE),
    nlb.FullFisher(M_S, estimator="split"),
    nlb.FisherTrace(M_S, **PART),
    nlb.FisherTrace(M_S, estimator="weighted", **TRUE),
    nlb.FisherTrace(M_S, estimator="split"),
    nlb.KroneckerFactored(M_S, damping=0.2, update_every=2, max_examples=9, multiplier=0.5),
    nlb.KroneckerFactored(M_S, **TRUE),
    nlb.Isotropic(0.1),
    nlb.Multiplicative(0.3),
    nlb.Multiplicative(0.3, form="example"),
]
GHOST = {
    f"{name}_{kind}": value
    for name in ("beta", "gamma")
    for kind, value in (("regularizer", "l2"), ("constraint", "non_neg"))
}
GHOST |= {
    f"{name}_initializer": "random_uniform"
    for name in ("beta", "gamma", "moving_mean", "moving_variance")
}

# What has a configuration. The instances of a class, taken together, give every argument another
# value than its default.
CONFIGURED = [
    *NOISES,
    nlb.NoisyModel(network(), num_microbatches=3, add_loss_reduction="mean"),
    nlb.NoisyOptimizer(
        averaging(), NOISES[0], noise_steps=9, placement="update", seed=7, name="mine"
    ),
    nlb.NoisyOptimizer(averaging(), NOISES[0], noise_fraction=0.5),
    schedule(),
    nlb.GhostBatchNormalization(
        6, axis=1, momentum=0.8, epsilon=0.01, center=False, scale=False, **GHOST
    ),
]
# What a user makes anew for every `fit`, and KerasTuner copies: their state is the optimizer's.
COPIED = [
    nlb.GradientNoiseMonitor(),
    nlb.BatchChange(4, 16, change_epoch=3),
]
# What holds no state: functions, and what functions return or read in plain Python and NumPy.
STATELESS = [
    *(
        nlb.multi_worker_strategy,
        nlb.noisy_gradients,
        nlb.report,
        nlb.advise,
        nlb.compare,
        nlb.noise_scale,
        nlb.replace_batch_norm,
    ),
    *(nlb.linear_scaling, nlb.matched_multiplier, nlb.noise_temperature, nlb.sqrt_scaling),
    nlb.schedules.peak,
    *(nlb.models.get, nlb.models.names),
    *(nlb.gradients.RULES, nlb.gradients.LayerRule),
    *(nlb.gradients.STATISTICS, nlb.gradients.Statistic, nlb.gradients.Cost),
    *(nlb.gradients.diagonal_fisher, nlb.gradients.per_example_gradients, nlb.gradients.objective),
    *(getattr(nlb.data, name) for name in nlb.data.__all__),
    *(getattr(nlb.diagnostics, name) for name in nlb.diagnostics.__all__),
    *(getattr(nlb.quadratic, name) for name in nlb.quadratic.__all__),
]
# The models: `test_models` saves and loads all that have a name.
BUILDERS = [getattr(b, "func", b) for b in map(nlb.models.get, nlb.models.names())]


def public(module):
    """The path and the value of every public symbol, those of sub-packages included."""
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__]
    for name in getattr(module, "__all__", [n for n in own if not n.startswith("_")]):
        value = getattr(module, name)
        if isinstance(value, types.ModuleType):
            yield from public(value)
        else:
            yield f"{module.__name__}.{name}", value


def test_every_public_symbol_has_its_case():
    classes = [type(instance) for instance in [*CONFIGURED, *COPIED]]
    covered = {id(value) for value in [*classes, nlb.noise.Noise, *STATELESS, *BUILDERS]}
    symbols = dict(public(nlb))
    assert {"keras_noisylb.NoisyModel", "keras_noisylb.models.LeNet"} < symbols.keys()
    assert [path for path, value in symbols.items() if id(value) not in covered] == []
    assert not any(hasattr(value, "get_config") for value in STATELESS)


def test_a_configuration_holds_every_argument():
    for kind in {type(instance) for instance in CONFIGURED}:
        configs = [i.get_config() for i in CONFIGURED if type(i) is kind]
        for name, parameter in inspect.signature(kind).parameters.items():
            if parameter.kind is not parameter.VAR_KEYWORD:
                values = [config[name] for config in configs]
                assert any(value != parameter.default for value in values), (kind, name)


@pytest.mark.parametrize("instance", CONFIGURED, ids=lambda i: type(i).__name__)
def test_a_configuration_makes_the_same_again(instance):
    def written(value):
        return json.loads(json.dumps(value))

    serialized = written(keras.saving.serialize_keras_object(instance))
    for again in (
        type(instance).from_config(instance.get_config()),
        keras.saving.deserialize_keras_object(serialized),
    ):
        assert type(again) is type(instance) and again is not instance
        assert written(again.get_config()) == written(instance.get_config())


@pytest.mark.parametrize("instance", COPIED, ids=lambda i: type(i).__name__)
def test_a_copy_is_the_same_again(instance):
    for again in (copy.deepcopy(instance), pickle.loads(pickle.dumps(instance))):
        assert type(again) is type(instance)
        assert vars(again) == vars(instance)


def compiled(noise, inner=sgd, num_microbatches=None, dropout=0.0, eager=True, **options):
    keras.utils.set_random_seed(0)
    model = nlb.NoisyModel(network(dropout), num_microbatches)
    scaled = options.pop("scaled", False)
    optimizer = nlb.NoisyOptimizer(inner(), noise, **{"seed": 7, "noise_steps": 5, **options})
    optimizer = keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer
    model.compile(optimizer, CROSSENTROPY, run_eagerly=eager)
    model.optimizer.build(model.trainable_variables)
    return model


def train(model, first, last):
    rng = np.random.default_rng(0)
    for step in range(last):
        x, y = rng.standard_normal((M, 6, 6, 1)).astype("float32"), rng.integers(0, 3, M)
        if step >= first:
            model.train_on_batch(x, y)


def assert_same(model, other):
    """All weights and all of the optimizer's state, bit for bit."""
    for a, b in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    for a, b in zip(model.optimizer.variables, other.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


WAYS = {
    "gradient": {},
    "update": {"placement": "update", "num_microbatches": 2, "inner": accumulating},
    "averages": {"inner": averaging},
    "in a graph": {"eager": False, "placement": "update"},
    "loss scale": {"scaled": True},
    "dropout": {"dropout": 0.5},
}
TRAINED = [
    *((NOISES[n], "gradient") for n in (0, 1, 2, 3, 9, 11, 12)),
    *((NOISES[n], "update") for n in (0, 3, 9)),
    *((NOISES[9], way) for way in ("averages", "loss scale", "in a graph")),
    (NOISES[0], "dropout"),
    # Other structures by the same estimators, and what the rows above say one by one, together.
    *(pytest.param(NOISES[n], "gradient", marks=pytest.mark.slow) for n in (4, 5, 6, 7, 8, 10, 13)),
    *(pytest.param(NOISES[n], "update", marks=pytest.mark.slow) for n in (2, 11, 12)),
    *(pytest.param(NOISES[0], w, marks=pytest.mark.slow) for w in ("averages", "loss scale")),
]


@pytest.mark.parametrize(("noise", "way"), TRAINED)
def test_what_was_loaded_trains_on(noise, way, tmp_path):
    options = dict(WAYS[way])
    if noise.shared:
        options.pop("placement", None)
    whole, second = compiled(noise, **options), compiled(noise, **options)
    train(whole, 0, 3)  # odd: in the middle of an accumulation and of the life of stored factors
    whole.save(tmp_path / "model.keras")
    whole.save_weights(tmp_path / "model.weights.h5")
    first = keras.saving.load_model(tmp_path / "model.keras")
    first.run_eagerly = whole.run_eagerly  # Keras does not save it
    second.load_weights(tmp_path / "model.weights.h5")
    assert_same(whole, first)
    assert_same(whole, second)
    train(whole, 3, 6)  # where nothing accumulates, the last step is beyond the noise's end
    for model in (first, second):
        train(model, 3, 6)
        assert_same(whole, model)


def test_an_optimizer_that_is_compiled_again_is_saved_once(tmp_path):
    model = compiled(NOISES[9])
    train(model, 0, 3)
    before = len(model.optimizer.variables)
    model.compile(model.optimizer, CROSSENTROPY, run_eagerly=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert len({id(v) for v in model.optimizer.variables}) == before
    assert_same(model, loaded)


def test_the_weights_alone_are_loaded_where_there_is_no_optimizer(tmp_path):
    trained = compiled(nlb.DiagonalFisher(M_S))
    train(trained, 0, 2)
    trained.save_weights(tmp_path / "trained.weights.h5")
    trained.model.save_weights(tmp_path / "network.weights.h5")
    model, plain = nlb.NoisyModel(network()), network()
    model.load_weights(tmp_path / "trained.weights.h5")
    plain.load_weights(tmp_path / "network.weights.h5")
    for loaded in (model, plain):
        for a, b in zip(trained.get_weights(), loaded.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
