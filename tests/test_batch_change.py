import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_noisylb.batch_change import BatchChange
from keras_noisylb.schedules import WarmupStepDecay

REGIME = BatchChange(4, 16, change_epoch=3)
EPOCHS = 5
STEPS = [9, 9, 9, 3, 3]  # of 36 examples


@pytest.fixture(scope="module")
def xy():
    x = np.random.default_rng(0).standard_normal((36, 3)).astype("float32")
    return x, (x @ [[1.0], [-2.0], [0.5]] + 0.1).astype("float32")


def compiled(optimizer=None, run_eagerly=False):
    model = keras.Sequential([
        keras.Input([3]),
        keras.layers.Dense(4, activation="tanh", kernel_initializer=keras.initializers.HeNormal(1)),
        keras.layers.Dense(1, kernel_initializer=keras.initializers.HeNormal(2)),
    ])
    optimizer = optimizer or keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, loss="mse", run_eagerly=run_eagerly)
    model.optimizer.build(model.trainable_variables)  # else the first step is traced twice
    return model


def averaged():
    return keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9)


@pytest.fixture(scope="module")
def whole(xy):
    """A model that was trained to the end, and its history."""
    model = compiled()
    return model, fit(model, *xy)


@pytest.fixture(scope="module")
def whole_averaged(xy):
    model = compiled(averaged())
    fit(model, *xy)
    return model


def fit(model, *data, regime=REGIME, epochs=EPOCHS, **options):
    return regime.fit(model, *data, epochs=epochs, **{"shuffle": False, "verbose": 0, **options})


def train_by_hand(model, x, y):
    """One loop over batches; what Keras does at the end of `fit` is done once."""
    for epoch in range(EPOCHS):
        size = 4 if epoch < 3 else 16
        for start in range(0, len(x), size):
            model.train_on_batch(x[start : start + size], y[start : start + size])
    model.optimizer.finalize_variable_values(model.trainable_weights)


def assert_same_weights(model, other, rtol=1e-6):
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


class Log(keras.callbacks.Callback):
    def __init__(self, stop=None):
        super().__init__()
        self.stop = stop
        self.calls = []
        self.params_seen = []
        self.histories = set()

    def on_train_begin(self, logs=None):
        self.calls.append("begin")

    def on_train_end(self, logs=None):
        self.calls.append("end")

    def on_epoch_begin(self, epoch, logs=None):
        self.calls.append(epoch)
        self.params_seen.append(dict(self.params))
        self.batches = 0
        self.histories.add(self.model.history)

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1

    def on_epoch_end(self, epoch, logs=None):
        assert self.batches == self.params_seen[-1]["steps"]
        self.calls.append(f"{epoch} done")
        self.histories.add(self.model.history)
        if epoch == self.stop:
            self.model.stop_training = True


@pytest.mark.parametrize("run_eagerly", [True, False])
def test_equals_two_calls_of_fit(xy, run_eagerly):
    model, other = (compiled(run_eagerly=run_eagerly) for _ in range(2))
    fit(model, *xy)
    other.fit(*xy, batch_size=4, epochs=3, shuffle=False, verbose=0)
    one_part = other.get_weights()
    other.fit(*xy, batch_size=16, epochs=5, initial_epoch=3, shuffle=False, verbose=0)
    assert_same_weights(model, other, rtol=0)
    assert int(model.optimizer.iterations) == sum(STEPS)
    other.set_weights(one_part)
    with pytest.raises(AssertionError):
        assert_same_weights(model, other)


@pytest.mark.parametrize("name", ["sgd", "adam", "schedule", "accumulated", "scaled", "ema"])
def test_equals_one_loop_over_batches(name, xy):
    optimizers = keras.optimizers
    make = {
        "sgd": lambda: optimizers.SGD(0.1, momentum=0.9),
        "adam": lambda: optimizers.Adam(0.01),
        "schedule": lambda: optimizers.SGD(
            WarmupStepDecay(0.1, warmup_steps=5, decay_steps=(REGIME.updates(36, 4),))
        ),
        "accumulated": lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2),
        "scaled": lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.1, use_ema=True)),
        "ema": lambda: optimizers.SGD(0.1, momentum=0.9, use_ema=True, ema_momentum=0.9),
    }[name]
    model, other = compiled(make()), compiled(make())
    fit(model, *xy)
    train_by_hand(other, *xy)
    assert_same_weights(model, other, rtol=1e-5)
    for a, b in zip(model.optimizer.variables, other.optimizer.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-5)


