"""The processes below a component of the Airflow under test, read from /proc: which there are, and ending them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """
    A process.

    :param session: the pid of the component below which it runs: each is started as the leader of a session.
    :param title: its command line, which Airflow sets to what it is doing.
    """

    pid: int
    parent: int
    session: int
    title: str

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, how)


def processes_of(*sessions: int) -> list[Process]:
    """Return the running processes of these sessions."""
    return [process for process in _all() if process.session in sessions]


def end_sessions(*sessions: int) -> None:
    """Kill whatever still runs in these sessions, also what has made a process group of its own."""
    for process in processes_of(*sessions):
        process.kill()


def _all() -> Iterator[Process]:
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(FileNotFoundError, ProcessLookupError):
            # Behind the command in brackets, which can have blanks: state, parent, process group, session.
            state, parent, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if state != "Z":
                yield Process(int(folder.name), int(parent), int(session), title)
