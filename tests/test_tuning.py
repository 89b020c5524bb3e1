"""Searches with KerasTuner's own tuners, against trainings written out by hand."""

import functools
import gc
import json
import math
import pathlib
import re
import statistics
import subprocess
import sys
import weakref
from typing import ClassVar

import keras
import keras_tuner
import pytest
import tensorflow as tf
from oracle import on_devices
from small_nets import CROSSENTROPY

import keras_noisylb as nlb
from keras_noisylb.tuning import GridSearch, NoisyHyperModel, results

L = keras.layers
NUM_TRAIN = 240
X, Y = (a[:300] for a in nlb.data.load("fashion_mnist_small")[0])
DATA = {
    "x": X[:NUM_TRAIN],
    "y": Y[:NUM_TRAIN],
    "validation_data": (X[NUM_TRAIN:], Y[NUM_TRAIN:]),
    "validation_batch_size": 60,
    "verbose": 0,
}
SPACE = {
    "noise": ("diagonal", "none"),
    "estimator": "split",
    "small_batch_size": 10,
    "multiplier": 1.0,
    "noise_fraction": 0.5,
    "large_batch_size": (60, 120),
    "learning_rate": lambda hp: hp.Float("learning_rate", 0.01, 0.1, sampling="log"),
    "warmup_fraction": 0.25,
    "momentum": 0.9,
}


def linear(hp):
    return keras.Sequential([keras.Input((28, 28, 1)), L.Flatten(), L.Dense(10)])


def hypermodel(builder=linear, **changes):
    changes = {"metrics": (), **SPACE, **changes}
    return NoisyHyperModel(builder, CROSSENTROPY, **changes)


def random_search(model, directory, max_trials=2, **options):
    options = {"objective": "val_loss", "project_name": "search", "seed": 3, **options}
    return keras_tuner.RandomSearch(model, max_trials=max_trials, directory=directory, **options)


def by_hand(values, seed=0, epochs=2):
    """The best validation loss of a trial."""
    batch_size = values["large_batch_size"]
    updates = epochs * math.ceil(NUM_TRAIN / batch_size)
    rate = nlb.WarmupStepDecay(
        values["learning_rate"],
        warmup_steps=math.ceil(updates / 4),
        decay_steps=(math.ceil(updates / 2), math.ceil(3 * updates / 4)),
    )
    optimizer = keras.optimizers.SGD(rate, momentum=0.9)
    keras.utils.set_random_seed(seed)
    model = linear(None)
    if values["noise"] == "diagonal":
        model = nlb.NoisyModel(model)
        noise = nlb.DiagonalFisher(10, estimator="split")
        optimizer = nlb.NoisyOptimizer(optimizer, noise, noise_fraction=0.5, seed=seed)
    model.compile(optimizer, CROSSENTROPY)
    keras.utils.set_random_seed(seed)
    history = model.fit(**DATA, batch_size=batch_size, epochs=epochs)
    return min(history.history["val_loss"])


class Record(keras.callbacks.Callback):
    """What each training was; KerasTuner copies callbacks, so the record is the class's."""

    trainings: ClassVar = []

    def __init__(self):
        super().__init__()
        self.epochs_seen = 0

    def on_train_begin(self, logs=None):
        self.rates = []

    def on_train_batch_begin(self, batch, logs=None):
        rate = self.model.optimizer.learning_rate
        self.rates.append(float(keras.ops.convert_to_numpy(rate)))

    def on_epoch_end(self, epoch, logs=None):
        self.epochs_seen += 1

    def on_train_end(self, logs=None):
        self.trainings.append({
            "rates": self.rates,
            "epochs": self.epochs_seen,
            "noise_steps": getattr(self.model.optimizer, "noise_steps", 0),
            "replicas": self.model.distribute_strategy.num_replicas_in_sync,
        })


@pytest.fixture(autouse=True)
def no_record():
    Record.trainings.clear()


def tuner_of(kind, directory, **more):
    options = {"objective": "val_loss", "directory": directory, "project_name": "s", "seed": 3}
    options |= more
    model = hypermodel()
    if "grid" in kind:
        model = hypermodel(learning_rate=(0.1, 0.01), large_batch_size=60)
        search = GridSearch if kind == "resumable grid" else keras_tuner.GridSearch
        return search(model, **options)
    if kind == "hyperband":
        return keras_tuner.Hyperband(model, max_epochs=2, factor=2, **options)
    if kind == "bayesian":
        options |= {"max_trials": 3, "num_initial_points": 2}
        return keras_tuner.BayesianOptimization(model, **options)
    return keras_tuner.RandomSearch(model, max_trials=3, **options)


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """What a search that nothing interrupts finds, and its trainings."""

    @functools.cache
    def search(kind):
        tuner = tuner_of(kind, tmp_path_factory.mktemp(kind))
        tuner.search(**DATA, epochs=2, callbacks=[Record()])
        return results(tuner), list(Record.trainings)

    return search


