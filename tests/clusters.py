"""Clusters of processes on this machine."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys


@contextlib.contextmanager
def reserved_ports(number):
    """Ports that nobody else is given: the sockets stay open, and the workers share them."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for reserved in sockets:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind(("", 0))
        yield [str(reserved.getsockname()[1]) for reserved in sockets]


@contextlib.contextmanager
def cluster(number, command, folder):
    """The processes of a cluster, which are ended with the block.

    Args:
        number: of workers.
        command: function from a worker's number and the ports of all to its script and arguments.
        folder: for what they print, `printed-TASK`.
    """
    with reserved_ports(number) as ports, contextlib.ExitStack() as stack:
        processes = []
        for task in range(number):
            printed = stack.enter_context((folder / f"printed-{task}").open("w"))
            process = subprocess.Popen(
                [sys.executable, *command(task, ports)],
                env={**os.environ, "TF_GRPC_REUSE_PORT": "1"},
                stdout=printed,
                stderr=subprocess.STDOUT,
            )
            stack.callback(process.kill)
            processes.append(process)
        yield processes


def assert_ended(processes, folder, status=0):
    """Wait for the processes of a cluster, and check how they ended."""
    for task, process in enumerate(processes):
        found = process.wait()
        assert found == status, (folder / f"printed-{task}").read_text()[-5000:]


def leave_nothing_behind():
    """Let this process end, whatever happens to the tests."""
    signal.alarm(1200)
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1  # sent when the parent ends
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
