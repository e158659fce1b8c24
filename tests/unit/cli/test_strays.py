"""``sweep`` and ``purge``: what they find by owner and by age, and what they change."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from airflow_dai_provider import metadata_database
from airflow_dai_provider.cli import owner_search
from airflow_dai_provider.cli.output import Notes
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.ingest.ownership import ASSET, OwnerRecords, Record
from airflow_dai_provider.tasks.xcom import XCOM_STARTED
from airflow_dai_provider.version_compat import HAS_ASSET_STATE_STORE
from tests.support.clock import Clock
from tests.support.dag_runs import damaged_xcom
from tests.support.emulators import MakeEmulator, count
from tests.unit.cli.conftest import Dai, Result, Start

pytestmark = pytest.mark.usefixtures("metadata_database", "asset")

CANCEL = "operations.cancel"


def results(result: Result) -> dict[str, Any]:
    return {row["name"]: row["result"] for row in result.rows}


def records_of_owners() -> list[Record]:
    """Return the records, each of which can be read."""
    unreadable: list[str] = []
    records = owner_search.read_records(unreadable.append)
    assert unreadable == []
    return records


class TestSweep:
    def test_by_default_it_only_shows(self, emulator: DaiEmulator, dai: Dai, start: Start) -> None:
        healthy, stray = start("healthy"), start("stray")
        emulator.start_ingest("operations/of/another")
        stray.fail()
        result = dai("sweep", "-o", "json")
        assert result.code == 0
        (row,) = result.rows
        assert row["name"] == stray.name != healthy.name
        assert (row["dag_id"], row["run_id"], row["task_state"]) == ("stray", stray.run.run_id, "success")
        assert (row["reason"], row["result"]) == ("has succeeded; its run is failed", None)
        assert "This was a dry run: nothing was cancelled. --no-dry-run cancels them." in result.err
        assert "1 still needed by a task, 1 without an owner" in result.err
        assert count(emulator, CANCEL) == 0

    def test_it_asks_reads_the_owners_again_and_cancels(
        self, emulator: DaiEmulator, dai: Dai, start: Start, clock: Clock
    ) -> None:
        stray = start()
        stray.fail()
        began = clock.now
        result = dai("sweep", "--no-dry-run", "--wait", "-o", "plain", answer="y\n")
        assert result.code == 0
        assert f"Cancel {stray.name}? [y/N]" in result.err
        assert "CANCELLED" in result.out
        assert emulator.state(stray.name) == "CANCELLED"
        assert clock.now >= began + 120

    @pytest.mark.parametrize("more", [1, 3])
    def test_what_is_stray_only_after_the_answer_is_left_alone(
        self, emulator: DaiEmulator, dai: Dai, start: Start, monkeypatch: pytest.MonkeyPatch, clock: Clock, more: int
    ) -> None:
        """Also when the strays are many by then; the second read and the announcement stay."""
        asked, *later = [start(f"dag_{number}") for number in range(1 + more)]
        asked.fail()
        announced: dict[str, list[str]] = {}
        announce = OwnerRecords.announce

        def ask(self: Any, _: str) -> bool:
            for one in later:
                one.fail()
            return True

        def record(self: Any, sweep: Any, owner: Any, endpoint: str, names: Any) -> None:
            announced[owner.dag_id] = list(names)
            announce(self, sweep, owner, endpoint, names)

        monkeypatch.setattr(Notes, "ask", ask)
        monkeypatch.setattr(OwnerRecords, "announce", record)
        began = clock.now
        result = dai("sweep", "--no-dry-run", "--max-cancellations", "2", "-o", "plain")
        assert result.code == 0
        assert [emulator.cancel_requested(one.name) for one in (asked, *later)] == [1, *[0] * more]
        assert clock.now >= began + 120
        assert announced == ({asked.run.dag_id: [asked.name]} if HAS_ASSET_STATE_STORE else {})

    def test_what_is_asked_about_is_told_beside_the_output(self, dai: Dai, start: Start) -> None:
        stray = start()
        stray.fail()
        result = dai("sweep", "--no-dry-run", "-o", "json", answer="y\n")
        assert (result.code, results(result)) == (0, {stray.name: "requested"})
        assert f"{stray.name} (1:00:00 old, " in result.err
        assert result.err.index("; of try 1 of task ingest of run") < result.err.index("[y/N]")
        assert "s3cret" not in result.err

    def test_no_answer_cancels_nothing(self, emulator: DaiEmulator, dai: Dai, start: Start) -> None:
        start().fail()
        assert dai("sweep", "--no-dry-run").code == 1
        assert count(emulator, CANCEL) == 0

    def test_with_yes_it_does_not_ask(self, emulator: DaiEmulator, dai: Dai, start: Start) -> None:
        stray = start()
        stray.fail()
        result = dai("sweep", "--no-dry-run", "--yes", "--orphaned-for", "5s", "-o", "json")
        assert (result.code, results(result)) == (0, {stray.name: "requested"})
        assert "[y/N]" not in result.err
        assert emulator.cancel_requested(stray.name) == 1

    def test_what_is_cleared_between_the_reads_is_left_alone(
        self, emulator: DaiEmulator, dai: Dai, start: Start, monkeypatch: pytest.MonkeyPatch, clock: Clock
    ) -> None:
        from airflow_dai_provider.cli.session import Session

        stray = start()
        stray.fail()

        def sleep(seconds: float) -> None:
            clock.sleep(seconds)
            stray.set_state("running")

        monkeypatch.setattr(Session, "sleep", staticmethod(sleep))
        result = dai("sweep", "--no-dry-run", "--yes", "-o", "json")
        assert (result.code, result.rows, count(emulator, CANCEL)) == (0, [], 0)

    def test_what_another_system_has_started_goes_by_age(self, emulator: DaiEmulator, dai: Dai, clock: Clock) -> None:
        old = emulator.start_ingest()
        clock.advance(7 * 3600)
        emulator.start_ingest()
        clock.advance(60)
        assert dai("sweep", "-o", "json").rows == []
        result = dai("sweep", "--older-than", "6h", "-o", "json")
        assert [(row["name"], row["reason"]) for row in result.rows] == [(old, "is older than --older-than")]
        assert dai("sweep", "--older-than", "6h", "--spare", old, "-o", "json").rows == []

    def test_without_a_create_time_that_is_the_reason(self, emulator: DaiEmulator, dai: Dai) -> None:
        page = {"operations": [{"name": "operations/undated"}]}
        emulator.inject(Fault("operations.list", status=200, body=json.dumps(page).encode()))
        (row,) = dai("sweep", "--older-than", "6h", "--include-undated", "-o", "json").rows
        assert (row["name"], row["age"], row["reason"]) == ("operations/undated", None, "has no create time")

    def test_what_is_no_operation_is_told(self, emulator: DaiEmulator, dai: Dai) -> None:
        page = {"operations": [{"name": "operations/undated"}, {}]}
        emulator.inject(Fault("operations.list", status=200, body=json.dumps(page).encode()))
        result = dai("sweep", "--older-than", "6h", "--include-undated", "-o", "json")
        assert (result.code, [row["name"] for row in result.rows]) == (1, ["operations/undated"])
        assert "1 unreadable operations were passed over" in result.err

    def test_what_was_created_ahead_of_this_clock_has_no_age_yet(self, dai: Dai, start: Start, clock: Clock) -> None:
        stray = start()
        stray.fail()
        clock.advance(-3605)
        assert [row["age"] for row in dai("list", "-o", "json").rows] == ["0:00:00"]
        result = dai("sweep", "--no-dry-run", "-o", "json", answer="y\n")
        assert f"{stray.name} (0:00:00 old, " in result.err
        assert [row["age"] for row in result.rows] == ["0:00:00"]

    def test_beside_an_unreadable_xcom_nothing_goes_by_age(
        self, emulator: DaiEmulator, dai: Dai, start: Start, clock: Clock
    ) -> None:
        started = start()
        emulator.start_ingest()
        clock.advance(60)
        with damaged_xcom(started.run, "ingest", XCOM_STARTED):
            result = dai("sweep", "--no-dry-run", "-y", "--older-than", "1s")
            listed = dai("list", "-o", "json")
        assert (result.code, listed.code, count(emulator, CANCEL)) == (1, 1, 0)
        assert [row["name"] for row in listed.rows] != []
        assert f"Cannot read the XCom {XCOM_STARTED} of task ingest of run" in result.err
        assert "so operations without an owner are left alone." in result.err
        assert f"Cannot read the XCom {XCOM_STARTED} of task ingest of run" in listed.err

    def test_ctrl_c_does_not_lose_what_was_requested(
        self, make_emulator: MakeEmulator, dai: Dai, monkeypatch: pytest.MonkeyPatch, clock: Clock
    ) -> None:
        emulator = make_emulator(cancel_seconds=1e6)
        running, done = emulator.start_ingest(), emulator.start_ingest(seconds=90, cancel="ignored")
        clock.advance(60)

        def sleep(seconds: float) -> None:
            clock.sleep(seconds)
            if emulator.state(done) == "SUCCEEDED" and len(clock.slept) > 10:
                raise KeyboardInterrupt

        monkeypatch.setattr(DaiHook, "_sleep", staticmethod(sleep))
        result = dai("sweep", "--no-dry-run", "-y", "--older-than", "1s", "--wait", "-o", "json")
        assert result.code == 130
        found = results(result)
        assert found.pop(done) == "SUCCEEDED"
        assert found[running].startswith("may still run: its cancellation is requested, but ")
        assert found[running].endswith("; the command was interrupted")
        assert "Interrupted." in result.err

    @pytest.mark.skipif(not HAS_ASSET_STATE_STORE, reason="Airflow before 3.3 has no records of owners")
    def test_a_terminal_that_closes_leaves_no_announcement(
        self, emulator: DaiEmulator, dai: Dai, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stray = start()
        stray.fail()
        retracted: list[str] = []

        def get(*_: object) -> None:
            assert callable(signal.getsignal(signal.SIGHUP)), "the signal would end the tests"
            signal.raise_signal(signal.SIGHUP)

        def retract(self: Any, sweep: Any, owner: Any, endpoint: str, names: Any) -> None:  # noqa: ARG001
            retracted.extend(names)

        monkeypatch.setattr(OwnerRecords, "get", get)
        monkeypatch.setattr(OwnerRecords, "retract", retract)
        result = dai("sweep", "--no-dry-run", "-y", "-o", "json")
        assert (result.code, result.err.splitlines()[-1]) == (130, "Interrupted.")
        assert (retracted, count(emulator, CANCEL)) == ([stray.name], 0)

    def test_too_many_are_not_cancelled(self, emulator: DaiEmulator, dai: Dai, clock: Clock) -> None:
        for _ in range(3):
            emulator.start_ingest()
        clock.advance(60)
        result = dai("sweep", "--no-dry-run", "-y", "--older-than", "1s", "--max-cancellations", "2")
        assert (result.code, count(emulator, CANCEL)) == (1, 0)
        too_many = "3 strays are more than --max-cancellations 2, so those without an owner are not cancelled."
        assert too_many in result.err
        shown = dai("sweep", "--older-than", "1s", "--max-cancellations", "2")
        assert shown.code == 0
        assert too_many in shown.err
        assert "This was a dry run: nothing was cancelled.\n" in shown.err

    def test_a_refused_cancellation_is_told(self, emulator: DaiEmulator, dai: Dai, clock: Clock) -> None:
        name = emulator.start_ingest()
        clock.advance(60)
        emulator.inject(Fault(CANCEL, rpc_status="PERMISSION_DENIED", times=None))
        result = dai("sweep", "--no-dry-run", "-y", "--older-than", "1s", "-o", "json")
        assert result.code == 1
        assert results(result)[name].startswith("may still run: ")
        assert "PERMISSION_DENIED" in results(result)[name]

    @pytest.mark.parametrize("command", ["sweep", "purge"])
    def test_no_permission(self, emulator: DaiEmulator, dai: Dai, command: str) -> None:
        emulator.inject(Fault("operations.list", rpc_status="PERMISSION_DENIED", times=None))
        result = dai(command)
        if command == "sweep" or HAS_ASSET_STATE_STORE:
            assert result.code == 1
            assert "allow-listed" in result.err

    def test_without_the_database_nothing_is_cancelled(
        self, emulator: DaiEmulator, dai: Dai, monkeypatch: pytest.MonkeyPatch, clock: Clock
    ) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("the database at postgresql://user:s3cret@host/ is away\n[SQL: SELECT ...]")

        monkeypatch.setattr(metadata_database, "find_asset_store", fail)
        emulator.start_ingest()
        clock.advance(60)
        result = dai("sweep", "--no-dry-run", "-y", "--older-than", "1s")
        assert (result.code, count(emulator, CANCEL)) == (1, 0)
        told = (
            "The metadata database cannot be read: the database at postgresql://host/ is away. Nothing was changed.\n"
        )
        assert result.err == told


@pytest.mark.skipif(not HAS_ASSET_STATE_STORE, reason="Airflow before 3.3 has no records of owners")
def test_records_that_only_tasks_read_are_told_and_nothing_is_changed(
    emulator: DaiEmulator, dai: Dai, start: Start
) -> None:
    start().fail()
    emulator.start_ingest()
    store: Any = metadata_database.find_asset_store(ASSET)
    (record,) = records_of_owners()
    for key in (record.owner.key, f"owners-{int(record.owner.key[-8:], 16) % 32}"):
        store.set(key, {"__airflow_state_ref__": f"s3://bucket/{key}"})
    for arguments in (
        ["sweep", "--no-dry-run", "-y", "--older-than", "1s"],
        ["purge", "--older-than", "30m"],
        ["list"],
    ):
        result = dai(*arguments)
        assert (result.code, count(emulator, CANCEL)) == (1, 0)
        assert "the records of owners are in the [workers] state_store_backend, which only tasks read" in result.err
    with pytest.raises(LookupError):
        store.get(record.owner.key)


@pytest.mark.skipif(HAS_ASSET_STATE_STORE, reason="Airflow 3.3 and later have records of owners")
def test_there_is_nothing_to_purge_before_3_3(emulator: DaiEmulator, dai: Dai) -> None:
    result = dai("purge", "-o", "json")
    assert (result.code, result.rows) == (0, [])
    assert "Airflow before 3.3 has no records of owners" in result.err
    assert count(emulator, "operations.list") == 0


@pytest.mark.skipif(not HAS_ASSET_STATE_STORE, reason="Airflow before 3.3 has no records of owners")
class TestPurge:
    def test_records_of_finished_operations_go(
        self, make_emulator: MakeEmulator, dai: Dai, start: Start, clock: Clock
    ) -> None:
        make_emulator(ingest_seconds=2 * 3600)
        gone = start("gone")
        clock.advance(2 * 3600)
        start("still_runs")
        assert len(records_of_owners()) == 2
        result = dai("purge", "-o", "json")
        assert result.code == 0
        assert [(row["dag_id"], row["run_id"]) for row in result.rows] == [("gone", gone.run.run_id)]
        assert "Records deleted: 1." in result.err
        (kept,) = records_of_owners()
        assert kept.owner.dag_id == "still_runs"
        assert dai("purge", "-o", "json").rows == []

    def test_those_of_forgotten_operations_go_when_they_are_old_enough(
        self, emulator: DaiEmulator, dai: Dai, start: Start
    ) -> None:
        start()
        emulator.reset()
        assert dai("purge", "-o", "json").rows == []
        assert len(dai("purge", "--older-than", "30m", "-o", "json").rows) == 1
        assert records_of_owners() == []

    def test_a_list_that_says_too_little_deletes_nothing(self, emulator: DaiEmulator, dai: Dai, start: Start) -> None:
        start()
        emulator.inject(Fault("operations.list", status=200, body=b'{"operations": [{}]}'))
        result = dai("purge", "--older-than", "30m")
        assert result.code == 1
        counted, told = result.err.splitlines()
        assert counted.startswith("operations.list: 1 unreadable operations were passed over; of the first: ")
        assert told == "No record was deleted, since an operation that cannot be read may need one."
        assert metadata_database.find_asset_store(ASSET) is not None
        assert len(records_of_owners()) == 1

    def test_no_record_goes_while_its_ingest_can_still_start(
        self, emulator: DaiEmulator, dai: Dai, start: Start, clock: Clock
    ) -> None:
        start()
        emulator.reset()
        clock.advance(600 - 3600)
        assert dai("purge", "--older-than", "1s", "-o", "json").rows == []
        clock.advance(600)
        assert len(dai("purge", "--older-than", "1s", "-o", "json").rows) == 1

    @pytest.mark.usefixtures("emulator")
    def test_a_database_that_goes_away_is_told_in_one_line(
        self, dai: Dai, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("the database is away\n[SQL: SELECT ...]")

        start()
        monkeypatch.setattr(metadata_database.AssetStore, "get", fail)
        result = dai("purge")
        told = "The metadata database cannot be read: the database is away. Not every record was deleted.\n"
        assert (result.code, result.err) == (1, f"Records deleted: 0.\n{told}")

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the database is away")])
    def test_an_end_half_way_does_not_lose_what_was_deleted(
        self, emulator: DaiEmulator, dai: Dai, start: Start, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        delete, deleted = metadata_database.AssetStore.delete, list[str]()

        def delete_one(store: metadata_database.AssetStore, key: str) -> None:
            if deleted and key.startswith("owner-"):
                raise error
            deleted.append(key)
            delete(store, key)

        start("first")
        start("second")
        emulator.reset()
        monkeypatch.setattr(metadata_database.AssetStore, "delete", delete_one)
        result = dai("purge", "--older-than", "30m", "-o", "json")
        (kept,) = records_of_owners()
        assert {row["dag_id"] for row in result.rows} == {"first", "second"} - {kept.owner.dag_id}
        assert "Records deleted: 1.\n" in result.err
        interrupted = isinstance(error, KeyboardInterrupt)
        assert (result.code, "Interrupted.\n" in result.err) == ((130, True) if interrupted else (1, False))
