"""The queue of a table's runs: each in a process of its own, none done twice."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

from filelock import FileLock, Timeout
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from keras_noisylb.experiments import records
from keras_noisylb.experiments.records import CompareError

LOG = "log.txt"
POLL = 0.5  # seconds
DAY = 86_400
THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


@contextlib.contextmanager
def worker(job, *arguments, jobs=1, **streams):
    """A process of `keras_noisylb.experiments.queue.worker`, killed where the block is left early.

    Args:
        job: "train", "data" or "time".
        *arguments: of the job.
        jobs: number of processes that share the machine; with several, each has one thread.
        **streams: its `stdout` and `stderr`.

    Yields:
        A `subprocess.Popen`.
    """
    environment = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}
    if jobs > 1:
        environment |= dict.fromkeys(THREADS, "1")
    environment["PYTHONUNBUFFERED"] = "1"  # what it said stays, however it ends
    command = [sys.executable, "-m", "keras_noisylb.experiments.queue.worker", job, *arguments]
    # Nothing is written to its input: that it is closed tells the process that this one has ended.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, **streams)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdin.close()


def ask(job, *arguments):
    """Have a job done whose answer is short.

    Args:
        job: of `worker`.
        *arguments: of the job.

    Returns:
        The last line that it printed.

    Raises:
        CompareError: with the last line of its errors, if it failed.
    """
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as errors:
        with worker(job, *arguments, stdout=answer, stderr=errors) as process:
            code = process.wait()
        if code:
            raise CompareError(reason(code, errors))
        return last_line(answer)


def last_line(file):
    """The last line of a file with text in it, or an empty string.

    Args:
        file: opened for reading bytes.
    """
    file.seek(0)
    lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def reason(code, errors):
    """Why a process failed.

    Args:
        code: its exit code.
        errors: what it printed, a file opened for reading bytes.
    """
    if code == -9:
        return (
            "its process was killed by signal 9, as the system does where memory runs out. If so, "
            "give --num-microbatches 8 or more."
        )
    return last_line(errors) or f"its process ended with code {code}."


def check_data(runs, settings):
    """Find out whether there are the data of what is left, before anything is written.

    Args:
        runs: list of `Run`.
        settings: dictionary of the arguments of `Recipe.options`.

    Raises:
        CompareError: if data are missing.
    """
    names = sorted({run.recipe.dataset for run in runs if not run.finished()})
    if names:
        ask("data", json.dumps(settings), *names)


@contextlib.contextmanager
def alone(folder):
    """Work in a folder in which no other queue works: two would write into the same runs.

    Args:
        folder: `pathlib.Path` of all runs; made if need be.

    Raises:
        CompareError: if another process works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise CompareError(
            f"{folder} is being worked in by another `noisylb`. Wait until it has ended, or choose "
            "another --output."
        ) from None


def prepare(runs, say):
    """Find what is left to do, and check the folders before anything is trained.

    Args:
        runs: list of `Run`.
        say: function that prints a line.

    Returns:
        List of the runs without a record.

    Raises:
        CompareError: if a folder holds another run; nothing was trained.
        OSError: if the folders cannot be written.
    """
    for run in runs:
        records.open_folder(run.folder, run.config, ())
    left = [run for run in runs if run.record(say) is None]
    say(f"{len(runs)} runs, {len(runs) - len(left)} of them finished before.")
    return left


def train(run, settings, watch, stop, jobs):
    """Do one run in a process of its own.

    Args:
        run: a `Run` whose folder is open.
        settings: dictionary of the arguments of `Recipe.options`.
        watch: function of how much of its length is finished, called every half second.
        stop: `threading.Event` at which the process is killed.
        jobs: number of processes that share the machine.

    Returns:
        Why it failed, or `None`.
    """
    with (run.folder / LOG).open("ab+") as log:
        arguments = (str(run.folder), json.dumps(settings), *run.arguments)
        with worker(run.job, *arguments, jobs=jobs, stdout=log, stderr=log) as process:
            while process.poll() is None and not stop.is_set():
                watch(run.done())
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL)
        return reason(process.returncode, log) if process.returncode else None


def work(runs, settings, console, jobs=1):
    """Do runs, so many at a time; one that fails does not stop the rest.

    Args:
        runs: list of `Run` that `prepare` found left.
        settings: dictionary of the arguments of `Recipe.options`.
        console: `rich.console.Console` for lines and progress.
        jobs: number of runs that are trained at a time, each on its share of the cores.

    Returns:
        List of the runs that failed.

    Raises:
        OSError: if the results cannot be written.

    Example:
    ```python
    runs = plan("2", PRESETS["quick"], "results/tables", rows="mnist-mlp")
    work(prepare(runs, print), {}, Console())
    ```
    """

    def say(text):
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(),
        TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    # The speed is that of a day, not of half a minute: epochs can be longer than that.
    bars = Progress(
        *columns, console=console, disable=not console.is_terminal, speed_estimate_period=DAY
    )
    stop, done = threading.Event(), {}

    def do(number, run):
        place = f"[{number}/{len(runs)}] {run.title}"
        bar = bars.add_task(place, total=run.length)

        def watch(finished):
            done[number] = run.work * finished / run.length
            bars.update(bar, completed=finished)
            bars.update(whole, completed=sum(done.values()))

        try:
            failure = train(run, settings, watch, stop, jobs)
            if stop.is_set():
                return True
            record = None if failure else run.record(say)
            if record is None:
                say(f"{place}: failed: {failure or 'no record'} ({run.folder / LOG})")
            else:
                say(f"{place}: {run.outcome(record)}")
            watch(run.length)
        finally:
            bars.remove_task(bar)
        return record is not None

    with bars, ThreadPoolExecutor(jobs) as pool:
        whole = bars.add_task("all", total=sum(run.work for run in runs))
        futures = [pool.submit(do, number, run) for number, run in enumerate(runs, start=1)]
        try:
            succeeded = [future.result() for future in futures]
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return [run for run, good in zip(runs, succeeded, strict=True) if not good]
