"""Processes: each does one job of `jobs`, and its memory is free afterwards."""

import contextlib
import os
import subprocess
import sys
import tempfile

from keras_noisylb.experiments.records import CompareError

THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


@contextlib.contextmanager
def process(job, *arguments, jobs=1, **streams):
    """A process of `keras_noisylb.experiments.queue.jobs`, killed if the block ends early.

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
    environment["PYTHONUNBUFFERED"] = "1"  # so that its log is complete, however it ends
    # -P: a module in the current directory, such as queue.py, must not stand for another one.
    command = [sys.executable, "-P", "-m", "keras_noisylb.experiments.queue.jobs", job, *arguments]
    # Nothing is written to its input. When it is closed, the process knows that this one has ended.
    started = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, **streams)
    try:
        yield started
    finally:
        if started.poll() is None:
            started.kill()
        started.wait()
        started.stdin.close()


def ask(job, *arguments, jobs=1):
    """Do a job, and return the last line that it prints.

    Args:
        job: of `process`.
        *arguments: of the job.
        jobs: number of processes that share the machine.

    Returns:
        That line.

    Raises:
        CompareError: with the last line of its errors, if it failed.
    """
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as errors:
        with process(job, *arguments, jobs=jobs, stdout=answer, stderr=errors) as started:
            code = started.wait()
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


def reason(code, errors, advice=""):
    """The reason why a process failed.

    Args:
        code: its exit code.
        errors: what it printed, a file opened for reading bytes.
        advice: a sentence that says how it can do with less memory.
    """
    if code == -9:
        killed = "its process was killed by signal 9, as the system does where memory runs out."
        return f"{killed} {advice}".rstrip()
    return last_line(errors) or f"its process ended with code {code}."
