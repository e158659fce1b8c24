"""DaiCancelStrayOperationsOperator: how it reads the owners, and what it removes."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_dai_provider import metadata_database, version_compat
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.ingest.ownership import ASSET, Owner, OwnerRecords
from airflow_dai_provider.operators.dai import DaiCancelStrayOperationsOperator
from airflow_dai_provider.sweep import owners
from airflow_dai_provider.sweep.owners import KEPT
from tests.support.clock import Clock
from tests.support.log import Log
from tests.support.owners import (
    ALIVE,
    FLAGS,
    URL,
    Airflow,
    Owned,
    before_second_read,
    cancelled,
    set_state,
    sweep,
    without_sweeps,
)
from tests.support.strays import answer_list, listed, make
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


class NotFoundError(Exception):
    """Stands in for an error of Airflow's API server under ``dag.test()``."""

    def __init__(self, message: str) -> None:
        self.response = SimpleNamespace(status_code=404)
        self.detail = {"reason": "not_found", "message": message}


class TestUnknownAsset:
    @pytest.fixture
    def known(self, owned: Owned) -> str:
        """Give the ingest of a task that runs, which no age makes a stray."""
        return owned("running")

    @pytest.mark.usefixtures("known")
    def test_where_airflow_does_not_know_the_asset_operations_go_by_age(
        self, emulator: DaiEmulator, records: Store, monkeypatch: pytest.MonkeyPatch, log: Log
    ) -> None:
        monkeypatch.setattr(records, "set", fails(NotFoundError(f"Asset with name='{ASSET}' not found")))
        sweep(older_than=timedelta(days=1))
        assert log.lines("The operations are judged by their age.")
        with pytest.raises(AirflowException, match="Airflow does not know the asset .* No cancellation was requested"):
            sweep(older_than=None)
        assert cancelled(emulator) == set()

    @pytest.mark.usefixtures("known")
    @pytest.mark.parametrize("message", ["Task instance UUID('018f') not found", "Not Found"])
    def test_any_other_404_fails_the_sweep(
        self, emulator: DaiEmulator, records: Store, monkeypatch: pytest.MonkeyPatch, message: str
    ) -> None:
        monkeypatch.setattr(records, "set", fails(NotFoundError(message)))
        with pytest.raises(AirflowException, match="Cannot read the owners of the operations"):
            sweep(older_than=1)
        assert cancelled(emulator) == set()

    @pytest.mark.usefixtures("known")
    def test_an_asset_that_becomes_unknown_meanwhile_fails_the_sweep(
        self, emulator: DaiEmulator, records: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Airflow then returns nothing for each key, and no error."""
        monkeypatch.setattr(records, "get", lambda _: None)
        with pytest.raises(AirflowException, match="Airflow does not know the asset .* No cancellation was requested"):
            sweep(older_than=1)
        assert cancelled(emulator) == set()


def fails(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


class TestComplete:
    """A create task may attempt a lost start again where a sweep cancels what the first request has started."""

    @pytest.fixture
    def last_sweep(self, emulator: DaiEmulator, records: Store) -> Callable[[], float]:
        return lambda: OwnerRecords(records).last_sweep(emulator.endpoint)

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
        [{"dry_run": True}, {"url_prefix": "https://"}, {"url_pattern": "ad"}, {"max_cancellations": 1}],
        ids=lambda options: next(iter(options)),
    )
    def test_one_that_leaves_strays_is_not(
        self, owned: Owned, last_sweep: Callable[[], float], options: dict[str, Any]
    ) -> None:
        for run in ("a_run", "b_run"):
            owned("failed", run)
        with suppress(AirflowFailException):
            sweep(older_than=None, **options)
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


class TestOutage:
    @pytest.mark.parametrize("part", ["records", "states", "second read"])
    def test_without_an_answer_of_airflow_nothing_is_cancelled(
        self, emulator: DaiEmulator, owned: Owned, airflow: Airflow, records: Store, monkeypatch: Any, part: str
    ) -> None:
        owned("failed")
        if part == "records":
            records.broken = True
        elif part == "states":
            airflow.away = True
        else:
            before_second_read(monkeypatch, lambda: setattr(airflow, "away", True))
        with pytest.raises(
            AirflowException, match="Cannot read the owners of the operations: .* API server is unavailable"
        ) as raised:
            sweep(older_than=timedelta(seconds=1))
        assert not isinstance(raised.value, AirflowFailException)
        assert "No cancellation was requested" in str(raised.value)
        assert cancelled(emulator) == set()


class TestUnreadable:
    """One value that cannot be read does not end every sweep; an operation that can be its owner's is left alone."""

    @pytest.fixture
    def others(self, emulator: DaiEmulator, owned: Owned) -> tuple[str, str]:
        """Give a stray of a task that has failed, and the operation of another system."""
        stray = owned("failed", "z_run", url=f"{URL}z")
        return stray, emulator.start_ingest(seconds=math.inf, creative_url=f"{URL}other")

    @pytest.mark.parametrize(("state", "strays"), [("running", 0), ("failed", 2)])
    def test_an_xcom(
        self,
        emulator: DaiEmulator,
        airflow: Airflow,
        write: Any,
        clock: Clock,
        others: tuple[str, str],
        monkeypatch: pytest.MonkeyPatch,
        log: Log,
        state: str,
        strays: int,
    ) -> None:
        """Of a task that has started one ingest, and lost the response of another."""
        twin, adopted = (emulator.start_ingest(seconds=math.inf, creative_url=URL) for _ in range(2))
        write().end([adopted], [URL])
        set_state(airflow, state)
        clock.advance(60)
        monkeypatch.setattr(version_compat, "run_xcom", fails(FileNotFoundError("s3://bucket/key")))
        sweep(older_than=1)
        assert cancelled(emulator) == {others[0], *(twin, adopted)[:strays]}
        told = "Cannot read the XCom operation_started of task ingest of run a_run of DAG a_dag: FileNotFoundError."
        assert log.lines(told)

    @pytest.mark.parametrize("state", ["running", "failed"])
    @pytest.mark.parametrize("why", ["FileNotFoundError", "another version has written it"])
    def test_a_record(
        self,
        emulator: DaiEmulator,
        owned: Owned,
        others: tuple[str, str],
        records: Store,
        monkeypatch: pytest.MonkeyPatch,
        log: Log,
        state: str,
        why: str,
    ) -> None:
        owned(state)
        key = Owner("a_dag", "a_run", "ingest").key
        records.kept[key] = {"format": 2}
        read = records.get

        def get(asked: str) -> Any:
            if asked == key and why == "FileNotFoundError":
                raise FileNotFoundError("s3://bucket/key")
            return read(asked)

        monkeypatch.setattr(records, "get", get)
        report = sweep(older_than=1)
        assert cancelled(emulator) == {others[0]}
        assert report["passed_over"]["unowned"] == 2
        assert log.lines(f"Cannot read the record {key} of an owner: {why}. Any operation can be theirs")
        assert key in records.kept

    @pytest.mark.skipif(not version_compat.HAS_ASSET_STATE_STORE, reason="Airflow before 3.3 has no records of owners")
    @pytest.mark.parametrize("form", ["client", "supervisor"])
    @pytest.mark.parametrize("part", ["xcom", "record"])
    def test_an_outage_of_the_api_server_ends_the_sweep(
        self,
        emulator: DaiEmulator,
        airflow: Airflow,
        write: Any,
        clock: Clock,
        records: Store,
        monkeypatch: pytest.MonkeyPatch,
        form: str,
        part: str,
    ) -> None:
        import httpx
        from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
        from airflow.sdk.execution_time.comms import ErrorResponse

        error: Exception = httpx.ConnectError("away")
        if form == "supervisor":
            error = AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"message": "away"}))
        for _ in range(2):
            own = write()
            own.end([emulator.start_ingest(seconds=math.inf, creative_url=URL)])
        set_state(airflow, "running")
        clock.advance(60)
        read = records.get
        monkeypatch.setattr(version_compat, "run_xcom", fails(error))
        if part == "record":
            monkeypatch.setattr(records, "get", lambda key: fails(error)() if key.startswith("owner-") else read(key))
        with pytest.raises(AirflowException, match="Cannot read the owners of the operations: .*away"):
            sweep(older_than=1)
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


