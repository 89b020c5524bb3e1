"""The workers of a cluster: one process each, all of them in one strategy."""

import atexit
import contextlib
import re
import socket
import time
from typing import Any

import tensorflow as tf


def multi_worker_strategy(
    cluster_resolver: Any = None, *, timeout: float = 300.0
) -> tf.distribute.MultiWorkerMirroredStrategy:
    """A `tf.distribute.MultiWorkerMirroredStrategy`, once all its workers have started.

    TensorFlow alone waits without limit for a worker that never starts. Call it in every worker,
    before anything else of Keras or TensorFlow: importing them is allowed, making a layer, an
    optimizer or a tensor is not.

    Args:
        cluster_resolver: a `tf.distribute.cluster_resolver.ClusterResolver` that names all workers
            and this one, such as `SlurmClusterResolver()`. `None` reads the environment variable
            `TF_CONFIG`.
        timeout: seconds to wait for the other workers.

    Returns:
        The strategy. Make the model and compile it in its `scope()`.

    Raises:
        ValueError: if no cluster is named, or not which of its workers this is.
        RuntimeError: if TensorFlow has started already.
        TimeoutError: if a worker does not start in time; it names the worker.

    Example:
    ```python
    # TF_CONFIG='{"cluster": {"worker": ["host1:2222", "host2:2222"]},
    #             "task": {"type": "worker", "index": 0}}'
    strategy = keras_noisylb.multi_worker_strategy()
    with strategy.scope():
        model = keras_noisylb.NoisyModel(...)
        model.compile(...)
    ```
    """
    resolver = cluster_resolver or tf.distribute.cluster_resolver.TFConfigClusterResolver()
    workers = addresses(resolver.cluster_spec())
    own = (resolver.task_type, resolver.task_id)
    if own not in workers:
        raise ValueError(
            "A cluster names the addresses of all workers, and which of them this process is: set "
            'TF_CONFIG=\'{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": '
            '"worker", "index": 0}}\', or pass a cluster_resolver. Received: '
            f"workers {list(workers.values())}, task {own}"
        )
    check_not_started()
    meet(workers, own, timeout)
    first, *others = workers
    if own == first:
        atexit.register(wait_until_left, [workers[key] for key in others])
    return tf.distribute.MultiWorkerMirroredStrategy(resolver)


def addresses(cluster_spec):
    """The addresses of the workers of a cluster.

    Args:
        cluster_spec: a `tf.train.ClusterSpec`.

    Returns:
        Dictionary from (job, number) to "host:port", the chief first.
    """
    jobs = [job for job in ("chief", "worker") if job in cluster_spec.jobs]
    return {
        (job, index): cluster_spec.task_address(job, index)
        for job in jobs
        for index in cluster_spec.task_indices(job)
    }


def several_workers(strategy):
    """Whether a strategy joins the processes of a cluster, also if that has one worker only.

    Args:
        strategy: a `tf.distribute.Strategy`.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return False
    return bool(strategy.cluster_resolver.cluster_spec().as_dict())


def is_chief(strategy):
    """Whether this process is the one that writes files for all.

    Args:
        strategy: a strategy with several workers.
    """
    resolver = strategy.cluster_resolver
    first = next(iter(addresses(resolver.cluster_spec())))
    return (resolver.task_type, resolver.task_id) == first


class LostWorkerError(RuntimeError):
    """A training that cannot go on without a worker that was lost.

    Args:
        names: of the lost workers, with their addresses.
    """

    def __init__(self, names):
        super().__init__(
            f"Training cannot go on, because a worker was lost: {names}. Start all workers again. "
            "With a keras.callbacks.BackupAndRestore in a folder that all of them can read they "
            "continue with the epoch that was interrupted."
        )
        self.names = names


@contextlib.contextmanager
def lost_workers_named(strategy):
    """Name the lost worker if a collective operation of TensorFlow fails.

    Args:
        strategy: the strategy of the model.

    Raises:
        LostWorkerError: if a worker was lost.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if not several_workers(strategy) or "ollective" not in error.message:
            raise
        resolver = strategy.cluster_resolver
        workers = addresses(resolver.cluster_spec())
        found = re.findall(r"/job:(\w+)/replica:\d+/task:(\d+)", error.message)
        lost = {(job, int(index)) for job, index in found} & set(workers)
        lost -= {(resolver.task_type, resolver.task_id)}
        if not lost and "CoordinationService" in error.message:  # which the chief runs
            lost = {next(iter(workers))}
        names = ", ".join(f"{job} {n} at {workers[job, n]}" for job, n in sorted(lost))
        raise LostWorkerError(names or "TensorFlow names none") from error


def check_not_started():
    """Check that a strategy with several workers can still be made.

    Raises:
        RuntimeError: if not.
    """
    threads = tf.config.threading.get_inter_op_parallelism_threads()
    try:  # what TensorFlow refuses once its devices are fixed
        tf.config.threading.set_inter_op_parallelism_threads(threads + 1)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError as error:
        raise RuntimeError(
            "TensorFlow has started already, and cannot join other workers any more. Call "
            "multi_worker_strategy() first: before any tensor, layer, optimizer or other strategy "
            "is made. Imports are allowed before it."
        ) from error


def meet(workers, own, timeout):
    """Wait until every worker can be reached.

    Args:
        workers: as `addresses` gives them.
        own: the key of this one.
        timeout: seconds.

    Raises:
        TimeoutError: if there are workers that cannot be reached.
        OSError: if the own port is taken.
    """
    deadline = time.monotonic() + timeout
    missing = {key: address for key, address in workers.items() if key != own}
    # The other workers may look before TensorFlow's server listens.
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(("", int(workers[own].rpartition(":")[2])))
        listening.listen(len(workers))
        while missing:
            missing = {key: address for key, address in missing.items() if not _answers(address)}
            if missing and time.monotonic() > deadline:
                names = ", ".join(f"{job} {n} at {a}" for (job, n), a in missing.items())
                raise TimeoutError(
                    f"These workers cannot be reached after {timeout:g} seconds: {names}. "
                    "Start them within this time, with the same list of addresses."
                )
            time.sleep(0.2 if missing else 0)


def wait_until_left(addresses, timeout=30.0):
    """Wait until the other workers have ended: a worker without its chief may hang for minutes.

    Args:
        addresses: of the other workers.
        timeout: seconds after which the chief ends in any case.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and any(_answers(address) for address in addresses):
        time.sleep(0.2)


def _answers(address):
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True
