"""DaiCancelStrayOperationsOperator as it asks Airflow whose the running operations are."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.ingest.own_record import OwnRecord
from airflow_dai_provider.ingest.ownership import LATEST_START, Owner, OwnerRecords
from airflow_dai_provider.operators.dai import DaiCancelStrayOperationsOperator
from airflow_dai_provider.sweep import owners
from airflow_dai_provider.sweep.owners import KEPT
from tests.support.clock import Clock
from tests.support.log import Log
from tests.support.strays import make
from tests.support.task_instance import Store, Ti

pytestmark = pytest.mark.usefixtures("sweep_time")

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
        monkeypatch.setattr(owners, name, getattr(stand_in, name))
    return stand_in


Owned = Callable[..., str]


@pytest.fixture
def write(emulator: DaiEmulator, clock: Clock, records: Store) -> Callable[..., OwnRecord]:
    """Give a function that writes down that a task instance is about to start ingests."""

    def write(run_id: str = "a_run", task_id: str = "ingest", map_index: int = -1, **options: Any) -> OwnRecord:
        ti = Ti(dag_id="a_dag", run_id=run_id, task_id=task_id, map_index=map_index)
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


def look_again(monkeypatch: pytest.MonkeyPatch, happen: Callable[[], object]) -> None:
    """Have something happen between the two looks of a sweep."""
    pending = [happen]

    def sleep(_: float) -> None:
        if pending:
            pending.pop()()

    monkeypatch.setattr(DaiCancelStrayOperationsOperator, "_sleep", staticmethod(sleep))


class TestOver:
    @pytest.mark.parametrize("state", ["failed", "upstream_failed", "skipped", "removed", "success"])
    def test_what_is_left_of_a_task_that_is_over_is_cancelled(
        self, emulator: DaiEmulator, owned: Owned, state: str
    ) -> None:
        name = owned(state)
        report = sweep(older_than=None)
        assert cancelled(emulator) == {name}
        (found,) = report["found"]
        assert found["owner"] == {
            "dag_id": "a_dag",
            "run_id": "a_run",
            "task_id": "ingest",
            "map_index": -1,
            "try_number": 1,
            "reason": "was marked as success" if state == "success" else f"is {state}",
        }
        assert "s3cret" not in json.dumps(report)

    @pytest.mark.parametrize("state", ALIVE, ids=str)
    def test_what_a_task_still_needs_is_left_alone_however_old(
        self, emulator: DaiEmulator, owned: Owned, clock: Clock, state: Any
    ) -> None:
        name = owned(state)
        clock.advance(30 * 24 * 3600)
        report = sweep(older_than=timedelta(hours=6))
        assert cancelled(emulator) == set()
        assert report["passed_over"]["owned"] == 1
        (kept,) = report["owned"]
        assert (kept["name"], kept["run_id"]) == (name, "a_run")

    def test_what_is_left_of_a_deleted_run_is_cancelled(
        self, emulator: DaiEmulator, owned: Owned, airflow: Airflow
    ) -> None:
        name = owned("running")
        airflow.states.clear()
        airflow.runs.clear()
        report = sweep(older_than=None)
        assert cancelled(emulator) == {name}
        assert report["found"][0]["owner"]["reason"] == "is gone with its run"

    def test_a_map_index_that_is_gone_from_a_run_is_alive(
        self, emulator: DaiEmulator, owned: Owned, airflow: Airflow
    ) -> None:
        owned("failed", map_index=3)
        del airflow.states["a_dag", "a_run", "ingest", 3]
        sweep(older_than=None)
        assert cancelled(emulator) == set()

    def test_a_failed_map_index_does_not_take_its_siblings_with_it(self, emulator: DaiEmulator, owned: Owned) -> None:
        first = owned("failed", map_index=0, url=f"{URL}0")
        owned("running", map_index=1, url=f"{URL}1")
        owned("running", task_id="ingest_0", url=f"{URL}2")
        sweep(older_than=None)
        assert cancelled(emulator) == {first}


class TestMeaning:
    @pytest.mark.parametrize(
        ("flags", "state", "strays"),
        [
            ({"cancel_on_failure": False}, "failed", 0),
            ({"cancel_on_kill": False}, "failed", 0),
            ({"cancel_on_kill": False}, "success", 0),
            ({"cancel_on_failure": False}, "success", 1),
            ({"waits": False}, "success", 0),
            ({"waits": False}, "failed", 1),
            ({"waits": False, "cancel_on_failure": False}, "failed", 0),
        ],
        ids=str,
    )
    def test_what_the_task_is_meant_to_cancel_decides(
        self, emulator: DaiEmulator, owned: Owned, flags: dict[str, bool], state: str, strays: int
    ) -> None:
        owned(state, **flags)
        assert len(sweep(older_than=None)["found"]) == strays
        assert len(cancelled(emulator)) == strays

    @pytest.mark.parametrize(("run", "strays"), [("failed", 1), ("running", 0), ("success", 0), ("queued", 0)])
    def test_the_failure_of_its_run_counts_only_if_the_task_says_so(
        self, owned: Owned, airflow: Airflow, run: str, strays: int
    ) -> None:
        owned("success", waits=False, cancel_with_run=True)
        airflow.runs["a_dag", "a_run"] = run
        assert len(sweep(older_than=None)["found"]) == strays


class TestOwner:
    def test_what_another_system_has_started_is_left_alone(
        self, emulator: DaiEmulator, airflow: Airflow, clock: Clock
    ) -> None:
        emulator.start_ingest(seconds=math.inf, creative_url=URL)
        clock.advance(30 * 24 * 3600)
        report = sweep(older_than=None)
        assert report["passed_over"]["unowned"] == 1
        assert cancelled(emulator) == set()
        assert airflow.asked == []

    def test_it_goes_by_age_where_that_is_given(self, emulator: DaiEmulator, clock: Clock) -> None:
        name = emulator.start_ingest(seconds=math.inf, creative_url=URL)
        clock.advance(7 * 3600)
        report = sweep(older_than=timedelta(hours=6))
        assert report["found"][0]["owner"] is None
        assert cancelled(emulator) == {name}

    def test_an_ingest_of_the_same_media_at_another_endpoint_is_not_its_own(
        self, emulator: DaiEmulator, owned: Owned
    ) -> None:
        owned("failed", endpoint="https://dai.googleapis.com")
        assert sweep(older_than=None)["passed_over"]["unowned"] == 1
        assert cancelled(emulator) == set()

    @pytest.mark.parametrize("later", [-1800.0, LATEST_START + 60], ids=["before", "long after"])
    def test_an_ingest_of_the_same_media_at_another_time_is_not_its_own(
        self, emulator: DaiEmulator, write: Any, airflow: Airflow, clock: Clock, later: float
    ) -> None:
        now = clock.now
        write()
        set_state(airflow, "failed")
        clock.now = now + later
        emulator.start_ingest(seconds=math.inf, creative_url=URL)
        clock.now = now + 7200
        assert sweep(older_than=None)["passed_over"]["unowned"] == 1

    def test_a_lost_name_is_known_by_media_and_time(self, emulator: DaiEmulator, owned: Owned) -> None:
        name = owned("failed", known=False)
        sweep(older_than=None)
        assert cancelled(emulator) == {name}

    @pytest.mark.parametrize("names", [[], ["operations/finished"]], ids=["refused", "another"])
    def test_what_another_system_has_started_soon_after_a_task_is_left_alone(
        self, emulator: DaiEmulator, airflow: Airflow, write: Any, clock: Clock, names: list[str]
    ) -> None:
        write().end(names)
        set_state(airflow, "failed")
        clock.advance(1)
        emulator.start_ingest(seconds=math.inf, creative_url=URL)
        assert sweep(older_than=None)["passed_over"]["unowned"] == 1
        assert cancelled(emulator) == set()

    def test_two_tasks_that_start_the_same_media_at_a_time_keep_their_ingests(
        self, emulator: DaiEmulator, airflow: Airflow, write: Any, clock: Clock
    ) -> None:
        for run in ("a_run", "b_run"):
            write(run)
            emulator.start_ingest(seconds=math.inf, creative_url=URL)
        set_state(airflow, "failed", "a_run")
        set_state(airflow, "running", "b_run")
        clock.advance(60)
        sweep(older_than=None)
        assert cancelled(emulator) == set()
        set_state(airflow, "skipped", "b_run")
        sweep(older_than=None)
        assert cancelled(emulator) == set(emulator.states())

    def test_two_tasks_that_have_started_the_same_media_at_a_time_are_told_apart(
        self, emulator: DaiEmulator, airflow: Airflow, write: Any, clock: Clock
    ) -> None:
        first, second = write("a_run"), write("b_run")
        names = [emulator.start_ingest(seconds=math.inf, creative_url=URL) for _ in range(2)]
        first.end(names[:1])
        second.end(names[1:])
        set_state(airflow, "failed", "a_run")
        set_state(airflow, "running", "b_run")
        clock.advance(60)
        sweep(older_than=None)
        assert cancelled(emulator) == set(names[:1])

    @pytest.mark.parametrize("waits", [True, False])
    def test_a_run_soon_after_one_whose_process_was_lost_keeps_its_ingest(
        self, emulator: DaiEmulator, airflow: Airflow, write: Any, clock: Clock, waits: bool
    ) -> None:
        write("a_run")
        set_state(airflow, "failed", "a_run")
        clock.advance(60)
        own = write("b_run", waits=waits)
        name = emulator.start_ingest(seconds=math.inf, creative_url=URL)
        own.end([name])
        if not waits:
            own.run_on()
        set_state(airflow, "running" if waits else "success", "b_run")
        clock.advance(60)
        sweep(older_than=None)
        assert cancelled(emulator) == set()
        set_state(airflow, "failed", "b_run")
        sweep(older_than=None)
        assert cancelled(emulator) == {name}

    @pytest.mark.parametrize("known", [True, False])
    def test_a_long_list_is_one_record(
        self, emulator: DaiEmulator, airflow: Airflow, write: Any, clock: Clock, records: Store, known: bool
    ) -> None:
        urls = [f"{URL}{number}" for number in range(1000)]
        own = write(media=urls)
        names = [emulator.start_ingest(seconds=math.inf, creative_url=url) for url in urls]
        if known:
            own.end(names)
        set_state(airflow, "failed")
        clock.advance(60)
        foreign = emulator.start_ingest(seconds=math.inf, creative_url="https://media.example.com/other.mp4")
        assert len(json.dumps(records.kept)) < 40_000
        sweep(older_than=None, max_cancellations=2000)
        assert cancelled(emulator) == set(names)
        assert foreign not in cancelled(emulator)
        assert airflow.asked == ["states", "states"]


class TestDoubt:
    @pytest.mark.parametrize("state", ["running", "success", "failed"])
    def test_a_late_twin_is_cancelled_whatever_became_of_its_task(
        self, emulator: DaiEmulator, airflow: Airflow, write: Any, clock: Clock, state: str
    ) -> None:
        own = write(waits=False)
        clock.advance(30)
        twin, adopted = (emulator.start_ingest(seconds=math.inf, creative_url=URL) for _ in range(2))
        own.end([adopted], [URL])
        if state == "success":
            own.run_on()
        set_state(airflow, state)
        clock.advance(60)
        report = sweep(older_than=None)
        assert cancelled(emulator) == ({twin, adopted} if state == "failed" else {twin})
        reasons = {one["name"]: one["owner"]["reason"] for one in report["found"]}
        assert "the request for this ingest got no response" in reasons[twin]

    @pytest.mark.parametrize(("flags", "strays"), [({}, 1), ({"cancel_on_failure": False}, 0)])
    @pytest.mark.parametrize("state", ["running", "failed"])
    def test_what_a_later_try_has_not_taken_over_is_cancelled(
        self,
        emulator: DaiEmulator,
        airflow: Airflow,
        write: Any,
        clock: Clock,
        state: str,
        flags: dict[str, bool],
        strays: int,
    ) -> None:
        first, second = (emulator.start_ingest(seconds=math.inf, creative_url=URL) for _ in range(2))
        for name in (first, second):
            write(**flags).end([name])
        set_state(airflow, state)
        clock.advance(60)
        sweep(older_than=None)
        expected = {first, second} if state == "failed" else {first}
        assert cancelled(emulator) == (expected if strays else set())

    def test_what_a_later_try_has_taken_over_is_left_alone(
        self, emulator: DaiEmulator, airflow: Airflow, write: Any, clock: Clock
    ) -> None:
        names = [emulator.start_ingest(seconds=math.inf, creative_url=URL) for _ in range(3)]
        write().end(names)
        write(adopted=names[:2], media=[])
        set_state(airflow, "running")
        clock.advance(60)
        sweep(older_than=None)
        assert cancelled(emulator) == {names[2]}

    @pytest.mark.parametrize("known", [True, False], ids=["earlier try", "in doubt"])
    def test_what_the_task_has_pushed_is_its_own_although_no_record_says_so(
        self, emulator: DaiEmulator, airflow: Airflow, write: Any, clock: Clock, known: bool
    ) -> None:
        """The record of this try could not be written."""
        name = emulator.start_ingest(seconds=math.inf, creative_url=URL)
        write().end([name] if known else [], [] if known else [URL])
        if known:
            write(media=[])
        started = {"endpoint": emulator.endpoint, "pushed_at": {name: clock.now}}
        set_state(airflow, "running")
        clock.advance(60)
        airflow.xcoms["a_dag", "a_run", "ingest", -1] = started
        assert sweep(older_than=None)["passed_over"]["owned"] == 1
        airflow.xcoms["a_dag", "a_run", "ingest", -1] = started | {"endpoint": "https://elsewhere.example"}
        assert sweep(older_than=None)["passed_over"]["owned"] == 0
        assert cancelled(emulator) == {name}

    def test_a_record_that_is_gone_the_second_time_condemns_nothing(
        self, emulator: DaiEmulator, owned: Owned, records: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        owned("failed")
        look_again(monkeypatch, lambda: records.delete(Owner("a_dag", "a_run", "ingest").key))
        assert sweep(older_than=1)["passed_over"]["owned"] == 1
        assert cancelled(emulator) == set()

    @pytest.mark.parametrize(
        ("state", "strays"), [("success", 0), ("skipped", 0), ("upstream_failed", 0), (None, 0), ("failed", 1)], ids=str
    )
    def test_what_is_meant_to_run_on_does_so_unless_its_task_fails(
        self, emulator: DaiEmulator, airflow: Airflow, write: Any, clock: Clock, state: Any, strays: int
    ) -> None:
        own = write(waits=False)
        own.end([emulator.start_ingest(seconds=math.inf, creative_url=URL)])
        own.run_on()
        set_state(airflow, state)
        clock.advance(60)
        assert len(sweep(older_than=None)["found"]) == strays
        assert len(cancelled(emulator)) == strays

    def test_what_is_meant_to_run_on_does_so_after_its_run_is_deleted(
        self, emulator: DaiEmulator, airflow: Airflow, write: Any, clock: Clock
    ) -> None:
        own = write(waits=False)
        own.end([emulator.start_ingest(seconds=math.inf, creative_url=URL)])
        own.run_on()
        clock.advance(60)
        assert sweep(older_than=None)["passed_over"]["owned"] == 1
        assert airflow.asked == ["states", "count"]
        assert cancelled(emulator) == set()

    def test_those_beside_a_refused_one_run_on(
        self, emulator: DaiEmulator, airflow: Airflow, write: Any, clock: Clock
    ) -> None:
        own = write(waits=False)
        own.end([emulator.start_ingest(seconds=math.inf, creative_url=URL)])
        own.run_on(refused=True)
        set_state(airflow, "failed")
        airflow.runs["a_dag", "a_run"] = "failed"
        clock.advance(60)
        assert sweep(older_than=None)["passed_over"]["owned"] == 1
        assert cancelled(emulator) == set()

    def test_while_a_task_starts_each_of_them_is_its_own(
        self, emulator: DaiEmulator, airflow: Airflow, write: Any, clock: Clock
    ) -> None:
        write()
        names = {emulator.start_ingest(seconds=math.inf, creative_url=URL) for _ in range(2)}
        set_state(airflow, "running")
        clock.advance(60)
        sweep(older_than=None)
        assert cancelled(emulator) == set()
        set_state(airflow, "failed")
        sweep(older_than=None)
        assert cancelled(emulator) == names

    def test_what_a_lost_process_has_started_is_a_stray_once_the_next_try_starts_another(
        self, emulator: DaiEmulator, airflow: Airflow, write: Any, clock: Clock
    ) -> None:
        write()
        lost = emulator.start_ingest(seconds=math.inf, creative_url=URL)
        clock.advance(60)
        own = write()
        own.end([emulator.start_ingest(seconds=math.inf, creative_url=URL)])
        set_state(airflow, "running")
        clock.advance(60)
        sweep(older_than=None)
        assert cancelled(emulator) == {lost}


class TestTwoLooks:
    def test_a_task_that_is_cleared_meanwhile_keeps_its_ingest(
        self, emulator: DaiEmulator, owned: Owned, airflow: Airflow, monkeypatch: pytest.MonkeyPatch, records: Store
    ) -> None:
        owned("failed")
        before = dict(records.kept)
        look_again(monkeypatch, lambda: set_state(airflow, None))
        report = sweep(older_than=None)
        assert cancelled(emulator) == set()
        assert (report["found"], report["passed_over"]["owned"]) == ([], 1)
        assert without_sweeps(records) == before

    def test_the_next_try_learns_what_is_about_to_be_cancelled_before_its_state_is_read(
        self, emulator: DaiEmulator, owned: Owned, airflow: Airflow, records: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = owned("failed")
        states = airflow.task_states
        seen: list[set[str]] = []

        def look(*args: Any) -> Any:
            seen.append(
                OwnerRecords(records).pending_cancellations(Owner("a_dag", "a_run", "ingest"), emulator.endpoint)
            )
            return states(*args)

        monkeypatch.setattr(owners, "task_states", look)
        sweep(older_than=None)
        assert seen == [set(), {name}]

    def test_it_waits_between_its_looks(self, owned: Owned, clock: Clock) -> None:
        owned("failed")
        began = clock.now
        sweep(older_than=None, orphaned_for=timedelta(seconds=90))
        assert clock.now - began >= 90

    def test_a_kill_between_the_looks_cancels_nothing(
        self, emulator: DaiEmulator, owned: Owned, ti: Ti, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        owned("failed")
        operator = DaiCancelStrayOperationsOperator(task_id="sweep")
        look_again(monkeypatch, operator.on_kill)
        with pytest.raises(AirflowException, match="No cancellation was requested: the task was killed"):
            operator.execute({"ti": ti})  # type: ignore[typeddict-item]
        assert cancelled(emulator) == set()

    def test_a_dry_run_looks_once_and_writes_nothing(
        self, emulator: DaiEmulator, owned: Owned, records: Store, clock: Clock
    ) -> None:
        owned("failed")
        before, began = dict(records.kept), clock.now
        assert len(sweep(older_than=None, dry_run=True)["found"]) == 1
        assert (without_sweeps(records), clock.now, cancelled(emulator)) == (before, began, set())

    def test_two_sweeps_at_once_cancel_once_what_is_left(
        self, emulator: DaiEmulator, owned: Owned, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = owned("failed")
        another = make(older_than=None)
        look_again(monkeypatch, lambda: another.execute({"ti": Ti(task_id="sweep", run_id="another")}))  # type: ignore[typeddict-item]
        sweep(older_than=None)
        assert emulator.state(name) == "CANCELLED"
        assert emulator.cancel_requested(name) in (1, 2)


class TestLeftovers:
    """What stays in the store of tasks that could not remove their records."""

    @pytest.fixture
    def left(self, emulator: DaiEmulator, owned: Owned, records: Store, clock: Clock) -> str:
        """Let a sweep cancel the ingest of a task that has failed, which then finishes."""
        name = owned("failed")
        sweep(older_than=None)
        assert cancelled(emulator) == {name}
        assert {key.partition("-")[0] for key in records.kept} == {"owner", "owners", "strays", "sweep"}
        clock.advance(3600)
        return name

    @pytest.mark.usefixtures("left")
    def test_they_are_removed_once_the_ingest_has_finished(self, records: Store) -> None:
        for _ in range(2):  # what lists the records is tidied when they are read
            sweep(older_than=None)
        assert without_sweeps(records) == {}

    @pytest.mark.parametrize("state", ["success", "failed", "skipped"])
    def test_a_start_in_doubt_stays_for_days(
        self, emulator: DaiEmulator, airflow: Airflow, write: Any, clock: Clock, records: Store, state: str
    ) -> None:
        own = write()
        name = emulator.start_ingest(seconds=60, creative_url=URL)
        own.end([name], [URL])
        set_state(airflow, "running")
        clock.advance(10)
        sweep(older_than=None)
        own.close()
        set_state(airflow, state)
        clock.advance(KEPT - 11)
        sweep(older_than=None)
        assert own._record.owner.key in records.kept
        clock.advance(2)
        sweep(older_than=None)
        assert own._record.owner.key not in records.kept

    @pytest.mark.usefixtures("left")
    @pytest.mark.parametrize("state", [*ALIVE])
    def test_the_record_of_a_task_that_is_not_over_stays(self, airflow: Airflow, records: Store, state: Any) -> None:
        set_state(airflow, state)
        before = without_sweeps(records)
        sweep(older_than=None)
        assert without_sweeps(records) == before

    def test_the_record_of_a_task_with_another_ingest_that_runs_stays(
        self, emulator: DaiEmulator, airflow: Airflow, write: Any, clock: Clock, records: Store
    ) -> None:
        own = write(cancel_on_kill=False)
        short, long = (emulator.start_ingest(seconds=seconds, creative_url=URL) for seconds in (60, math.inf))
        own.end([short, long])
        set_state(airflow, "failed")
        for _ in range(3):
            clock.advance(3600)
            sweep(older_than=None)
        assert own._record.owner.key in records.kept
        assert cancelled(emulator) == set()

    @pytest.mark.parametrize("endpoint", [None, "https://dai.googleapis.com"], ids=["account", "endpoint"])
    def test_those_of_another_account_or_endpoint_stay_for_days(
        self, emulator: DaiEmulator, write: Any, airflow: Airflow, records: Store, clock: Clock, endpoint: str | None
    ) -> None:
        """A sweep there sees other operations."""
        own = write(endpoint=endpoint or emulator.endpoint)
        own.end(["operations/elsewhere"])
        set_state(airflow, "failed")
        clock.advance(KEPT - 1)
        sweep(older_than=None)
        assert own._record.owner.key in records.kept
        clock.advance(2)
        sweep(older_than=None)
        assert own._record.owner.key not in records.kept

    def test_a_record_that_a_cleared_task_has_written_meanwhile_stays(
        self, left: str, write: Any, airflow: Airflow, records: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        states = airflow.task_states

        def look(*args: Any) -> Any:
            found = states(*args)
            write().end([left])
            return found

        monkeypatch.setattr(owners, "task_states", look)
        sweep(older_than=None)
        assert Owner("a_dag", "a_run", "ingest").key in records.kept

    @pytest.mark.usefixtures("left")
    @pytest.mark.parametrize("why", ["dry run", "unreadable"])
    def test_they_stay_where_the_list_or_the_user_says_too_little(
        self, emulator: DaiEmulator, records: Store, why: str
    ) -> None:
        before = without_sweeps(records)
        if why == "unreadable":
            emulator.inject(Fault("operations.list", listed=[{"name": 7}]))
        sweep(older_than=None, dry_run=why == "dry run")
        assert without_sweeps(records) == before

    @pytest.mark.usefixtures("left")
    def test_an_outage_of_airflow_is_logged_and_fails_no_sweep(
        self, records: Store, airflow: Airflow, log: Log
    ) -> None:
        before, airflow.away = without_sweeps(records), True
        sweep(older_than=None)
        assert log.lines("Could not remove the records of finished ingests: RuntimeError('the API server is unavail")
        assert without_sweeps(records) == before


class TestOutage:
    @pytest.mark.parametrize("part", ["records", "states", "second look"])
    def test_without_an_answer_of_airflow_nothing_is_cancelled(
        self, emulator: DaiEmulator, owned: Owned, airflow: Airflow, records: Store, monkeypatch: Any, part: str
    ) -> None:
        owned("failed")
        if part == "records":
            records.broken = True
        elif part == "states":
            airflow.away = True
        else:
            look_again(monkeypatch, lambda: setattr(airflow, "away", True))
        with pytest.raises(
            AirflowException, match="Cannot read the owners of the operations: .* API server is unavailable"
        ) as raised:
            sweep(older_than=timedelta(seconds=1))
        assert not isinstance(raised.value, AirflowFailException)
        assert "No cancellation was requested" in str(raised.value)
        assert cancelled(emulator) == set()


class TestCost:
    @pytest.mark.parametrize(("failing", "strays"), [(2, 500), (1, 1000), (51, 0)])
    def test_a_thousand_operations_of_fifty_runs(
        self, emulator: DaiEmulator, owned: Owned, airflow: Airflow, records: Store, failing: int, strays: int
    ) -> None:
        for run in range(50):
            for index in range(20):
                owned(
                    "running" if (run + 1) % failing else "failed",
                    f"run_{run}",
                    map_index=index,
                    url=f"{URL}{run}-{index}",
                )
        airflow.asked.clear()
        records.asked.clear()
        sweep(older_than=None, max_cancellations=1000)
        assert len(cancelled(emulator)) == strays
        assert len(airflow.asked) + len(records.asked) <= 3 * 50 + 2 * 1000


class TestXComs:
    """As on Airflow 2, where a task can read what all others have pushed."""

    @pytest.fixture
    def pushed(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """Give the XComs that the database holds, and forget the records."""
        found: list[Any] = []

        def read(key: str, since: datetime) -> list[Any]:
            assert (key, since.tzinfo) == ("operation_started", UTC)
            return found

        monkeypatch.setattr(owners, "HAS_ASSET_STATE_STORE", False)
        monkeypatch.setattr(owners, "TASKS_READ_DATABASE", True)
        monkeypatch.setattr(owners, "xcoms_in_database", read)
        return found

    @pytest.fixture
    def start(self, emulator: DaiEmulator, clock: Clock, pushed: list[Any]) -> Callable[..., str]:
        """Give a function that starts an ingest whose name a task pushes; later it is an hour old."""

        def start(run_id: str = "a_run", task_id: str = "ingest", map_index: int = -1, **started: Any) -> str:
            name = emulator.start_ingest(seconds=math.inf, creative_url=URL)
            value = {"endpoint": emulator.endpoint, "try_number": 1, "pushed_at": {name: clock.now}, "flags": FLAGS}
            pushed.append(("a_dag", run_id, task_id, map_index, value | started))
            clock.advance(3600)
            return name

        return start

    def test_what_is_left_of_a_task_that_is_over_is_cancelled(
        self, emulator: DaiEmulator, airflow: Airflow, start: Any
    ) -> None:
        strays = {start(run) for run in ("run_1", "run_2")}
        start("run_3")
        for run, state in {"run_1": "failed", "run_2": "skipped", "run_3": "deferred"}.items():
            set_state(airflow, state, run)
        report = sweep(older_than=None)
        assert cancelled(emulator) == strays
        assert report["passed_over"]["owned"] == 1

    def test_what_is_left_of_a_deleted_run_has_no_owner(self, emulator: DaiEmulator) -> None:
        """Its XComs are deleted with it."""
        emulator.start_ingest(seconds=math.inf, creative_url=URL)
        assert sweep(older_than=None)["passed_over"]["unowned"] == 1
        assert cancelled(emulator) == set()

    @pytest.mark.parametrize(
        "started",
        [
            {"endpoint": "https://elsewhere.example"},
            {"endpoint": None},
            {"flags": {}},
            {"flags": None},
            {"pushed_at": None},
            {"pushed_at": {"operations/another": 1.0}},
            {"try_number": "one"},
        ],
    )
    def test_what_another_system_has_started_or_pushed_is_left_alone(
        self, emulator: DaiEmulator, airflow: Airflow, start: Any, started: dict[str, Any]
    ) -> None:
        start(**started)
        set_state(airflow, "failed")
        assert sweep(older_than=None)["passed_over"]["unowned"] == 1
        assert cancelled(emulator) == set()

    @pytest.mark.parametrize("value", [None, 7, "text", [], {}])
    def test_any_other_value_is_no_owner(
        self, emulator: DaiEmulator, airflow: Airflow, start: Any, pushed: list[Any], value: Any
    ) -> None:
        name = start()
        pushed.insert(0, ("a_dag", "b_run", "ingest", -1, value))
        set_state(airflow, "failed")
        sweep(older_than=None)
        assert cancelled(emulator) == {name}

    @pytest.mark.parametrize(("second", "strays"), [("running", 0), ("failed", 1)])
    def test_of_two_owners_each_has_to_be_over(
        self, emulator: DaiEmulator, airflow: Airflow, start: Any, pushed: list[Any], second: str, strays: int
    ) -> None:
        """A task of a user has pushed the other task's name."""
        start()
        pushed.append(("a_dag", "b_run", *pushed[0][2:]))
        set_state(airflow, "failed", "a_run")
        set_state(airflow, second, "b_run")
        sweep(older_than=None)
        assert len(cancelled(emulator)) == strays


class TestVersions:
    def test_without_owners_an_age_is_required(self, emulator: DaiEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(owners, "HAS_ASSET_STATE_STORE", False)
        monkeypatch.setattr(owners, "TASKS_READ_DATABASE", False)
        with pytest.raises(AirflowFailException, match="older_than is required"):
            sweep(older_than=None)
        assert [request.method for request in emulator.requests] == []

    @pytest.mark.parametrize("value", [0, -1, "soon", True, float("nan")])
    def test_how_long_an_owner_has_to_be_over_is_checked(self, emulator: DaiEmulator, value: Any) -> None:
        with pytest.raises(AirflowFailException, match="Invalid orphaned_for"):
            sweep(older_than=None, orphaned_for=value)
        assert emulator.requests == []


def test_a_fault_of_the_list_is_told_before_airflow_is_asked(emulator: DaiEmulator, airflow: Airflow, ti: Ti) -> None:
    emulator.inject(Fault("operations.list", rpc_status="PERMISSION_DENIED", times=None))
    with pytest.raises(AirflowFailException, match="No cancellation was requested"):
        sweep(older_than=None)
    assert airflow.asked == []