def test_two_bare_fits_disturb_a_moving_average(xy):
    """The control for `ema` above: without care the second part starts from the average."""
    model, other = compiled(averaged()), compiled(averaged())
    model.fit(*xy, batch_size=4, epochs=3, shuffle=False, verbose=0)
    model.fit(*xy, batch_size=16, epochs=5, initial_epoch=3, shuffle=False, verbose=0)
    train_by_hand(other, *xy)
    with pytest.raises(AssertionError):
        assert_same_weights(model, other, rtol=1e-3)


def test_weights_averaged_between_epochs_are_swapped_back(xy):
    model, other = compiled(averaged()), compiled(averaged())
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    fit(model, *xy, callbacks=[swap])
    train_by_hand(other, *xy)
    assert_same_weights(model, other, rtol=1e-5)


def test_callbacks_see_one_training(xy):
    log = Log()
    history = fit(compiled(), *xy, callbacks=[log], validation_data=xy)
    epochs = [call for epoch in range(EPOCHS) for call in (epoch, f"{epoch} done")]
    assert log.calls == ["begin", *epochs, "end"]
    assert log.params_seen == [{"verbose": 0, "epochs": 5, "steps": steps} for steps in STEPS]
    assert log.histories == {history}
    assert log.model.history is history
    assert history.epoch == list(range(EPOCHS))
    assert {key: len(values) for key, values in history.history.items()} == {
        "loss": EPOCHS,
        "val_loss": EPOCHS,
    }


def test_a_callback_or_a_history_of_ones_own(xy):
    history = keras.callbacks.History()
    assert fit(compiled(), *xy, callbacks=history) is history
    assert history.epoch == list(range(EPOCHS))
    log = Log()
    fit(compiled(), *xy, callbacks=keras.callbacks.CallbackList([log]))
    assert log.calls[0] == "begin" and log.calls.count("end") == 1


def test_progress_shows_the_whole_training(xy, capsys):
    fit(compiled(), *xy, verbose=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "Epoch" in line] == [f"Epoch {n}/5" for n in range(1, 6)]
    assert [line.split()[0] for line in lines if "loss" in line] == [f"{n}/{n}" for n in STEPS]


def test_updates_counts_the_steps_of_the_optimizer(xy):
    seen = []
    model = compiled()
    count = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: seen.append(int(model.optimizer.iterations))
    )
    fit(model, *xy, callbacks=[count])
    seen.append(int(model.optimizer.iterations))
    assert seen == [REGIME.updates(36, epoch) for epoch in range(EPOCHS + 1)]
    assert seen == [0, *np.cumsum(STEPS)]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_stopping_early_ends_it_all(xy, stop):
    log = Log(stop)
    model, other = (compiled(keras.optimizers.SGD(0.1, use_ema=True)) for _ in range(2))
    history = fit(model, *xy, callbacks=[log])
    assert history.epoch == list(range(stop + 1))
    assert log.calls[-2:] == [f"{stop} done", "end"] and log.calls.count("end") == 1
    fit(other, *xy, epochs=max(stop + 1, 3), callbacks=[Log(stop)])
    assert_same_weights(model, other, rtol=0)
    average = model.optimizer.variables[-len(model.trainable_weights) :]
    for weight, mean in zip(model.trainable_weights, average, strict=True):
        np.testing.assert_array_equal(weight.numpy(), mean.numpy())


def test_early_stopping_restores_the_best_weights(xy):
    model = compiled()
    best = keras.callbacks.EarlyStopping(
        "loss", mode="max", patience=EPOCHS, restore_best_weights=True
    )
    history = fit(model, *xy, callbacks=[best])
    worst = int(np.argmax(history.history["loss"]))
    assert worst < 3 and best.best_epoch == worst
    other = compiled()
    other.fit(*xy, batch_size=4, epochs=worst + 1, shuffle=False, verbose=0)
    assert_same_weights(model, other, rtol=0)


@pytest.mark.parametrize("at", [1, 3, 4])
def test_resumes_in_either_part(xy, at, tmp_path, whole):
    model, history = whole
    first = compiled()
    fit(first, *xy, callbacks=[Log(stop=at - 1)])
    first.save(tmp_path / "model.keras")
    second = keras.saving.load_model(tmp_path / "model.keras")
    resumed = fit(second, *xy, initial_epoch=at)
    assert resumed.epoch == list(range(at, EPOCHS))
    assert resumed.history["loss"] == history.history["loss"][at:]
    assert_same_weights(second, model, rtol=0)


