"""Processes that tests start: each leads a session, by which all that it has started is found and ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil


def free_port() -> int:
    """Return a port of this machine that is free, for a program that is about to start."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def running(command: Sequence[Any], **kwargs: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run a program in a session of its own, which is gone afterwards."""
    process = subprocess.Popen(command, start_new_session=True, **kwargs)
    try:
        yield process
    finally:
        signal_group(process, signal.SIGKILL)
        process.communicate()


def signal_group(process: subprocess.Popen[Any], number: signal.Signals) -> None:
    """Send a signal to the process group that a process leads, if there is any left of it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def processes_of(*sessions: int) -> list[psutil.Process]:
    """Return the running processes of the sessions with these leaders."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def command_line(process: psutil.Process) -> str:
    """Return the command line, which Airflow sets to what a process is doing; empty when it has ended."""
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def kill(*processes: psutil.Process) -> None:
    """Kill processes, some of which may have ended."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
