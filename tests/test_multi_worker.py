"""Training by several processes that are joined by MultiWorkerMirroredStrategy.

What trains in several processes is slow: `pytest -m slow tests/test_multi_worker.py`.
"""

import json
import pathlib
import socket

import keras
import numpy as np
import pytest
import tensorflow as tf
import worker_checks as checks
from clusters import assert_ended, cluster, reserved_ports
from oracle import on_devices, one_by_one
from small_nets import CROSSENTROPY

from keras_noisylb.training import worker_callbacks, workers

WORKER = pathlib.Path(__file__).with_name("worker.py")


def train(part, folder, number=2):
    """Workers that do a part of `worker.py`, not yet awaited."""
    return cluster(number, lambda task, ports: [WORKER, str(task), folder, part, *ports], folder)


def assert_workers_agree_with(expected, folder, name, number=2):
    """All workers hold the same numbers, bit by bit, and those of one process."""
    found = [np.load(folder / f"{name}-{task}.npz") for task in range(number)]
    assert set(expected) == set(found[0])
    for key, value in expected.items():
        for other in found[1:]:
            np.testing.assert_array_equal(other[key], found[0][key], err_msg=f"{name}: {key}")
        np.testing.assert_allclose(
            found[0][key], value, rtol=1e-7, atol=1e-9, err_msg=f"{name}: {key}"
        )


def assert_noise_has_the_covariance_of_the_large_batch(updates, start):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    model.set_weights([start[:15].reshape(5, 3), start[15:]])
    x, y = checks.X[: checks.M], checks.Y[: checks.M]
    rows = np.concatenate(
        [np.reshape(g, (checks.M, -1)) for g in one_by_one(model, CROSSENTROPY, x, y)], axis=1
    )
    noise, steps = updates - rows.mean(0), len(updates)
    variance = (1 / checks.M_S - 1 / checks.M) * (rows**2).mean(0)
    assert (np.abs(noise.mean(0)) < 5 * np.sqrt(variance / steps)).all()
    scores = (noise**2).mean(0) / variance - 1
    assert (np.abs(scores) < 5 * np.sqrt(2 / steps)).all()
    # The same noise on both workers would double the variance.
    assert not (np.abs(scores - 1) < 5 * np.sqrt(2 / steps) * 2).any()
    correlations = np.corrcoef(noise.T)[np.triu_indices(noise.shape[1], 1)]
    assert (np.abs(correlations) < 5 / np.sqrt(steps)).all()


@pytest.mark.filterwarnings("ignore:A NoisyModel .* trains without noise")
@pytest.mark.slow
def test_two_workers_train_as_two_devices(tmp_path, float64):
    with train("CHECKS", tmp_path) as processes:
        expected = {name: check(on_devices(2)) for name, check in checks.CHECKS.items()}
        assert_ended(processes, tmp_path)
    for name, arrays in expected.items():
        assert_workers_agree_with(arrays, tmp_path, name)
    assert len(set(expected["whole"]["history of loss"])) == 2
    assert_noise_has_the_covariance_of_the_large_batch(**np.load(tmp_path / "many steps-0.npz"))

    found, other = (json.loads((tmp_path / f"found-{task}.json").read_text()) for task in range(2))
    assert found == other
    assert found["noisy"] == found["plain"] and len(found["plain"]) > 0
    # Noise for the parameters is summed over the workers, as the gradients are.
    gradients = 8 * (5 * 6 + 2 * 6 + 6 * 3 + 3)
    more = list(found["update"])
    for operation in found["plain"]:
        more.remove(operation)
    assert {kind for kind, _ in more} == {"CollectiveReduceV2"}
    assert sum(size for _, size in more) == gradients
    several_steps, xla, different, unseeded = found["refused"]
    assert "`steps_per_execution` under MultiWorkerMirroredStrategy" in several_steps
    assert "`jit_compile` under MultiWorkerMirroredStrategy" in xla
    assert "must begin with the same state" in different and "worker 1: epoch 0" in different
    assert "keras.utils.set_random_seed" in unseeded


def assert_is_named(folder, lost, told):
    """A worker that was lost is named by another one."""
    message = (folder / f"error-{told}.txt").read_text()
    assert f"worker was lost: worker {lost} at localhost:" in message
    assert "BackupAndRestore" in message


