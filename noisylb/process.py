"""The process of a command: how TensorFlow starts in it, and how SIGTERM ends it."""

import contextlib
import os
import re
import signal
import sys
import tempfile
import threading

LEVEL = "TF_CPP_MIN_LOG_LEVEL"
# What TensorFlow's C++ logs before it knows its level, with the lines that continue a message.
STARTUP = re.compile(
    rb"^(WARNING: All log messages before absl::InitializeLog\(\).*"
    rb"|[IWE]\d{4} \d\d:\d\d:[\d.]+ .*|To enable the following instructions: .*)\n?",
    re.MULTILINE,
)


class Terminated(BaseException):
    """SIGTERM."""


@contextlib.contextmanager
def quiet_start():
    """Leave out the log of TensorFlow's start, unless its level is set in the environment.

    It is written to the error stream before any level is looked at. Other lines are passed on.
    """
    if LEVEL in os.environ:
        yield
        return
    os.environ[LEVEL] = "2"
    sys.stderr.flush()
    with tempfile.TemporaryFile() as log:
        stream = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stream, 2)
            os.close(stream)
            log.seek(0)
            if rest := STARTUP.sub(b"", log.read()):
                os.write(2, rest)


def import_tensorflow():
    """Import TensorFlow and look for devices, which it logs about."""
    with quiet_start():
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextlib.contextmanager
def ended_by_sigterm():
    """SIGTERM raises `Terminated`: results are kept, and the cursor is shown again."""

    def end(number, frame):
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
