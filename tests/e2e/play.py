"""One row played once on a running Airflow: the run of its DAG, and the ingests that it concerns."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import requests
from stack import Airflow2Stack, Airflow3Stack, StackError, wait_until

from airflow_dai_provider.emulator import DaiEmulator

Stack = Airflow2Stack | Airflow3Stack

#: Seconds that Airflow has for each thing that a play waits for; many plays share two processors.
PATIENCE = 300


@dataclass(frozen=True)
class Started:
    """An ingest that the service has started: its operation, and its creation in epoch seconds."""

    name: str
    url: str
    created: float


class Service:
    """The emulator's own record, shared by all plays."""

    def __init__(self, emulator: DaiEmulator) -> None:
        self.emulator = emulator
        self._lock = threading.Lock()
        self._listed: tuple[float, list[Started]] = (0.0, [])

    def ingests(self, url: str) -> list[Started]:
        """Return the ingests whose media URL begins with this, oldest first."""
        with self._lock:
            if time.monotonic() - self._listed[0] > 0.3:
                self._listed = (time.monotonic(), self._list())
            return [started for started in self._listed[1] if started.url.startswith(url)]

    def cancels(self, name: str) -> list[float]:
        """Return the times at which cancel requests for an operation have arrived."""
        return [r.time for r in self.emulator.requests if r.method == "operations.cancel" and r.name == name]

    def polls(self, name: str) -> int:
        return sum(r.method == "operations.get" and r.name == name for r in self.emulator.requests)

    def _list(self) -> list[Started]:
        found: list[Started] = []
        query = {"pageSize": "1000", "pageToken": ""}
        while True:
            page = requests.get(f"{self.emulator.endpoint}/v1/operations", params=query, timeout=10).json()
            for operation in page.get("operations", ()):
                metadata = operation["metadata"]
                created = datetime.fromisoformat(metadata["createTime"]).timestamp()
                found.append(Started(operation["name"], metadata["creativeUrl"], created))
            if not page.get("nextPageToken"):
                return found
            query["pageToken"] = page["nextPageToken"]


class Play:
    """
    A run of a DAG in which a row is played.

    :param dag: the DAG's name without its guards.
    :param guards: ``own`` or ``rings``.
    """

    def __init__(self, airflow: Stack, service: Service, row: str, dag: str, guards: str) -> None:
        self.airflow = airflow
        self.service = service
        self.row = row
        self.guards = guards
        self.dag_id = f"{dag}__{guards}"
        self._number = 3 if dag.startswith("list_") else 1
        self.run_id = ""
        self.url = f"https://media.example.com/{row}/{guards}/"
        #: The time of the row's event, in epoch seconds.
        self.event_time = 0.0
        #: Whether the event is the loss of a process, which Airflow has to notice before the task is over.
        self.lost = False
        #: Operations that must not be left running, and operations that must not be cancelled.
        self.strays: list[str] = []
        self.healthy: list[str] = []

    def media(self, number: int = 0, seconds: float = 1200) -> str:
        return f"{self.url}{number}.mp4?seconds={seconds:g}&cancel_seconds=1"

    def start(self, *, seconds: float = 1200, **params: Any) -> None:
        """Start a run whose ingest takes this many seconds."""
        self.run_id = self.airflow.trigger(self.dag_id, {"url": self.media(seconds=seconds), **params})

    def ingest(self, number: int = 0) -> Started:
        """Wait until the first ingest of the play has started, or a later one, and return it."""
        self._wait(f"ingest {number}", lambda: len(self.service.ingests(self.url)) > number)
        return self.service.ingests(self.url)[number]

    def ingests(self) -> list[Started]:
        """Wait until all ingests of the task have started, one or those of a list, and return them."""
        self._wait(f"{self._number} ingests", lambda: len(self.service.ingests(self.url)) >= self._number)
        return self.service.ingests(self.url)[: self._number]

    def waits(self, state: str = "running", task: str = "ingest") -> Started:
        """Wait until the ingest has started and its task waits for it, and return the ingest."""
        started = self.ingest()
        self.task_is(state, task=task)
        if task == "ingest":
            self._wait("polls", lambda: self.service.polls(started.name) > 1)
        return started

    def task_is(self, *states: str | None, task: str = "ingest", tries: int = 1) -> None:
        """Wait until a task is in one of these states, in this try or a later one."""

        def there() -> bool:
            found = self.airflow.task_instances(self.dag_id, self.run_id)
            return any(ti["task_id"] == task and ti["state"] in states and ti["try_number"] >= tries for ti in found)

        self._wait(f"{task} to be {states} in try {tries}", there)

    def run_is(self, state: str, seconds: float = PATIENCE) -> None:
        """Wait until the run has finished, which must be in this state."""
        finished = self.airflow.wait_for_run(self.dag_id, self.run_id, seconds)
        assert finished == state, f"the run of {self.dag_id} is {finished}"

    def task_started(self) -> float:
        """Return the start of the task that ingests, in epoch seconds."""
        (found,) = [ti for ti in self.airflow.task_instances(self.dag_id, self.run_id) if ti["task_id"] == "ingest"]
        return datetime.fromisoformat(found["start_date"]).timestamp()

    def is_polled(self, more: int = 2) -> None:
        """Wait until the ingest has been polled a few more times."""
        name = self.ingest().name
        before = self.service.polls(name)
        self._wait("polls", lambda: self.service.polls(name) >= before + more)

    def happens(self, at: float | None = None) -> None:
        """Record that the event of the row happens now, or at a given time."""
        self.event_time = time.time() if at is None else at

    def mark(self, state: str, task: str = "ingest") -> None:
        """As the event of the row, mark a task."""
        self.happens()
        self.airflow.mark(self.dag_id, self.run_id, task, state)
        self.task_is(state, task=task)

    def clear(self, task: str = "ingest") -> None:
        """As the event of the row, clear a task."""
        self.happens()
        self.airflow.clear(self.dag_id, self.run_id, task)

    def kill(self, task: str = "ingest", map_index: int = -1, *, worker: bool = False) -> None:
        """As the event of the row, kill the process of a task, and with ``worker`` its supervisor too."""
        self.airflow.kill_task(self.dag_id, self.run_id, task, map_index, worker=worker)
        self.lost = True
        self.happens()

    def end_pod(self) -> None:
        """As the event of the row, ask all processes of the task to end, as Kubernetes does when it deletes a pod."""
        self.happens()
        self.airflow.terminate_task(self.dag_id, self.run_id, "ingest")

    def delete(self) -> None:
        """Delete the run as soon as Airflow allows it, which is not while a teardown has it running again."""

        def deleted() -> bool:
            with suppress(StackError):
                self.airflow.delete_run(self.dag_id, self.run_id)
                return True
            return False

        self._wait("the deletion of the run", deleted)

    def cancelled(self) -> None:
        """Wait until the cancellation of each stray has been requested."""
        self._wait("the cancel", lambda: all(self.service.cancels(name) for name in self.strays))

    def log(self, task: str = "ingest") -> str:
        return "\n".join(self.airflow.task_log_lines(self.dag_id, self.run_id, task))

    def log_says(self, text: str, task: str = "ingest") -> None:
        """Wait until the log of a task contains a text."""
        self._wait(f"{text!r} in the log of {task}", lambda: text in self.log(task))

    def _wait(self, what: str, check: Any, seconds: float = PATIENCE) -> None:
        wait_until(f"{what} in {self.dag_id} (row {self.row})", check, seconds, 1.0)
