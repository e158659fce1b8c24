"""DaiCancelStrayOperationsOperator: whose an operation is, and whether it is a stray."""

from __future__ import annotations

import json
import math
from datetime import timedelta
from typing import Any

import pytest

from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.ingest.ownership import LATEST_START, Owner
from tests.support.clock import Clock
from tests.support.owners import ALIVE, URL, Airflow, Owned, before_second_read, cancelled, set_state, sweep
from tests.support.task_instance import Store

pytestmark = pytest.mark.usefixtures("sweep_time")


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

    def test_the_report_names_the_try_to_which_an_operation_belongs(self, emulator: DaiEmulator, owned: Owned) -> None:
        first, second = (owned("running", try_number=number) for number in (1, 2))
        report = sweep(older_than=None)
        assert cancelled(emulator) == {first}
        (found,), (kept,) = report["found"], report["owned"]
        assert (found["name"], found["owner"]["try_number"]) == (first, 1)
        assert found["owner"]["reason"] == "is running, but a later try has not reattached to this ingest"
        assert (kept["name"], kept["try_number"]) == (second, 2)

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

    @pytest.mark.parametrize("older_than", [None, 1], ids=["by owner", "by age too"])
    @pytest.mark.parametrize("living", ["a_run", "b_run"])
    def test_two_tasks_that_start_the_same_media_at_a_time_keep_their_ingests(
        self,
        emulator: DaiEmulator,
        airflow: Airflow,
        write: Any,
        clock: Clock,
        living: str,
        older_than: int | None,
    ) -> None:
        for run in ("a_run", "b_run"):
            write(run)
            emulator.start_ingest(seconds=math.inf, creative_url=URL)
            set_state(airflow, "running" if run == living else "failed", run)
        clock.advance(60)
        report = sweep(older_than=older_than)
        assert cancelled(emulator) == set()
        assert {(one["run_id"], one["reason"]) for one in report["owned"]} == {(living, "is running")}
        assert report["passed_over"]["owned"] == 2
        set_state(airflow, "skipped", living)
        sweep(older_than=older_than)
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
        before_second_read(monkeypatch, lambda: records.delete(Owner("a_dag", "a_run", "ingest").key))
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
