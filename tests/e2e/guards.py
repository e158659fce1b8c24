"""Find out who has cancelled an ingest, from the logs of the tasks, the dag processor and the triggerer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from messages import OTHER_CREATIVE, REQUESTED, TASK_KILLED

REQUEST = re.compile(REQUESTED + r" (operations/\S+?(?:; operations/\S+?)*)(\.|:)(?=\s|$)(.*)")
#: A log line of Airflow 2, and one of Airflow 3 that is not JSON.
PLAIN_2 = re.compile(r"^\[(\S+)\] \{(\S+?)(?::\d+)?\} \w+ - (.*)$")
PLAIN_3 = re.compile(r"^(\S+) \[\w+ *\] (.*?) *\[([\w.]+)\] ")


@dataclass(frozen=True, order=True)
class Cancellation:
    """A requested cancellation: when (epoch seconds), by which guard, and of which operation."""

    time: float
    guard: str
    operation: str


def cancellations(home: Path) -> list[Cancellation]:
    """Return every requested cancellation in the logs of an Airflow, in order."""
    # A Deadline's callback has no log of its own; its lines are in the triggerer's.
    files = [*(home / "logs").rglob("*.log"), *home.glob("*triggerer.log")]
    return sorted({found for path in files for found in _cancellations_in(path)})


def _cancellations_in(path: Path) -> Iterator[Cancellation]:
    lines = path.read_text(errors="replace").splitlines()
    called = "callback"
    for line in lines:
        # The dag processor of Airflow 3 logs this before it calls a callback; that of Airflow 2 logs nothing.
        if "Executing Task callback" in line or "Executing on_failure dag callback" in line:
            called = "task callback" if "Task callback" in line else "DAG callback"
        if REQUESTED not in line:
            continue
        time, logger, message = _read(line)
        found = REQUEST.search(message)
        if not found or not time:
            continue
        guard = _guard(path, logger, found[3]) or called
        if guard == "operator" and any(OTHER_CREATIVE in line and found[1] in line for line in lines):
            guard = "next try"
        if guard != "another":
            for operation in found[1].split("; "):
                yield Cancellation(time, guard, operation)


def _guard(path: Path, logger: str, reason: str) -> str | None:
    """
    Return the guard, by the log file and, within it, by the logger and the message.

    None in the log of the dag processor, where an earlier line tells; ``another`` for a line that is also elsewhere.
    """
    where = path.as_posix()
    if path.name.endswith("triggerer.log"):
        # On Airflow 3.1 the lines of a callback are logged as the triggerer's own.
        return "Deadline" if "notifications" in logger or "triggerer_job_runner" in logger else "another"
    if "trigger" in path.name:
        return "trigger on_kill"
    task = re.search(r"/dag_id=(\w+)/.*/task_id=(\w+)/", where)
    if task is None:
        return "task callback" if "LostWorkerCallback" in logger else None
    if task[1].startswith("sweep"):
        return "sweep"
    if task[2] == "cancel":
        return "teardown"
    if TASK_KILLED in reason:
        return "on_kill"
    return "task callback" if "notifications" in logger else "operator"


def _read(line: str) -> tuple[float, str, str]:
    """Return the time, the logger and the message of a line."""
    try:
        record = json.loads(line)
    except ValueError:
        if plain := PLAIN_2.match(line):
            return datetime.fromisoformat(plain[1]).timestamp(), plain[2], plain[3]
        if plain := PLAIN_3.match(line):
            return datetime.fromisoformat(plain[1]).timestamp(), plain[3], plain[2]
        return 0.0, "", line
    return datetime.fromisoformat(record["timestamp"]).timestamp(), str(record.get("logger", "")), str(record["event"])
