"""The runs of a table are executed: each in a process of its own, and none of them twice."""

import contextlib
import dataclasses
import json
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from keras_noisylb.experiments import estimate, folders
from keras_noisylb.experiments.checks import check_microbatches
from keras_noisylb.experiments.queue.process import ask, process, reason
from keras_noisylb.experiments.records import CompareError
from keras_noisylb.experiments.regimes import REGIMES
from noisylb.protocol.names import counted

LOG = "log.txt"
POLL = 0.5  # seconds
BESIDE = 41  # columns of a line of progress beside its title
DAY = 86_400


def measured_speed(jobs=1):
    """Measure how fast a process of the queue trains.

    Args:
        jobs: number of processes that share the machine.

    Returns:
        An `estimate.Speed`.
    """
    began = time.perf_counter()
    answer = json.loads(ask("time", jobs=jobs))
    start = time.perf_counter() - began - answer["took"]
    return dataclasses.replace(estimate.Speed(**answer["speed"]), start=start)


def expected(runs, jobs=1):
    """Estimate the time of runs.

    Args:
        runs: list of `Run`.
        jobs: number of runs at a time.

    Returns:
        Tuple of a list of the seconds of each run, 0 if it is finished; the seconds of all; and the
        device.
    """

    def seconds(speed):
        return [run.seconds_left(speed) for run in runs]

    def total(speed):
        return estimate.in_parallel([s for s in seconds(speed) if s], jobs)

    speed = estimate.speed_for(total, lambda: measured_speed(jobs))
    return seconds(speed), total(speed), speed.device


def check(runs, settings, jobs):
    """Check runs and their folders before anything is written, but for the data.

    Args:
        runs: list of `Run`.
        settings: dictionary of the arguments of `Recipe.options`.
        jobs: number of runs at a time.

    Raises:
        CompareError: if they cannot be trained so.
    """
    if jobs < 1:
        raise CompareError(f"--jobs received {jobs}, expected 1 or more. Change --jobs.")
    for run in runs:
        folders.check_folder(run.folder, run.config, ())
    try:
        recipes = [run.recipe for run in runs if not run.finished()]
        check_microbatches(recipes, settings.get("num_microbatches"))
    except ValueError as error:
        raise CompareError(str(error)) from None


def check_data(runs, settings):
    """Check that the data of the unfinished runs can be loaded, before anything is written.

    Args:
        runs: list of `Run`.
        settings: dictionary of the arguments of `Recipe.options`.

    Raises:
        CompareError: if data are missing.
    """
    names = sorted({run.recipe.dataset for run in runs if not run.finished()})
    if names:
        ask("data", json.dumps(settings), *names)


def prepare(runs, say):
    """Find the unfinished runs, and check all folders before anything is trained.

    Args:
        runs: list of `Run`.
        say: function that prints a line.

    Returns:
        List of the runs without a usable record.

    Raises:
        CompareError: if a folder holds another run; nothing was trained.
        OSError: if the folders cannot be written.
    """
    for run in runs:
        folders.open_folder(run.folder, run.config, ())
    left = [run for run in runs if run.record(say) is None]
    say(f"{counted(len(runs), 'run')}, {len(runs) - len(left)} of them finished before.")
    return left


def memory_advice(recipe, num_microbatches, jobs):
    """How a run can do with less memory, in a sentence.

    Args:
        recipe: its `Recipe`.
        num_microbatches: of each large batch, or `None`.
        jobs: number of processes that share the machine.
    """
    ways = []
    if REGIMES[recipe.regime].batch != "small":  # SB has no microbatches
        ways.append(f"give --num-microbatches {2 * num_microbatches if num_microbatches else 8}")
    if jobs > 1:
        ways.append("lower --jobs")
    ways.append("use a machine with more memory")
    return f"If so, {' or '.join(ways)}."


def train(run, settings, watch, stop, jobs):
    """Do one run in a process of its own.

    Args:
        run: a `Run` whose folder is open.
        settings: dictionary of the arguments of `Recipe.options`.
        watch: function that is called every half second with the finished part of the length.
        stop: `threading.Event` at which the process is killed.
        jobs: number of processes that share the machine.

    Returns:
        The reason why it failed, or `None`.
    """
    with (run.folder / LOG).open("ab+") as log:
        arguments = (str(run.folder), json.dumps(settings), *run.arguments)
        with process(run.job, *arguments, jobs=jobs, stdout=log, stderr=log) as started:
            while started.poll() is None and not stop.is_set():
                watch(run.done())
                with contextlib.suppress(subprocess.TimeoutExpired):
                    started.wait(POLL)
        advice = memory_advice(run.recipe, settings.get("num_microbatches"), jobs)
        return reason(started.returncode, log, advice) if started.returncode else None


def work(runs, settings, console, jobs=1):
    """Do runs, `jobs` at a time. A run that fails does not stop the others.

    Args:
        runs: list of the unfinished `Run`, from `prepare`.
        settings: dictionary of the arguments of `Recipe.options`.
        console: `rich.console.Console` for lines and progress.
        jobs: number of runs at a time, each on its share of the cores.

    Returns:
        List of the runs that failed.

    Raises:
        OSError: if the results cannot be written.

    Example:
    ```python
    runs = plan("2", SCALES["probe"], "results/tables", rows="mnist-mlp")
    work(prepare(runs, print), {}, Console())
    ```
    """

    def say(text):
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(10),
        TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    room = console.width - BESIDE
    # An epoch can be longer than the half minute over which rich averages the speed.
    bars = Progress(
        *columns, console=console, disable=not console.is_terminal, speed_estimate_period=DAY
    )
    stop, done = threading.Event(), {}

    def do(number, run):
        place = f"[{number}/{len(runs)}] {run.title}"
        title = place if len(place) <= room else place[: max(room - 1, 0)] + "…"
        bar = bars.add_task(title, total=run.length)

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