@pytest.mark.parametrize("kind", ["random", "hyperband", "bayesian", "grid"])
def test_trials_are_the_trainings_that_they_name(kind, whole):
    found, trainings = whole(kind)
    assert len(found) == {"hyperband": 5, "grid": 4}.get(kind, 3)
    assert {trial.status for trial in found} == {"COMPLETED"}
    assert [t.score for t in found] == sorted(t.score for t in found)
    for trial in found[:: len(found) - 1]:  # the best and the worst
        epochs = trial.values.get("tuner/epochs", 2)
        assert trial.score == pytest.approx(by_hand(trial.values, epochs=epochs), rel=1e-5)
    in_order = sorted(found, key=lambda t: t.trial_id)
    for trial, training in zip(in_order, trainings, strict=True):
        assert_follows_its_epochs(trial.values, training)
    if kind == "grid":
        seen = {(t.values["noise"], t.values["learning_rate"]) for t in found}
        assert seen == {(n, r) for n in ("diagonal", "none") for r in (0.1, 0.01)}
    if kind == "hyperband":
        assert any(trial.values["tuner/initial_epoch"] for trial in found)


def assert_follows_its_epochs(values, training):
    epochs = values.get("tuner/epochs", 2)
    updates = epochs * math.ceil(NUM_TRAIN / values["large_batch_size"])
    rates = [
        values["learning_rate"]
        * min((k + 1) / math.ceil(updates / 4), 1)
        * 0.1 ** ((k >= updates / 2) + (k >= 3 * updates / 4))
        for k in range(updates)
    ]
    assert training["epochs"] == epochs
    assert training["rates"] == pytest.approx(rates, rel=1e-5)
    assert training["noise_steps"] == (updates / 2 if values["noise"] == "diagonal" else 0)


def test_seeds_mean_and_spread(tmp_path):
    seeds = (0, 5)
    tuner = random_search(hypermodel(seeds=seeds, noise="diagonal"), tmp_path, max_trials=1)
    board = keras.callbacks.TensorBoard(tmp_path / "board")
    tuner.search(**DATA, epochs=2, callbacks=[Record(), board])
    (trial,) = results(tuner)
    expected = {seed: by_hand(trial.values, seed) for seed in seeds}
    assert trial.seed_scores == pytest.approx(expected, rel=1e-5)
    assert trial.score == pytest.approx(statistics.mean(expected.values()), rel=1e-5)
    assert trial.std == pytest.approx(statistics.stdev(expected.values()), rel=1e-3) and trial.std
    stored = json.loads((tmp_path / "search/trial_0/trial.json").read_text())["metrics"]["metrics"]
    assert stored["val_loss_seed_5"]["observations"][0]["value"] == [trial.seed_scores[5]]
    assert [training["epochs"] for training in Record.trainings] == [2, 2]
    assert list(tmp_path.glob("board/0/execution0/seed_5/train/*"))
    assert results(random_search(hypermodel(seeds=seeds), tmp_path)) == [trial]  # read from disk


def test_two_devices_train_as_one(tmp_path):
    strategy = on_devices(2)

    def trial(name, distribution_strategy, **changes):
        tuner = random_search(
            hypermodel(large_batch_size=60, learning_rate=0.1, **changes),
            tmp_path / name,
            max_trials=1,
            distribution_strategy=distribution_strategy,
        )
        tuner.search(**DATA, epochs=1, callbacks=[Record()])
        return results(tuner)[0]

    one = trial("one", None, noise="none").score
    assert trial("two", strategy, noise="none").score == pytest.approx(one, rel=1e-4)
    noisy = trial("noisy", strategy, noise="diagonal", seeds=(0, 1))
    assert [training["replicas"] for training in Record.trainings] == [1, 2, 2, 2]
    assert noisy.status == "COMPLETED" and noisy.std > 0
    assert noisy.seed_scores[0] != pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"small_batch_size": 60}, "FailedTrialError: .*small_batch_size=60, large_batch_size=60"),
        (
            {"large_batch_size": 250},
            "FailedTrialError: .*240 training examples. Received: large_batch_size=250",
        ),
        ({"global_clipnorm": -1.0}, "FailedTrialError: .*Received: global_clipnorm=-1.0"),
        (
            {"learning_rate": 1e38, "noise": "none"},
            "FailedTrialError: The training diverged: loss=nan",
        ),
    ],
)
def test_a_failed_trial_says_why(changes, reason, tmp_path):
    changes = {"noise": "diagonal", "large_batch_size": 60, "metrics": ["accuracy"], **changes}
    # The accuracy of weights that are not numbers is a number.
    tuner = random_search(hypermodel(**changes), tmp_path, max_trials=1, objective="val_accuracy")
    tuner.search(**DATA, epochs=1)
    (trial,) = results(tuner)
    assert trial.status == "FAILED" and trial.score is None
    assert re.search(reason, trial.reason), trial.reason


