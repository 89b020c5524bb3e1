"""`noisylb train --workers`: what it refuses, and what several processes write."""

import json
import pathlib

import keras
import numpy as np
import pytest
from clusters import assert_ended, cluster
from test_cli import invoke
from test_compare import assert_same_results, load, use_small_data

from keras_noisylb.experiments import cluster as experiments
from keras_noisylb.experiments import compare
from noisylb.protocol.options import TrainOptions

SCRIPT = pathlib.Path(__file__).with_name("train_worker.py")
TWO = ("--workers", "a:1,b:2")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (TWO, "--task received None, expected the number of this worker in --workers, from 0 to 1"),
        (("--task", "0"), "--task received 0, expected none, or --workers too"),
        ((*TWO, "--task", "2"), "--task received 2, expected the number of this worker"),
        ((*TWO, "--task", "-1"), "--task received -1, expected the number of this worker"),
        *(
            (("--workers", workers, "--task", "0"), f"--workers received {workers!r}, expected dif")
            for workers in ("a:1,b", "a:1,:2", "a:1,", "a:1,b:0", "a:1,b:65536", "a:1,b:x", "::1:2",
                            "a:1,a:1", "a:1,b c:2", "")
        ),
    ],
)  # fmt: skip
def test_bad_workers_are_refused_in_one_line(tmp_path, arguments, words):
    result = invoke("train", "--output", str(tmp_path / "run"), *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("noisylb: error: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("configured", ["{", "{}", '{"cluster": {"worker": ["a:1"]}, "task": 3}'])
def test_another_cluster_in_the_environment_is_refused(tmp_path, monkeypatch, configured):
    monkeypatch.setenv("TF_CONFIG", configured)
    result = invoke("train", *TWO, "--task", "1", "--output", str(tmp_path / "run"))
    assert result.exit_code == 2
    assert f"the variable TF_CONFIG names another cluster or task: {configured}" in result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


def test_the_same_cluster_in_the_environment():
    own = {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}
    assert experiments.is_same(json.dumps({**own, "environment": "cloud"}), own)
    own["task"]["index"] = 0
    assert not experiments.is_same(json.dumps({**own, "task": {"type": "chief"}}), own)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError("These workers cannot be reached"), "These workers cannot be reached"),
        (OSError(98, "Address already in use"), "Worker 1 cannot listen at b:2: "),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_refused(tmp_path, monkeypatch, error, words):
    def fail(resolver):
        assert (resolver.task_type, resolver.task_id) == ("worker", 1)
        assert resolver.cluster_spec().as_dict() == {"worker": ["a:1", "b:2"]}
        raise error

    monkeypatch.setattr(experiments, "multi_worker_strategy", fail)
    result = invoke("train", *TWO, "--task", "1", "--output", str(tmp_path / "run"))
    assert result.exit_code == 2 and words in result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


def test_addresses_of_workers():
    options = TrainOptions(workers="host1:2222, [fe80::1]:65535", task=1)
    assert options.addresses == ("host1:2222", "[fe80::1]:65535")
    assert options.resolved()["workers"] == 2 and "task" not in options.resolved()


def small_file(folder):
    with pytest.MonkeyPatch.context() as patch:
        (x_train, y_train), (x_test, y_test) = use_small_data(patch)
    path = folder / "small.npz"
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


def arguments(folder, **changes):
    values = dict(
        dataset=str(small_file(folder)), model="mlp", normalization="none", regimes="lb", epochs=2,
        large_batch_size=40, small_batch_size=10, learning_rate="0.01", output=str(folder / "run"),
    )  # fmt: skip
    return {**values, **changes}


def train(folder, options, killed=None, of_task=None):
    """The workers of `noisylb train`, not yet awaited.

    Args:
        folder: for what they print.
        options: dictionary of options.
        killed: number of a worker that dies.
        of_task: dictionary of the options of worker 1 that are different.
    """

    def command(task, ports):
        own = {**options, **((task == 1 and of_task) or {})}
        own["regime"] = own.pop("regimes")
        flags = [(f"--{name.replace('_', '-')}", str(value)) for name, value in own.items()]
        return [
            SCRIPT, "killed" if task == killed else "whole", "train",
            *("--workers", ",".join(f"localhost:{port}" for port in ports), "--task", str(task)),
            *(part for flag in flags for part in flag),
        ]  # fmt: skip

    return cluster(2, command, folder)


@pytest.mark.slow
def test_two_workers_train_as_one_process(tmp_path, float64):
    options = arguments(tmp_path)
    with train(tmp_path, options) as processes:
        compare.compare(TrainOptions(**{**options, "output": str(tmp_path / "alone")}))
        assert_ended(processes, tmp_path)
    alone, together = (load(tmp_path / n / "lb-seed0" / "record.json") for n in ("alone", "run"))
    assert together["steps"] == alone["steps"]
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        assert together[name] == pytest.approx(alone[name], rel=1e-7), name
    models = (
        keras.saving.load_model(tmp_path / n / "lb-seed0" / "model.keras") for n in ("alone", "run")
    )
    for one, two in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-7, atol=1e-9)
    first, second = ((tmp_path / f"printed-{task}").read_text() for task in range(2))
    assert "Epoch 2/2" in first and "Results: " in first
    assert "Worker 1 of 2 has finished. Worker 0 at localhost:" in second
    assert not any(word in second for word in ("Epoch", "Results", "Next"))


@pytest.mark.slow
def test_workers_continue_after_one_was_killed(tmp_path):
    options = arguments(tmp_path, normalization="ghost", regimes="lb-diagonal", epochs=3)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    options["output"] = str(tmp_path / "whole" / "run")
    with train(tmp_path / "whole", options) as processes:
        assert_ended(processes, tmp_path / "whole")
    options["output"] = str(tmp_path / "parts" / "run")
    with train(tmp_path / "parts", options, killed=1) as (first, second):
        assert first.wait() == 2 and second.wait() < 0
    error = (tmp_path / "parts" / "printed-0").read_text().splitlines()
    (error,) = [line for line in error if line.startswith("noisylb: error: ")]
    assert "A worker was lost: worker 1 at localhost:" in error
    run = "run/lb-diagonal-seed0"
    assert len(load(tmp_path / "parts" / run / "history.json")["epochs"]) == 1
    with train(tmp_path / "parts", options) as processes:
        assert_ended(processes, tmp_path / "parts")
    assert "Continues after epoch 1." in (tmp_path / "parts" / "printed-0").read_text()
    assert_same_results(tmp_path / "whole" / "run", tmp_path / "parts" / "run")
    one, two = (
        keras.saving.load_model(tmp_path / n / run / "model.keras").get_weights()
        for n in ("whole", "parts")
    )
    for value, other in zip(one, two, strict=True):
        np.testing.assert_array_equal(value, other)


@pytest.mark.slow
def test_workers_of_different_options_are_refused(tmp_path):
    with train(tmp_path, arguments(tmp_path), of_task={"epochs": 3}) as processes:
        assert_ended(processes, tmp_path, status=2)
    for task in range(2):
        printed = (tmp_path / f"printed-{task}").read_text()
        assert "different options: epochs (worker 0 2, worker 1 3)." in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_one_worker_cannot_do_is_said_by_all(tmp_path):
    missing = str(tmp_path / "missing.npz")
    with train(tmp_path, arguments(tmp_path), of_task={"dataset": missing}) as processes:
        assert_ended(processes, tmp_path, status=2)
    assert "Worker 1 at localhost:" in (tmp_path / "printed-0").read_text()
    for task in range(2):
        assert missing in (tmp_path / f"printed-{task}").read_text()
    assert not (tmp_path / "run").exists()