def pushed_at(value: Any) -> float:
    """Return when an XCom was pushed; the epoch's end of one that does not tell."""
    names = value.get("pushed_at") if isinstance(value, dict) else None
    return max(names.values(), default=math.inf) if names else math.inf


class TestXComs:
    """As on Airflow 2, where a task can read what all others have pushed."""

    @pytest.fixture
    def pushed(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """Give the XComs that the database holds, and forget the records."""
        found: list[Any] = []

        def read(key: str, since: datetime, *, on_unreadable: Callable[[str], None]) -> list[Any]:
            assert (key, since.tzinfo) == ("operation_started", UTC)
            for one in found:
                if isinstance(one, str):
                    on_unreadable(one)
            return [one for one in found if not isinstance(one, str) and pushed_at(one[-1]) >= since.timestamp()]

        monkeypatch.setattr(owners, "HAS_ASSET_STATE_STORE", False)
        monkeypatch.setattr(owners, "TASKS_READ_DATABASE", True)
        monkeypatch.setattr(metadata_database, "xcoms", read)
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

    @pytest.mark.parametrize("times", [{}, {"createTime": "0001-01-01T00:00:00Z"}], ids=["none", "not set"])
    @pytest.mark.parametrize("dated", [False, True], ids=["alone", "beside a dated one"])
    @pytest.mark.parametrize(("state", "strays"), [("running", 0), ("failed", 1)])
    def test_one_without_a_create_time_has_its_owner(
        self,
        emulator: DaiEmulator,
        airflow: Airflow,
        start: Any,
        times: dict[str, str],
        dated: bool,
        state: str,
        strays: int,
    ) -> None:
        name = start()
        set_state(airflow, state)
        young = {"createTime": "2025-06-15T16:06:40Z"}
        answer_list(emulator, listed(name, **times), *[listed("operations/young", **young)] * dated)
        report = sweep(older_than=timedelta(days=1), include_undated=True)
        assert len(cancelled(emulator)) == strays
        assert report["passed_over"]["owned"] == 1 - strays

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

    def test_beside_an_unreadable_one_no_operation_is_taken_by_its_age(
        self, emulator: DaiEmulator, airflow: Airflow, start: Any, pushed: list[Any], log: Log
    ) -> None:
        name = start()
        set_state(airflow, "failed")
        emulator.start_ingest(seconds=math.inf, creative_url=f"{URL}2")
        pushed.append("Cannot read the XCom x")
        report = sweep(older_than=1e-3, include_undated=True, max_cancellations=5)
        assert cancelled(emulator) == {name}
        assert report["passed_over"]["unowned"] == 1
        assert log.lines("Cannot read the XCom x. Any operation can be theirs, so those without an owner are left")

    @pytest.mark.parametrize("older_than", [None, 1], ids=["by owner", "by age too"])
    @pytest.mark.parametrize(("second", "strays"), [("running", 0), ("failed", 1)])
    def test_of_two_owners_each_has_to_be_over(
        self,
        emulator: DaiEmulator,
        airflow: Airflow,
        start: Any,
        pushed: list[Any],
        second: str,
        strays: int,
        older_than: int | None,
    ) -> None:
        """A task of a user has pushed the other task's name."""
        start()
        pushed.append(("a_dag", "b_run", *pushed[0][2:]))
        set_state(airflow, "failed", "a_run")
        set_state(airflow, second, "b_run")
        report = sweep(older_than=older_than)
        assert len(cancelled(emulator)) == strays
        assert report["passed_over"]["owned"] == 1 - strays


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
