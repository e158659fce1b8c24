"""``make long``: run every long kind of test, some side by side, and write a table of the results.

The output of each kind goes to a log of its own beside the table, in ``.airflow/``. A failure does not stop the others.
A second run on the same commit runs only what has not passed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
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
#: What ``make e2e`` runs: the rows of ``docs/guards.md``, which need the machine alone, and all others.
ROWS = "tests/e2e/test_rows.py"
OTHERS = ("tests/e2e", f"--ignore={ROWS}")


@dataclass
class Kind:
    """A kind of test.

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

    def start(self, log: Path) -> subprocess.Popen[bytes]:
        """Start the command, which writes to the log."""
        # Variables of the outer make, ARGS among them, are not meant for this one. The log shows how far it is.
        outer = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "ARGS")}
        with log.open("wb") as output:
            return subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=outer | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def main() -> int:
    """Run all kinds on the present commit."""
    groups = [
        [e2e("rows", "3.3", ROWS)],
        [e2e("rows", "2.11", ROWS)],
        [e2e("e2e", "3.3", *OTHERS), Kind("soak", "3.3"), Kind("soak", "2.11")],
        [e2e("e2e", "2.11", *OTHERS), Kind("test", "2.11-lowest")],
        [Kind("bench", "3.3")],
        [Kind("peers", "3.3")],
    ]
    return run_all(groups, FOLDER, commit())


def e2e(name: str, version: str, *arguments: str) -> Kind:
    """Return a part of ``make e2e``."""
    return Kind(name, version, ("make", "e2e", f"AIRFLOW={version}", f"ARGS={' '.join(arguments)}"))


def commit() -> str:
    """Return the hash of the present commit, and whether and when the working tree differed from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changes = f" with uncommitted changes at {time.time():.0f}" if git("status", "--porcelain") else ""
    return git("rev-parse", "HEAD") + changes


def run_all(groups: Sequence[Sequence[Kind]], folder: Path, source: str) -> int:
    """Run groups of kinds in order, those of a group side by side; keep the table up to date; return the exit code.

    :param folder: where the table, ``long.md``, and the logs are written. Kinds that it shows as passed do not run.
    :param source: what is tested; a table of something else is not taken up.
    """
    # Orphans of a kind become children of this process, which can therefore find and end all that a kind leaves.
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    raise_on_signals()
    folder.mkdir(exist_ok=True)
    kinds = [kind for group in groups for kind in group]
    heading = _resume(kinds, folder / "long.md", f"# Long tests of {source}, ")

    def note(kind: Kind, result: str, began: float) -> None:
        kind.result, kind.seconds = result, time.monotonic() - began
        (folder / "long.md").write_text(f"{heading}\n\n{table(kinds)}\n")
        print(f"{kind.name} on Airflow {kind.version}: {kind.result}, {kind.seconds:.0f} s", flush=True)

    try:
        for group in groups:
            _run([kind for kind in group if kind.result != "passed"], folder, note)
    finally:
        print(f"\n{heading}\n\n{table(kinds)}\n", flush=True)
    return 0 if all(kind.result == "passed" for kind in kinds) else 1


def _resume(kinds: Sequence[Kind], file: Path, heading: str) -> str:
    """Take the results of the kinds that have passed from the table; return its heading, or a new one.

    :param heading: what the table must begin with.
    """
    old, *lines = file.read_text().splitlines() if file.exists() else [""]
    if not old.startswith(heading):
        return f"{heading}{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    for kind in kinds:
        for line in lines:
            if line.startswith(passed := f"| {kind.name} | {kind.version} | passed | "):
                kind.result, kind.seconds = "passed", float(line.removeprefix(passed).rstrip(" |"))
                print(f"{kind.name} on Airflow {kind.version}: has passed before on this commit", flush=True)
    return old


def _run(group: Sequence[Kind], folder: Path, note: Callable[[Kind, str, float], None]) -> None:
    """Run kinds side by side, and note the result of each."""
    running: dict[int, tuple[Kind, subprocess.Popen[bytes]]] = {}
    began = time.monotonic()
    try:
        for kind in group:
            log = folder / f"long-{kind.name}-{kind.version}.log"
            print(f"{kind.name} on Airflow {kind.version}: running, its output is in {log}", flush=True)
            process = kind.start(log)
            running[process.pid] = kind, process
        while running:
            # Reaps the orphans too, which nothing else does.
            pid, status = os.wait()
            if pid in running:
                kind, process = running.pop(pid)
                process.returncode = code = os.waitstatus_to_exitcode(status)
                log = folder / f"long-{kind.name}-{kind.version}.log"
                failed = f"failed with exit code {code}, see {os.path.relpath(log, ROOT)}"
                note(kind, failed if code else "passed", began)
    finally:
        _stop([process for _, process in running.values()])
        for kind, _ in running.values():
            note(kind, "stopped", began)


def table(kinds: Sequence[Kind]) -> str:
    """Return the results in Markdown."""
    rows = [
        f"| {kind.name} | {kind.version} | {kind.result} | {'' if kind.seconds is None else f'{kind.seconds:.0f}'} |"
        for kind in kinds
    ]
    return "\n".join(["| kind | version | result | seconds |", "|---|---|---|---|", *rows])


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Stop processes, and kill what is left of them: their groups first, then all descendants."""
    until = time.monotonic() + GRACE
    for process in processes:
        signal_group(process, signal.SIGTERM)
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
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