@pytest.mark.parametrize("at", [2, 3, 4])
def test_resumes_from_a_backup(xy, at, tmp_path, whole_averaged):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == at:
                raise InterruptedError

    def run(model, *callbacks):
        backup = keras.callbacks.BackupAndRestore(tmp_path)
        return fit(model, *xy, callbacks=[backup, *callbacks])

    first, second = compiled(averaged()), compiled(averaged())
    with pytest.raises(InterruptedError):
        run(first, Interrupt())
    assert json.loads((tmp_path / "training_metadata.json").read_text())["epoch"] == at
    assert run(second).epoch == list(range(at, EPOCHS))
    assert_same_weights(second, whole_averaged, rtol=0)


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y, batch_size):
        super().__init__()
        self.x, self.y, self.batch_size = x, y, batch_size

    def __len__(self):
        return -(-len(self.x) // self.batch_size)

    def __getitem__(self, index):
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return self.x[rows], self.y[rows]


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y, size: Batches(x, y, size),
        lambda x, y, size: tf.data.Dataset.from_tensor_slices((x, y)).batch(size),
    ],
)
def test_data_from_a_function(xy, make, whole):
    model, log, sizes = compiled(), Log(), []

    def data(batch_size):
        sizes.append(batch_size)
        return make(*xy, batch_size)

    fit(model, data, callbacks=[log])
    assert sizes == [4, 16]
    assert [params["steps"] for params in log.params_seen] == STEPS
    assert_same_weights(model, whole[0])


def test_further_arguments_reach_both_parts(xy):
    x, y = xy
    weights = np.linspace(0, 2, 36, dtype="float32")
    model, other = compiled(), compiled()
    history = fit(model, x, y, validation_split=0.25, sample_weight=weights, class_weight=None)
    kept = (x[:27], y[:27])
    expected = fit(
        other, *kept, validation_data=(x[27:], y[27:], weights[27:]), sample_weight=weights[:27]
    )
    assert_same_weights(model, other, rtol=0)
    assert history.history == expected.history
    assert int(model.optimizer.iterations) == REGIME.updates(27, EPOCHS) == 3 * 7 + 2 * 2

    classifier = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
    classifier.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = classifier.get_weights()
    fit(classifier, x, np.arange(36) % 2, class_weight={0: 0.0, 1: 0.0})
    for a, b in zip(classifier.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_model_that_is_built_by_its_first_batch(xy):
    class Line(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return self.dense(x)

    model = Line()
    model.compile("sgd", "mse")
    assert fit(model, *xy).epoch == list(range(EPOCHS))


@pytest.mark.parametrize(("change", "batch_size"), [(0, 16), (EPOCHS, 4)])
def test_a_change_at_either_end_is_an_ordinary_fit(xy, change, batch_size):
    model, other, log = compiled(), compiled(), Log()
    fit(model, *xy, regime=BatchChange(4, 16, change), callbacks=[log])
    other.fit(*xy, batch_size=batch_size, epochs=EPOCHS, shuffle=False, verbose=0)
    assert_same_weights(model, other, rtol=0)
    assert log.calls.count("begin") == log.calls.count("end") == 1


def test_nothing_left_to_train(xy):
    model, log = compiled(), Log()
    before = model.get_weights()
    history = fit(model, *xy, initial_epoch=EPOCHS, callbacks=[log])
    assert log.calls == ["begin", "end"]
    assert history.history == {} and history.epoch == []
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_limit_of_epochs_for_debugging(xy):
    model, other = compiled(), compiled()
    try:
        keras.config.set_max_epochs(2)
        with pytest.warns(UserWarning, match="Limiting epochs"):
            history = fit(model, *xy)
    finally:
        keras.config.set_max_epochs(None)
    other.fit(*xy, batch_size=4, epochs=2, shuffle=False, verbose=0)
    assert history.epoch == [0, 1]
    assert_same_weights(model, other, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ((0, 16, 3), "small_batch_size=0"),
        ((16, 16, 3), "small_batch_size=16, large_batch_size=16"),
        ((32, 16, 3), "small_batch_size=32"),
        ((4.0, 16, 3), "small_batch_size=4.0"),
        ((4, "16", 3), "large_batch_size='16'"),
        ((4, 16, 2.5), "change_epoch=2.5"),
        ((4, 16, -1), "change_epoch=-1"),
    ],
)
def test_refuses_arguments(arguments, received):
    with pytest.raises(ValueError, match=f"Received: .*{received}"):
        BatchChange(*arguments)


def test_refuses_data_and_arguments_of_fit(xy):
    x, y = xy
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    for arguments, options, message in [
        ((x, y), {"epochs": 2}, "change_epoch=3, epochs=2"),
        ((x, y), {"batch_size": 8}, "Received: batch_size=8"),
        ((dataset,), {}, "lambda batch_size: .* Received: x of type"),
        ((Batches(x, y, 4),), {}, "Received: x of type Batches"),
        ((lambda batch_size: dataset, y), {}, "Received: y of type ndarray"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit(compiled(), *arguments, **options)
