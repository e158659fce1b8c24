"""
``make long``: run every long kind of test, one after the other, and write a table of the results.

The output of each kind goes to a log of its own beside the table, in ``.airflow/``. A failure does not stop the others.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from tests.support.interruption import raise_on_signals
from tests.support.processes import kill, signal_group

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".airflow"
#: Seconds that a kind has to stop its Airflow before it is killed.
GRACE = 60.0
#: From ``linux/prctl.h``.
PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Kind:
    """
    A kind of test.

    :param name: the target of the Makefile.
    :param version: the version of Airflow.
    :param command: what runs it.
    """

    name: str
    version: str
    command: Sequence[str] = ()
    result: str = "not run"
    seconds: float | None = None

    def __post_init__(self) -> None:
        self.command = self.command or ("make", self.name, f"AIRFLOW={self.version}")

    def run(self, log: Path) -> None:
        """Run the command to its end, and note the result."""
        # Variables of the outer make, ARGS among them, are not meant for this one.
        env = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "ARGS")}
        started = time.monotonic()
        self.result = "stopped"
        try:
            with log.open("wb") as output:
                process = subprocess.Popen(
                    self.command,
                    cwd=ROOT,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                try:
                    code = _wait(process)
                finally:
                    _stop(process)
            self.result = f"failed with exit code {code}, see {os.path.relpath(log, ROOT)}" if code else "passed"
        finally:
            self.seconds = time.monotonic() - started


def main() -> int:
    """Run all kinds on the present commit."""
    kinds = [
        Kind("e2e", "3.3"),
        Kind("e2e", "2.11"),
        Kind("soak", "3.3"),
        Kind("soak", "2.11"),
        Kind("peers", "3.3"),
        Kind("bench", "3.3"),
        Kind("test", "2.11-lowest"),
    ]
    return run_all(kinds, FOLDER, f"# Long tests of {commit()}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")


def commit() -> str:
    """Return the hash of the present commit, and whether the working tree differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "HEAD") + (" with uncommitted changes" if git("status", "--porcelain") else "")


def run_all(kinds: Sequence[Kind], folder: Path, heading: str) -> int:
    """
    Run the kinds in order, and keep the table up to date; return the exit code.

    :param folder: where the table, ``long.md``, and the logs are written.
    """
    # Orphans of a kind become children of this process, which can therefore find and end all that a kind leaves.
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    raise_on_signals()
    folder.mkdir(exist_ok=True)
    text = ""
    try:
        for kind in kinds:
            log = folder / f"long-{kind.name}-{kind.version}.log"
            print(f"{kind.name} on Airflow {kind.version}: running, its output is in {log}", flush=True)
            try:
                kind.run(log)
            finally:
                text = f"{heading}\n\n{table(kinds)}\n"
                (folder / "long.md").write_text(text)
                print(f"{kind.name} on Airflow {kind.version}: {kind.result}, {kind.seconds or 0:.0f} s", flush=True)
    finally:
        print(f"\n{text}", flush=True)
    return 0 if all(kind.result == "passed" for kind in kinds) else 1


def table(kinds: Sequence[Kind]) -> str:
    """Return the results in Markdown."""
    rows = [
        f"| {kind.name} | {kind.version} | {kind.result} | {'' if kind.seconds is None else f'{kind.seconds:.0f}'} |"
        for kind in kinds
    ]
    return "\n".join(["| kind | version | result | seconds |", "|---|---|---|---|", *rows])


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Return the exit code of a process; meanwhile reap the orphans, which nothing else does."""
    while True:
        pid, status = os.wait()
        if pid == process.pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process that may have ended, and kill what is left of it: its group first, then all descendants."""
    if process.returncode is None:
        signal_group(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    # Until no child is left, and not until none is listed: the list can miss one whose parent has just ended.
    with suppress(ChildProcessError):
        while True:
            kill(*psutil.Process().children(recursive=True))
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if not pid:
                time.sleep(0.05)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt as signal_name:
        sys.exit(f"Stopped by {signal_name}")
