"""`noisylb train`, alone or by several workers, of which the first writes the results."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import tempfile
import zipfile

import tensorflow as tf
from rich.console import Console

from keras_noisylb.experiments import compare, folders, records
from keras_noisylb.experiments.records import CompareError
from keras_noisylb.training.exchange import of_all
from keras_noisylb.training.workers import (
    LostWorkerError,
    lost_workers_named,
    multi_worker_strategy,
)

CONTINUES = ("record.json", "history.json", "checkpoint-*.keras")  # by which a run continues


def train(options, confirm=None):
    """Train as `compare` does, alone or as one worker of a cluster.

    Args:
        options: `noisylb.protocol.options.TrainOptions`.
        confirm: as in `compare`. It is not called with several workers, whose time is unknown.

    Returns:
        As `compare`; `None` for a worker other than the first.

    Raises:
        CompareError: if it cannot be run as asked, or if a worker was lost.
        OSError: if the results cannot be written; what was finished is kept.
    """
    if options.workers is None:
        return compare.compare(options, confirm=confirm)
    strategy = join(options)
    try:
        with lost_workers_named(strategy), tempfile.TemporaryDirectory() as temporary:
            return work(options, strategy, pathlib.Path(temporary))
    except LostWorkerError as error:
        raise CompareError(
            f"A worker was lost: {error.names}. Start all workers again with the same commands: "
            "they continue after the last epoch whose state was written."
        ) from error


def join(options):
    """The strategy of all workers, once they have started.

    Args:
        options: `TrainOptions` with workers.

    Raises:
        CompareError: if the environment names another cluster, or if not all workers can be
            reached.
    """
    cluster = {"worker": list(options.addresses)}
    configured = os.environ.get("TF_CONFIG")
    own = {"cluster": cluster, "task": {"type": "worker", "index": options.task}}
    if configured and not is_same(configured, own):
        raise CompareError(
            f"--workers and --task received {options.workers} and {options.task}, but the variable "
            f"TF_CONFIG names another cluster or task: {configured}. Unset TF_CONFIG, or give "
            "what it names."
        )
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster), "", "worker", options.task, rpc_layer="grpc"
    )
    try:
        return multi_worker_strategy(resolver)
    except TimeoutError as error:
        raise CompareError(str(error)) from error
    except (OSError, tf.errors.OpError) as error:
        raise CompareError(
            f"Worker {options.task} cannot listen at {options.addresses[options.task]}: {error}. "
            "Check that no other process uses this port, and that every worker has a --task of "
            "its own."
        ) from error


def is_same(configured, own):
    """Whether the text of `TF_CONFIG` names a cluster and a task.

    Args:
        configured: the text.
        own: dictionary of both.
    """
    try:
        found = json.loads(configured)
        return {key: found[key] for key in own} == own
    except (ValueError, KeyError, TypeError):
        return False


def work(options, strategy, temporary):
    """Train as one of the workers.

    Every worker has a folder of its own, which begins with the files of the first. So they all do
    the same, and need no common disk.

    Args:
        options: `TrainOptions`.
        strategy: of all workers.
        temporary: folder of a worker other than the first.

    Returns:
        As `train`.
    """
    first, console = options.task == 0, Console()

    def say(text):
        if first:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    with all_or_none(strategy, options):
        regimes, build, data, identity, _ = compare.prepare(options)
    resolved = {**options.resolved(), **identity}
    check_same(strategy, resolved)
    folder = pathlib.Path(options.output) if first else temporary
    with contextlib.ExitStack() as stack:
        with all_or_none(strategy, options):
            stack.enter_context(folders.alone(folder))
            folders.open_folder(folder, resolved, compare.UNCOMPARED, compare.GROWING)
            sent = packed(folder)
        received = of_all(strategy, sent)[0]
        if not first:
            zipfile.ZipFile(io.BytesIO(received)).extractall(folder)
            options = dataclasses.replace(options, quiet=True)
        results = compare.train_all(
            folder, options, regimes, build, data, say, scope=strategy.scope
        )
        if first:
            return compare.report(folder, options, regimes, results, console)
    console.print(
        f"Worker {options.task} of {len(options.addresses)} has finished. Worker 0 at "
        f"{options.addresses[0]} writes the results.",
        soft_wrap=True,
    )
    return None


@contextlib.contextmanager
def all_or_none(strategy, options):
    """Fail on all workers if a block fails on one; all workers enter it together.

    Args:
        strategy: of all workers.
        options: `TrainOptions`.

    Raises:
        CompareError: if the block fails on another worker.
    """
    own = None
    try:
        yield
    except (CompareError, OSError) as error:
        own = error
    messages = of_all(strategy, str(own or "").encode())
    if own is not None:
        raise own
    for number, message in enumerate(messages):
        if message:
            raise CompareError(
                f"Worker {number} at {options.addresses[number]} cannot go on: {message.decode()}"
            )


def check_same(strategy, resolved):
    """Check that all workers have the same options.

    Args:
        strategy: of all workers.
        resolved: dictionary of the options.

    Raises:
        CompareError: if they differ.
    """
    own = json.dumps(records.plain(resolved))
    first, *others = (json.loads(options) for options in of_all(strategy, own.encode()))
    for number, other in enumerate(others, start=1):
        names = ("worker 0", f"worker {number}")
        differing = records.differences(first, other, compare.UNCOMPARED, names)
        if differing:
            raise CompareError(
                f"The workers have different options: {differing}. "
                "Start all workers with the same command but for --task."
            )


def packed(folder):
    """The files by which the runs of a folder continue, as the bytes of a zip file.

    Args:
        folder: `pathlib.Path` of all runs.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in CONTINUES:
            for path in folder.glob(f"*-seed*/{name}"):
                archive.write(path, path.relative_to(folder))
    return buffer.getvalue()
