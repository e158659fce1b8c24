"""DaiCancelStrayOperationsOperator: how it reads the owners, and what it removes."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_dai_provider import version_compat
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.ingest.ownership import Owner, OwnerRecords
from airflow_dai_provider.operators.dai import DaiCancelStrayOperationsOperator
from airflow_dai_provider.sweep import owners, search
from airflow_dai_provider.sweep.owners import KEPT
from tests.support.clock import Clock
from tests.support.log import Log
from tests.support.owners import (
    ALIVE,
    URL,
    Airflow,
    Owned,
    before_second_read,
    cancelled,
    set_state,
    sweep,
    without_sweeps,
)
from tests.support.strays import make
from tests.support.task_instance import Store, Ti

pytestmark = pytest.mark.usefixtures("sweep_time")


class TestReadTwice:
    def test_a_task_that_is_cleared_meanwhile_keeps_its_ingest(
        self,
        emulator: DaiEmulator,
        owned: Owned,
        airflow: Airflow,
        monkeypatch: pytest.MonkeyPatch,
        records: Store,
    ) -> None:
        owned("failed")
        before = dict(records.kept)
        before_second_read(monkeypatch, lambda: set_state(airflow, None))
        report = sweep(older_than=None)
        assert cancelled(emulator) == set()
        assert (report["found"], report["passed_over"]["owned"]) == ([], 1)
        assert without_sweeps(records) == before

    def test_the_next_try_learns_what_is_about_to_be_cancelled_before_its_state_is_read(
        self,
        emulator: DaiEmulator,
        owned: Owned,
        airflow: Airflow,
        records: Store,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        name = owned("failed")
        states = airflow.task_states
        seen: list[set[str]] = []

        def read(*args: Any) -> Any:
            seen.append(
                OwnerRecords(records).pending_cancellations(Owner("a_dag", "a_run", "ingest"), emulator.endpoint)
            )
            return states(*args)

        monkeypatch.setattr(version_compat, "task_states", read)
        sweep(older_than=None)
        assert seen == [set(), {name}]

    def test_it_waits_between_the_two_reads(self, owned: Owned, clock: Clock) -> None:
        owned("failed")
        began = clock.now
        sweep(older_than=None, orphaned_for=timedelta(seconds=90))
        assert clock.now - began >= 90

    def test_a_kill_between_the_two_reads_cancels_nothing(
        self, emulator: DaiEmulator, owned: Owned, ti: Ti, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        owned("failed")
        operator = DaiCancelStrayOperationsOperator(task_id="sweep")
        before_second_read(monkeypatch, operator.on_kill)
        with pytest.raises(AirflowException, match="No cancellation was requested: the task was killed"):
            operator.execute({"ti": ti})  # type: ignore[typeddict-item]
        assert cancelled(emulator) == set()

    def test_a_dry_run_reads_once_and_writes_nothing(
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
        before_second_read(monkeypatch, lambda: another.execute({"ti": Ti(task_id="sweep", run_id="another")}))  # type: ignore[typeddict-item]
        sweep(older_than=None)
        assert emulator.state(name) == "CANCELLED"
        assert emulator.cancel_requested(name) in (1, 2)


class TestComplete:
    """A create task may attempt a lost start again where a sweep cancels what the first request has started."""

    @pytest.fixture
    def last_sweep(self, emulator: DaiEmulator, records: Store) -> Callable[[], float]:
        return lambda: OwnerRecords(records).last_sweep((emulator.endpoint, "google_cloud_default"))

    @pytest.mark.parametrize("strays", [0, 1])
    def test_a_sweep_of_the_endpoint_is_noted_with_the_time_of_its_list(
        self, owned: Owned, clock: Clock, last_sweep: Callable[[], float], strays: int
    ) -> None:
        for _ in range(strays):
            owned("failed")
        began = clock.now
        sweep(older_than=None)
        assert last_sweep() == began

    @pytest.mark.parametrize(
        "options",
        [{"dry_run": True}, {"url_prefix": "https://"}, {"url_pattern": "ad"}],
        ids=lambda options: next(iter(options)),
    )
    def test_one_that_leaves_strays_is_not(
        self, owned: Owned, last_sweep: Callable[[], float], options: dict[str, Any]
    ) -> None:
        for run in ("a_run", "b_run"):
            owned("failed", run)
        sweep(older_than=None, **options)
        assert last_sweep() == 0

    def test_the_limit_holds_back_only_operations_without_an_owner(
        self, emulator: DaiEmulator, owned: Owned, last_sweep: Callable[[], float], clock: Clock
    ) -> None:
        strays = {owned("failed", run) for run in ("a_run", "b_run")}
        for _ in range(2):
            emulator.start_ingest(seconds=math.inf)
        clock.advance(60)
        with pytest.raises(AirflowFailException, match="^2 stray operations are more than max_cancellations=1"):
            sweep(older_than=1, max_cancellations=1)
        assert cancelled(emulator) == strays
        assert last_sweep() == 0

    def test_one_that_cannot_read_all_of_the_list_is_not(
        self, emulator: DaiEmulator, last_sweep: Callable[[], float]
    ) -> None:
        emulator.inject(Fault("operations.list", listed=[{"name": 1}], times=None))
        sweep(older_than=None)
        assert last_sweep() == 0

    def test_one_that_cannot_list_is_not(self, emulator: DaiEmulator, last_sweep: Callable[[], float]) -> None:
        emulator.inject(Fault("operations.list", rpc_status="PERMISSION_DENIED", times=None))
        with pytest.raises(AirflowFailException):
            sweep(older_than=None)
        assert last_sweep() == 0

    def test_a_note_that_fails_is_logged_and_fails_no_sweep(
        self, emulator: DaiEmulator, owned: Owned, records: Store, monkeypatch: pytest.MonkeyPatch, log: Log
    ) -> None:
        name = owned("failed")
        write = records.set

        def fail(key: str, value: Any) -> None:
            if key.startswith("sweep-"):
                raise RuntimeError("the API server is unavailable")
            write(key, value)

        monkeypatch.setattr(records, "set", fail)
        sweep(older_than=None)
        assert cancelled(emulator) == {name}
        assert log.lines("Could not note this sweep for the create tasks: RuntimeError(")


class TestFinishedMeanwhile:
    """The list is read first: an ingest can finish after it, and its task can succeed before its state is read."""

    @pytest.fixture
    def finish(
        self, emulator: DaiEmulator, airflow: Airflow, write: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> list[str]:
        """Give the ingests of two tasks that wait, which finish when the states of tasks are read first."""
        names = []
        for run in ("a_run", "b_run"):
            names.append(emulator.start_ingest(seconds=3600, creative_url=f"{URL}{run}"))
            write(run, media=[f"{URL}{run}"]).end(names[-1:])
            set_state(airflow, "running", run)
        clock.advance(60)
        states = airflow.task_states

        def read(*args: Any) -> Any:
            if airflow.asked == []:
                clock.advance(3600)
                for run in ("a_run", "b_run"):
                    set_state(airflow, "success", run)
            return states(*args)

        monkeypatch.setattr(version_compat, "task_states", read)
        return names

    @pytest.mark.parametrize(
        "options", [{}, {"dry_run": True}, {"max_cancellations": 1}, {"older_than": 1}], ids=lambda one: [*one, ""][0]
    )
    def test_the_ingest_of_a_task_that_has_waited_for_it_is_no_stray(
        self, emulator: DaiEmulator, finish: list[str], options: dict[str, Any]
    ) -> None:
        report = sweep(**{"older_than": None} | options)
        assert (report["found"], report["passed_over"]["finished"]) == ([], 2)
        assert cancelled(emulator) == set()
        assert [emulator.state(name) for name in finish] == ["SUCCEEDED"] * 2

    def test_what_still_runs_is_cancelled_after_one_poll(self, emulator: DaiEmulator, owned: Owned) -> None:
        name = owned("success")
        sweep(older_than=None)
        assert cancelled(emulator) == {name}
        assert [request.method for request in emulator.requests if request.name == name] == [
            "operations.get",
            "operations.cancel",
        ]

    @pytest.mark.parametrize("fault", [{"status": 503}, {"rpc_status": "NOT_FOUND"}], ids=str)
    def test_a_poll_that_fails_saves_no_stray(self, emulator: DaiEmulator, owned: Owned, fault: dict[str, Any]) -> None:
        name = owned("failed")
        emulator.inject(Fault("operations.get", times=None, **fault))
        assert sweep(older_than=None)["requested"] == [name]
        assert cancelled(emulator) == {name}

    def test_polls_that_take_too_long_are_not_waited_for(
        self, emulator: DaiEmulator, finish: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(search, "POLLING", 0.0)
        emulator.inject(Fault("operations.get", delay=0.3, times=None))
        assert {one["name"] for one in sweep(older_than=None, dry_run=True)["found"]} == {*finish}


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

    @pytest.mark.usefixtures("left")
    def test_a_dry_run_leaves_the_list_of_records_as_it_is(self, records: Store) -> None:
        records.delete(Owner("a_dag", "a_run", "ingest").key)
        before = without_sweeps(records)
        sweep(older_than=None, dry_run=True)
        assert without_sweeps(records) == before

    @pytest.mark.usefixtures("left")
    @pytest.mark.parametrize("alone", [True, False])
    def test_a_record_that_comes_back_while_its_key_is_removed_is_listed_again(
        self, records: Store, write: Any, monkeypatch: pytest.MonkeyPatch, alone: bool
    ) -> None:
        """Its task has seen by then that the key is listed."""
        key = Owner("a_dag", "a_run", "ingest").key
        (part,) = (key for key in records.kept if key.startswith("owners-"))
        records.delete(key)
        if not alone:
            write("another_run")
            records.kept[part].append(another := Owner("a_dag", "another_run", "ingest").key)
        method = "delete" if alone else "set"
        change = getattr(records, method)
        pending = [write]

        def meanwhile(changed: str, *value: Any) -> None:
            if changed == part and pending:
                pending.pop()()
            change(changed, *value)

        monkeypatch.setattr(records, method, meanwhile)
        sweep(older_than=None)
        assert pending == []
        assert sorted(records.kept[part]) == sorted([key] if alone else [key, another])

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
        self,
        emulator: DaiEmulator,
        write: Any,
        airflow: Airflow,
        records: Store,
        clock: Clock,
        endpoint: str | None,
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

        def read(*args: Any) -> Any:
            found = states(*args)
            write().end([left])
            return found

        monkeypatch.setattr(version_compat, "task_states", read)
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
