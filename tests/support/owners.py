"""Owners of operations for tests of the sweep: a stand-in for Airflow, and ingests that tasks have started."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from airflow_dai_provider import version_compat
from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.ingest.own_record import OwnRecord
from airflow_dai_provider.operators.dai import DaiCancelStrayOperationsOperator
from tests.support.clock import Clock
from tests.support.strays import make
from tests.support.task_instance import Store, Ti

URL = "https://media.example.com/ad.mp4?sig=s3cret"
FLAGS = {"waits": True, "cancel_on_kill": True, "cancel_on_failure": True, "cancel_with_run": False}
ALIVE = ["running", "deferred", "up_for_retry", "up_for_reschedule", "queued", "scheduled", "restarting", None, "new"]


@dataclass
class Airflow:
    """Stands in for what Airflow tells a task about others: it counts what it is asked."""

    states: dict[tuple[str, str, str, int], Any] = field(default_factory=dict)
    runs: dict[tuple[str, str], str] = field(default_factory=dict)
    xcoms: dict[tuple[str, str, str, int], Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    away: bool = False

    def task_states(self, dag_id: str, run_ids: list[str], task_ids: list[str]) -> dict[str, dict[str, Any]]:
        self._note("states")
        (task_id,) = task_ids
        found: dict[str, dict[str, Any]] = {}
        for (dag, run, task, index), state in self.states.items():
            if dag == dag_id and run in run_ids and task == task_id:
                found.setdefault(run, {})[task if index < 0 else f"{task}_{index}"] = state
        return found

    def has_run(self, dag_id: str, run_id: str) -> bool:
        self._note("count")
        return (dag_id, run_id) in self.runs

    def run_state(self, dag_id: str, run_id: str) -> str:
        self._note("run")
        return self.runs[dag_id, run_id]

    def run_xcom(self, dag_id: str, run_id: str, task_id: str, map_index: int, key: str) -> Any:
        assert key == "operation_started"
        self._note("xcom")
        return self.xcoms.get((dag_id, run_id, task_id, map_index))

    def _note(self, what: str) -> None:
        if self.away:
            raise RuntimeError("the API server is unavailable")
        self.asked.append(what)


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Airflow:
    stand_in = Airflow()
    for name in ("task_states", "has_run", "run_state", "run_xcom"):
        monkeypatch.setattr(version_compat, name, getattr(stand_in, name))
    return stand_in


Owned = Callable[..., str]


@pytest.fixture
def write(emulator: DaiEmulator, clock: Clock, records: Store) -> Callable[..., OwnRecord]:
    """Give a function that writes down that a task instance is about to start ingests."""

    def write(run_id: str = "a_run", task_id: str = "ingest", map_index: int = -1, **options: Any) -> OwnRecord:
        number = options.pop("try_number", 1)
        ti = Ti(dag_id="a_dag", run_id=run_id, task_id=task_id, map_index=map_index, try_number=number)
        media = options.pop("media", [URL])
        endpoint = options.pop("endpoint", emulator.endpoint)
        context: Any = {"ti": ti, "task_state_store": records}
        adopted = options.pop("adopted", ())
        own = OwnRecord(context, FLAGS | options, clock=clock, log=logging.getLogger("airflow_dai_provider.tests"))
        own.open(endpoint, media, adopted)
        return own

    return write


@pytest.fixture
def owned(emulator: DaiEmulator, airflow: Airflow, clock: Clock, write: Any) -> Owned:
    """Give a function that starts an ingest as a create task does, and sets the task's state."""

    def start(state: Any, run_id: str = "a_run", task_id: str = "ingest", map_index: int = -1, **options: Any) -> str:
        url = options.pop("url", URL)
        known = options.pop("known", True)
        own = write(run_id, task_id, map_index, media=[url], **options)
        clock.advance(1)
        name = emulator.start_ingest(seconds=math.inf, creative_url=url)
        if known:
            own.end([name])
        set_state(airflow, state, run_id, task_id, map_index)
        clock.advance(3600)
        return name

    return start


def set_state(
    airflow: Airflow, state: Any, run_id: str = "a_run", task_id: str = "ingest", map_index: int = -1
) -> None:
    airflow.runs.setdefault(("a_dag", run_id), "running")
    airflow.states["a_dag", run_id, task_id, map_index] = state


def sweep(**options: Any) -> Any:
    return make(**options).execute({"ti": Ti(task_id="sweep")})  # type: ignore[typeddict-item]


def cancelled(emulator: DaiEmulator) -> set[str]:
    return {name for name in emulator.states() if emulator.cancel_requested(name)}


def without_sweeps(records: Store) -> dict[str, Any]:
    """Return what the store holds, without the notes of when a sweep has begun."""
    return {key: value for key, value in records.kept.items() if not key.startswith("sweep")}


def before_second_read(monkeypatch: pytest.MonkeyPatch, happen: Callable[[], object]) -> None:
    """Have something happen between the two reads of a sweep."""
    pending = [happen]

    def sleep(_: float) -> None:
        if pending:
            pending.pop()()

    monkeypatch.setattr(DaiCancelStrayOperationsOperator, "_sleep", staticmethod(sleep))
