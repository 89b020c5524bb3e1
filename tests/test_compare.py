import dataclasses
import functools
import json
import pathlib
import shutil

import keras
import numpy as np
import pytest

from keras_noisylb import data, models
from keras_noisylb.experiments import compare, folders, records, splits, train
from keras_noisylb.experiments import journal as journal_module
from keras_noisylb.experiments.figures import comparison
from keras_noisylb.experiments.journal import Journal, checkpoint
from keras_noisylb.models import MLP
from noisylb.protocol.options import Options

CLASSES = 4


def use_small_data(patch):
    """Blurred classes, so that nothing is learnt in one step and no run is ever perfect."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(120) % CLASSES)
    images = rng.normal(size=(120, 6, 6, 1)) + np.eye(6)[labels][:, :, None, None]
    images = images.astype("float32")
    arrays = (images[:100], labels[:100]), (images[100:], labels[100:])
    patch.setattr(data, "load", lambda name, data_dir=None: arrays)
    patch.setattr(models, "get", lambda name: functools.partial(MLP, hidden_units=(16,)))
    return arrays


@pytest.fixture(autouse=True, scope="module")
def small_data():
    with pytest.MonkeyPatch.context() as patch:
        yield use_small_data(patch)


def options(tmp_path, **changes):
    values = dict(
        model="mlp", normalization="none", regimes="sb,lb,lb-diagonal", epochs=3,
        large_batch_size=40, small_batch_size=10,
        learning_rate="0.01", seeds="1", output=str(tmp_path / "run"), quiet=True,
    )  # fmt: skip
    return Options(**{**values, **changes})


def load(path):
    return json.loads(path.read_text())


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


TIMES = {"seconds", "step_seconds", "step_time_vs_lb", "first_steps"}


def measured(value):
    """What was measured, without the times."""
    if isinstance(value, dict):
        return {key: measured(entry) for key, entry in value.items() if key not in TIMES}
    return [measured(entry) for entry in value] if isinstance(value, list) else value


def assert_same_results(folder, other):
    names = {path.relative_to(folder) for path in folder.rglob("*.json")}
    assert names == {path.relative_to(other) for path in other.rglob("*.json")}
    for name in names - {pathlib.Path("config.json")}:
        assert measured(load(folder / name)) == measured(load(other / name)), name


@pytest.fixture(scope="module")
def finished_once(small_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    compare.compare(options(folder, regimes="lb", epochs=1))
    return folder


@pytest.fixture
def finished(finished_once, tmp_path):
    """The options of a finished comparison, which lies in `tmp_path`."""
    shutil.copytree(finished_once, tmp_path, dirs_exist_ok=True)
    return options(tmp_path, regimes="lb", epochs=1)


def test_the_picture_shows_the_epochs_that_were_evaluated(tmp_path, monkeypatch):
    drawn = []

    class Kept(comparison.Figure):
        def savefig(self, *args, **kwargs):
            drawn.append(self)
            super().savefig(*args, **kwargs)

    monkeypatch.setattr(comparison, "Figure", Kept)
    compare.compare(options(tmp_path, regimes="lb", epochs=5, validation_freq=2))
    epochs = load(tmp_path / "run" / "lb-seed0" / "history.json")["epochs"]
    expected = {e["epoch"]: 100 * e["test_accuracy"] for e in epochs if "test_accuracy" in e}
    assert list(expected) == [2, 4]
    _, accuracies = drawn[0].axes
    assert len(accuracies.lines) == 2  # the seed and the mean
    for line in accuracies.lines:
        assert dict(zip(*line.get_data(), strict=True)) == pytest.approx(expected)


def test_compare_writes_everything(tmp_path, capsys):
    # SB's last batch of an epoch is smaller, as LB's is in other tests.
    chosen = options(tmp_path, seeds="4,7", epochs=2, large_batch_size=50, small_batch_size=30)
    summary = compare.compare(chosen)
    folder = tmp_path / "run"
    assert list(summary) == ["sb", "lb", "lb-diagonal"]
    assert [row["steps"] for row in summary.values()] == [8, 4, 4]
    assert summary["lb"]["step_time_vs_lb"] == 1
    assert load(folder / "summary.json") == summary
    config = load(folder / "config.json")
    assert config["options"] == json.loads(json.dumps(chosen.resolved()))
    assert config["versions"]["keras"] == keras.__version__
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "LB + diagonal (exact)" in (folder / "table.md").read_text()
    assert "±" in capsys.readouterr().out
    accuracies = [load(folder / f"lb-seed{s}" / "record.json")["test_accuracy"] for s in (4, 7)]
    assert summary["lb"]["test_accuracy"] == pytest.approx(np.mean(accuracies))
    assert summary["lb"]["test_accuracy_std"] == pytest.approx(np.std(accuracies, ddof=1))
    run = folder / "lb-diagonal-seed4"
    model = keras.saving.load_model(run / "model.keras")
    split = splits.load(chosen)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    loss = model.evaluate(split.x_train, split.y_train, verbose=0)
    assert loss == pytest.approx(load(run / "record.json")["train_loss"], rel=1e-5)
    assert not list(folder.rglob("unfinished*")) + list(folder.rglob("checkpoint*"))


def interrupt(monkeypatch, epoch, error=KeyboardInterrupt):
    original = Journal.on_train_batch_end

    def stop(self, batch, logs=None):
        original(self, batch, logs)
        if self.epoch == epoch and batch == 1:
            raise error

    monkeypatch.setattr(Journal, "on_train_batch_end", stop)


def with_dropout(num_classes, input_shape):
    return keras.Sequential([
        keras.Input(input_shape),
        keras.layers.Flatten(),
        keras.layers.Dense(8, activation="relu"),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(num_classes),
    ])


@pytest.mark.parametrize("regime", ["lb", "lb-diagonal", "lb-kfac", "batch-change"])
def test_interrupted_equals_uninterrupted(tmp_path, monkeypatch, capsys, regime):
    monkeypatch.setattr(models, "get", lambda name: with_dropout)
    changes = {
        "regimes": regime, "noise_fraction": 0.67, "update_every": 2, "large_batch_size": 50,
    }  # fmt: skip
    whole, parts = (options(tmp_path, output=str(tmp_path / n), **changes) for n in ("a", "b"))
    compare.compare(whole)
    with monkeypatch.context() as patch:
        interrupt(patch, epoch=1)
        with pytest.raises(KeyboardInterrupt):
            compare.compare(parts)
    first, second = (tmp_path / n / f"{regime}-seed0" for n in ("a", "b"))
    assert len(load(second / "history.json")["epochs"]) == 1
    compare.compare(parts)
    assert "Continues after epoch 1" in capsys.readouterr().out
    assert [e["epoch"] for e in load(second / "history.json")["epochs"]] == [1, 2, 3]
    assert_same_results(tmp_path / "b", tmp_path / "a")
    weights = [
        keras.saving.load_model(run / "model.keras").get_weights() for run in (first, second)
    ]
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_finished_runs_are_not_trained_again(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(keras.Model, "fit", None)
    assert compare.compare(finished) == load(tmp_path / "run" / "summary.json")
    assert capsys.readouterr().out.count("not trained again") == 1


def test_other_options_are_refused(finished, tmp_path):
    before = tree(tmp_path)
    with pytest.raises(compare.CompareError) as caught:
        compare.compare(options(tmp_path, regimes="lb", epochs=2, momentum=0.5))
    message = str(caught.value)
    assert "epochs (there 1, now 2)" in message and "momentum (there 0.9, now 0.5)" in message
    assert "--output" in message and "large_batch_size" not in message
    assert tree(tmp_path) == before


def test_results_of_unknown_options_are_refused(finished, tmp_path):
    (tmp_path / "run" / "config.json").unlink()
    before = tree(tmp_path)
    with pytest.raises(compare.CompareError, match=r"config\.json is missing, so the options of"):
        compare.compare(options(tmp_path, regimes="lb", epochs=1, momentum=0.5))
    (tmp_path / "run" / "summary.json").unlink()  # interrupted before it was written
    with pytest.raises(compare.CompareError, match=r"lb-seed0/history\.json are unknown"):
        compare.compare(finished)
    assert before.keys() - tree(tmp_path).keys() == {tmp_path / "run" / "summary.json"}


def test_two_comparisons_in_one_folder_are_refused(finished, tmp_path):
    other = pytest.raises(compare.CompareError, match="Another `noisylb` process works in")
    with folders.alone(tmp_path / "run"), other:
        compare.compare(finished)
    assert compare.compare(finished)


def test_a_folder_takes_more_seeds_and_regimes(finished, tmp_path, capsys):
    more = dataclasses.replace(finished, regimes="lb,sb", seeds="2")
    summary = compare.compare(more)
    assert capsys.readouterr().out.count("not trained again") == 1
    recorded = load(tmp_path / "run" / "config.json")["options"]
    assert (recorded["regimes"], recorded["seeds"]) == (["lb", "sb"], [0, 1])
    fresh = dataclasses.replace(more, output=str(tmp_path / "fresh"))
    assert measured(compare.compare(fresh)) == measured(summary)
    assert_same_results(tmp_path / "run", tmp_path / "fresh")
    assert list(compare.compare(finished)) == ["lb"]  # fewer are shown, and none is forgotten
    assert load(tmp_path / "run" / "config.json")["options"] == recorded


def test_a_folder_takes_a_regime_with_a_rate_of_its_own(finished, tmp_path, monkeypatch):
    config, reached = tmp_path / "run" / "config.json", []
    monkeypatch.setattr(compare, "train_all", lambda *arguments: reached.append(1) or 1 / 0)

    def call(regimes, rates):
        before = config.read_bytes()
        reached.clear()
        with pytest.raises((ZeroDivisionError, compare.CompareError)) as caught:
            compare.compare(dataclasses.replace(finished, regimes=regimes, learning_rate=rates))
        assert reached or config.read_bytes() == before
        return "" if reached else str(caught.value)

    own = "sb=0.01,lb=0.01,lb-diagonal=0.02"
    assert "learning_rate (there" in call("lb", "sb=0.01,lb=0.02")
    assert "learning_rate (there" in call("lb-diagonal", "sb=0.02,lb=0.01")  # λ is matched to it
    assert call("lb,lb-diagonal", own) == ""
    recorded = load(config)["options"]
    assert recorded["learning_rate"] == {"sb": 0.01, "lb": 0.01, "lb-diagonal": 0.02}
    assert recorded["regimes"] == ["lb", "lb-diagonal"]
    assert "learning_rate (there" in call("lb-diagonal", "0.01")
    assert call("lb", "0.01") == ""
    assert load(config)["options"] == recorded
    assert call("lb-trace", "sb=0.01,lb=0.01,lb-trace=0.05,lb-diagonal=0.02") == ""
    assert load(config)["options"]["learning_rate"] == {
        **recorded["learning_rate"],
        "lb-trace": 0.05,
    }


def test_divergence_is_reported_and_stops_no_other(tmp_path, capsys):
    chosen = options(tmp_path, regimes="sb,lb", learning_rate="sb=1e30,lb=0.01")
    summary = compare.compare(chosen)
    assert summary["sb"]["diverged_epochs"] == [1] and summary["sb"]["test_accuracy"] is None
    assert summary["lb"]["diverged_epochs"] == [] and summary["lb"]["steps"] == 9
    assert "diverged at epoch 1" in (tmp_path / "run" / "table.md").read_text()
    capsys.readouterr()
    assert compare.compare(chosen) == summary
    assert capsys.readouterr().out.count("not trained again") == 2


@pytest.mark.parametrize("name", ["record.json", "history.json"])
def test_damaged_file_is_set_aside(finished, tmp_path, capsys, name):
    summary = load(tmp_path / "run" / "summary.json")
    path = tmp_path / "run" / "lb-seed0" / name
    path.write_text('{"epochs": [')
    again = compare.compare(finished)
    assert path.with_name(name + ".aside").read_text() == '{"epochs": ['
    assert "cannot be read" in capsys.readouterr().out
    assert again["lb"]["train_loss"] == summary["lb"]["train_loss"]
    assert len(load(path.with_name("history.json"))["epochs"]) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("test_accuracy", 1.5), ("train_loss", "low"), ("steps", "NaN")]
)
def test_record_of_impossible_numbers_is_set_aside(finished, tmp_path, capsys, name, value):
    summary = load(tmp_path / "run" / "summary.json")
    path = tmp_path / "run" / "lb-seed0" / "record.json"
    path.write_text(json.dumps({**load(path), name: value}).replace('"NaN"', "NaN"))
    again = compare.compare(finished)
    assert "record.json cannot be read" in capsys.readouterr().out
    assert measured(again) == measured(summary)


def test_damaged_checkpoint_starts_again(finished, tmp_path, capsys):
    folder, summary = tmp_path / "run", load(tmp_path / "run" / "summary.json")
    (folder / "lb-seed0" / "record.json").unlink()  # interrupted after its only epoch
    checkpoint(folder / "lb-seed0", 1).write_bytes(b"damaged")
    again = compare.compare(finished)
    assert "starts again" in capsys.readouterr().out
    assert again["lb"]["train_loss"] == summary["lb"]["train_loss"]
    assert again["lb"]["steps"] == summary["lb"]["steps"] == 3


def test_damaged_config_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(compare.CompareError, match=r"config\.json cannot be read"):
        compare.compare(options(tmp_path))
    assert (tmp_path / "run" / "config.json").read_text() == "{"


def test_the_seconds_leave_out_the_graphs():
    """An interrupted training of 3 and 3 updates; each start builds a graph for 9 s."""
    steps = [10.0, 1.0, 1.0, 10.0, 1.0, 1.0]
    history = {"step_seconds": steps, "first_steps": [0, 3], "epochs": [{"seconds": 12.5}] * 2}
    assert train.seconds_without_graphs(history) == 25 - 18
    late = {**history, "first_steps": [0, 3, 6]}  # started again after the last epoch
    assert train.seconds_without_graphs(late) == 25 - 18
    assert train.seconds_without_graphs({**history, "first_steps": range(6)}) is None


def test_loss_of_each_batch(tmp_path):
    split = splits.load(options(tmp_path))
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(CLASSES)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss=loss)
    history = {"epochs": [], "batch_loss": [], "step_seconds": [], "first_steps": []}
    journal = Journal(tmp_path, history, lambda size: split.batches(size, 3, augment=False))
    model.fit(journal.data(30), epochs=2, verbose=0, shuffle=False, callbacks=[journal])
    batches = (splits.Batches(split.x_train, split.y_train, 30, 3, epoch) for epoch in (0, 1))
    expected = [float(loss(y, model(x))) for epoch in batches for x, y in epoch.dataset()]
    np.testing.assert_allclose(history["batch_loss"], expected, rtol=1e-4)


@pytest.mark.parametrize("epoch_seconds, written", [(10, [1, 4, 7, 8]), (31, range(1, 9))])
def test_short_epochs_are_not_all_written(tmp_path, monkeypatch, epoch_seconds, written):
    """A write takes a second here, and the next one comes after thirty."""
    monkeypatch.setattr(journal_module, "PAUSE", 30)
    now, found = [0.0], []
    monkeypatch.setattr(journal_module.time, "perf_counter", lambda: now[0])
    journal = Journal(tmp_path, {"epochs": [], "first_steps": [], "batch_loss": []}, None)
    journal.ended = journal.began = 0.0

    def write(epochs):
        found.append(epochs)
        now[0] += 1

    monkeypatch.setattr(journal, "write", write)
    journal.set_params({"epochs": 8})
    journal.on_train_begin()
    for epoch in range(8):
        now[0] += epoch_seconds
        journal.on_epoch_end(epoch, {})
    assert found == list(written)


def test_an_epoch_that_was_not_written_is_trained_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(journal_module, "PAUSE", 1e9)
    whole, parts = (
        options(tmp_path, output=str(tmp_path / n), regimes="lb-diagonal", epochs=4) for n in "ab"
    )
    compare.compare(whole)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 3)
        compare.compare(parts)
    capsys.readouterr()
    compare.compare(parts)
    assert "Continues after epoch 1." in capsys.readouterr().out
    assert_same_results(tmp_path / "a", tmp_path / "b")


def test_a_number_that_is_not_finite_is_null_in_json(tmp_path):
    records.write_json(tmp_path / "a.json", {"loss": [1.0, float("nan")], "n": float("inf")})
    assert load(tmp_path / "a.json") == {"loss": [1.0, None], "n": None}
