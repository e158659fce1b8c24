"""Who has cancelled an ingest: read from what the task, the dag processor and the triggerer have logged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

REQUESTED = re.compile(r"Requested the cancellation of (operations/\S+?)(\.|:)(?=\s|$)(.*)")
#: How Airflow 2 writes a line, and how Airflow 3 writes one that is not JSON.
PLAIN_2 = re.compile(r"^\[(\S+)\] \{(\S+?)(?::\d+)?\} \w+ - (.*)$")
PLAIN_3 = re.compile(r"^(\S+) \[\w+ *\] (.*?) *\[([\w.]+)\] ")
OTHER_CREATIVE = "with another creative"


@dataclass(frozen=True, order=True)
class Act:
    """A cancellation that was requested: when (seconds of the epoch), by which guard, of which operation."""

    time: float
    guard: str
    operation: str


def acts(home: Path) -> list[Act]:
    """Return every cancellation that the logs of an Airflow tell of, in their order."""
    # A Deadline's callback has no log of its own: what it says is in that of the triggerer.
    files = [*(home / "logs").rglob("*.log"), *home.glob("*triggerer.log")]
    return sorted({act for path in files for act in _acts_in(path)})


def _acts_in(path: Path) -> Iterator[Act]:
    lines = path.read_text(errors="replace").splitlines()
    called = "callback"
    for line in lines:
        # What the dag processor of Airflow 3 says before it calls one; that of Airflow 2 says nothing.
        if "Executing Task callback" in line or "Executing on_failure dag callback" in line:
            called = "task callback" if "Task callback" in line else "DAG callback"
        if "Requested the cancellation of" not in line:
            continue
        time, logger, words = _read(line)
        found = REQUESTED.search(words)
        if not found or not time:
            continue
        guard = _guard(path, logger, found[3]) or called
        if guard == "operator" and any(OTHER_CREATIVE in line and found[1] in line for line in lines):
            guard = "next try"
        if guard != "another":
            yield Act(time, guard, found[1])


def _guard(path: Path, logger: str, reason: str) -> str | None:
    """
    Tell the guard by the process that has logged: its file, and there by the logger and the words.

    None in the dag processor, where it depends on what was said before; ``another`` for what is told elsewhere, too.
    """
    where = path.as_posix()
    if path.name.endswith("triggerer.log"):
        # On Airflow 3.1 what a callback says is the triggerer's own.
        return "Deadline" if "notifications" in logger or "triggerer_job_runner" in logger else "another"
    if "trigger" in path.name:
        return "trigger on_kill"
    task = re.search(r"/dag_id=(\w+)/.*/task_id=(\w+)/", where)
    if task is None:
        return "task callback" if "LostWorkerCallback" in logger else None
    if task[1] == "sweep":
        return "sweep"
    if task[2] == "cancel":
        return "teardown"
    if "its task was killed" in reason:
        return "on_kill"
    return "task callback" if "notifications" in logger else "operator"


def _read(line: str) -> tuple[float, str, str]:
    """Return the time, the logger and the words of a line."""
    try:
        record = json.loads(line)
    except ValueError:
        if plain := PLAIN_2.match(line):
            return datetime.fromisoformat(plain[1]).timestamp(), plain[2], plain[3]
        if plain := PLAIN_3.match(line):
            return datetime.fromisoformat(plain[1]).timestamp(), plain[3], plain[2]
        return 0.0, "", line
    return datetime.fromisoformat(record["timestamp"]).timestamp(), str(record.get("logger", "")), str(record["event"])