def test_a_score_that_is_not_a_number(tmp_path):
    tuner = random_search(hypermodel(noise="none"), tmp_path, max_trials=1)
    tuner.search(**{**DATA, "validation_data": (X * float("nan"), Y)}, epochs=1)
    (trial,) = results(tuner)
    assert trial.status == "FAILED" and trial.reason == "The score is not a number."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 32}, r"search\(batch_size=32\)"),
        ({"validation_data": None}, "taken from the training set, not from the test set"),
        ({"x": tf.data.Dataset.range(3), "y": None}, "Received: _RangeDataset"),
    ],
)
def test_what_would_be_another_search_is_refused(changes, message):
    with pytest.raises(keras_tuner.errors.FatalValueError, match=message):
        hypermodel().fit(keras_tuner.HyperParameters(), None, **{**DATA, **changes})


def test_what_the_tuner_must_leave_to_the_hypermodel_ends_the_search(tmp_path):
    tuner = random_search(hypermodel(), tmp_path, optimizer="adam", executions_per_trial=2)
    with pytest.raises(
        keras_tuner.errors.FatalValueError, match="tuner: optimizer, executions_per"
    ):
        tuner.search(**DATA)


def test_data_made_for_the_batch_size_and_a_model_trained_without_a_tuner():
    asked = []

    def data(batch_size):
        asked.append(batch_size)
        return nlb.data.batches(DATA["x"], DATA["y"], batch_size)

    searched, hp = hypermodel(seeds=(0, 1)), keras_tuner.HyperParameters()
    model = searched.build(hp)
    fit_args = {k: v for k, v in DATA.items() if k not in {"x", "y"}}
    histories = searched.fit(hp, model, data, epochs=3, shuffle=False, **fit_args)
    assert asked == [60, 60] and len(histories) == 2
    assert int(model.optimizer.iterations) == 3 * NUM_TRAIN / 60
    loss = model.evaluate(*DATA["validation_data"], verbose=0)
    assert loss == pytest.approx(histories[1].history["val_loss_seed_0"][-1], rel=1e-5)


class Alive(keras.callbacks.Callback):
    models: ClassVar = weakref.WeakSet()
    counts: ClassVar = []

    def on_train_begin(self, logs=None):
        gc.collect()
        variables = sum(isinstance(o, keras.Variable) for o in gc.get_objects())
        Alive.counts.append((len(Alive.models), variables))


@pytest.mark.parametrize("leaking", [False, True])
def test_memory_is_given_back(leaking, tmp_path, monkeypatch):
    def builder(hp):
        model = linear(hp)
        Alive.models.add(model)
        return model

    if leaking:  # the histories of a trial hold their models
        monkeypatch.setattr(keras.callbacks.Callback, "set_model", _keep_model)
    Alive.models.clear()
    Alive.counts.clear()
    model = hypermodel(builder, seeds=(0, 1), noise="none", large_batch_size=120)
    tuner = random_search(model, tmp_path, max_trials=1 if leaking else 2)
    tuner.search(**DATA, epochs=1, callbacks=[Alive()])
    first, later = Alive.counts[:2], Alive.counts[2:]
    # The tuner's own model beside the one in training, which it is at last itself.
    assert [models for models, _ in first] == ([2, 2] if leaking else [2, 1])
    assert later == ([] if leaking else first)  # nothing of a trial outlives it


def _keep_model(self, model):
    if model is not None:
        self._model = model


def test_keras_tuner_is_an_extra():
    program = """
import sys, keras_noisylb
assert "keras_tuner" not in sys.modules
sys.modules["keras_tuner"] = None  # as if it were not installed
import keras_noisylb.tuning
"""
    root = pathlib.Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root)
    assert "pip install -e '.[tuner]'" in run.stderr.splitlines()[-1]