@pytest.mark.slow
@pytest.mark.parametrize("failure", ["SIGKILL-0", "SIGSTOP-0", "SIGSTOP-1"])
def test_a_worker_that_fails_is_named(tmp_path, failure):
    lost = int(failure[-1])
    with train(failure, tmp_path, 3) as processes:
        for told in {0, 1, 2} - {lost}:
            processes[told].wait()
            assert_is_named(tmp_path, lost, told)
        # Only a frozen one is still there.
        assert (processes[lost].poll() is None) == failure.startswith("SIGSTOP")


@pytest.mark.slow
def test_a_killed_worker_is_named_and_a_restart_goes_on(tmp_path, float64):
    with train("SIGKILL-1", tmp_path) as processes:
        whole = checks.backed_up(on_devices(2), tmp_path / "whole")
        for process in processes:
            process.wait()
    assert_is_named(tmp_path, 1, 0)
    with train("resumed", tmp_path) as processes:
        assert_ended(processes, tmp_path)
    steps = len(whole["steps"]) // checks.EPOCHS
    rest = {key: values[steps if key == "steps" else 1 :] for key, values in whole.items()}
    assert_workers_agree_with(rest, tmp_path, "resumed")
    assert not (tmp_path / "backup").exists()  # removed by the chief at the end


def test_a_worker_that_never_starts_is_named():
    with reserved_ports(2) as ports:
        spec = tf.train.ClusterSpec({"worker": [f"localhost:{port}" for port in ports]})
        with pytest.raises(TimeoutError, match=rf"0.1 seconds: worker 1 at localhost:{ports[1]}\."):
            workers.meet(workers.addresses(spec), ("worker", 0), timeout=0.1)


def test_workers_that_have_started_meet():
    with reserved_ports(2) as ports, socket.create_server(("", 0)) as other:
        own, port = ports[0], other.getsockname()[1]
        spec = tf.train.ClusterSpec({
            "chief": [f"localhost:{own}"],
            "worker": [f"localhost:{port}"],
        })
        workers.meet(workers.addresses(spec), ("chief", 0), timeout=60)


def test_a_strategy_that_comes_too_late_is_refused():
    tf.constant(1.0)
    spec = tf.train.ClusterSpec({"worker": ["localhost:1", "localhost:2"]})
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        spec, task_type="worker", task_id=0
    )
    with pytest.raises(RuntimeError, match=r"Call multi_worker_strategy\(\) first"):
        workers.multi_worker_strategy(resolver)


def test_a_process_outside_of_the_cluster_is_refused(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match="set TF_CONFIG="):
        workers.multi_worker_strategy()


def test_a_backup_that_several_fits_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_callbacks, "several_workers", lambda strategy: True)
    backup = keras.callbacks.BackupAndRestore(tmp_path)
    shared = keras.callbacks.CallbackList([backup])
    with pytest.raises(ValueError, match="BackupAndRestore works in one call of `fit`"):
        worker_callbacks.for_workers([shared], None, shuffled=False)


def test_keras_builds_models_by_the_method_that_is_replaced(monkeypatch):
    built = []
    monkeypatch.setattr(
        keras.Model,
        "_maybe_symbolic_build",
        lambda model, iterator=None, data_batch=None: built.append((type(iterator), data_batch)),
    )
    model = checks.compiled(on_devices(1), checks.NOISES["isotropic"], run_eagerly=True)
    model.fit(checks.X, checks.Y, checks.M, verbose=0)
    ((iterator, batch),) = built
    assert hasattr(iterator, "__next__") and batch is None


@pytest.mark.slow
def test_keras_still_cannot_train_with_several_workers(tmp_path):
    script = pathlib.Path(__file__).parent.parent / "docs" / "upstream" / "multi_worker.py"
    with cluster(2, lambda task, ports: [script, str(task), *ports], tmp_path) as processes:
        for task, process in enumerate(processes):
            assert process.wait() != 0
            assert "PerReplica" in (tmp_path / f"printed-{task}").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:A NoisyModel .* trains without noise")
@pytest.mark.parametrize("number", [2, 3])
def test_every_noise_on_several_workers(tmp_path, float64, number):
    with train("MANY_CHECKS", tmp_path, number) as processes:
        expected = {name: check(on_devices(number)) for name, check in checks.MANY_CHECKS.items()}
        assert_ended(processes, tmp_path)
    for name, arrays in expected.items():
        assert_workers_agree_with(arrays, tmp_path, name, number)
