"""DaiCancelStrayOperationsOperator: owners that are found in the XComs."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_dai_provider import metadata_database
from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.sweep import owners
from tests.support.clock import Clock
from tests.support.log import Log
from tests.support.owners import FLAGS, URL, Airflow, cancelled, set_state, sweep
from tests.support.strays import answer_list, listed

pytestmark = pytest.mark.usefixtures("sweep_time")


def pushed_at(value: Any) -> float:
    """Return when an XCom was pushed; infinity for one that does not tell."""
    names = value.get("pushed_at") if isinstance(value, dict) else None
    return max(names.values(), default=math.inf) if names else math.inf


class TestXComs:
    """As on Airflow 2, where a task can read what all others have pushed."""

    @pytest.fixture
    def pushed(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """Give the XComs that the database holds, with two items for an unreadable one, and forget the records."""
        found: list[Any] = []

        def read(key: str, since: datetime, *, on_unreadable: Callable[[str, datetime], None]) -> list[Any]:
            assert (key, since.tzinfo) == ("operation_started", UTC)
            for one in found:
                if len(one) == 2:
                    on_unreadable(*one)
            return [one for one in found if len(one) > 2 and pushed_at(one[-1]) >= since.timestamp()]

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

    @pytest.mark.parametrize(
        ("state", "pushed_too", "strays"),
        [
            ("failed", {"refused": False}, 1),
            ("failed", {"refused": True}, 0),
            ("failed", {}, 0),  # as an earlier version has pushed it
            ("success", {"refused": False}, 0),
            ("running", {"refused": False}, 0),
        ],
    )
    def test_of_a_task_that_does_not_wait_it_is_cancelled_once_that_has_failed(
        self, emulator: DaiEmulator, airflow: Airflow, start: Any, state: str, pushed_too: dict[str, bool], strays: int
    ) -> None:
        start(flags=FLAGS | {"waits": False}, **pushed_too)
        set_state(airflow, state)
        report = sweep(older_than=None)
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

    def test_beside_an_unreadable_one_only_later_operations_are_taken_by_their_age(
        self, emulator: DaiEmulator, airflow: Airflow, start: Any, pushed: list[Any], clock: Clock, log: Log
    ) -> None:
        name = start()
        set_state(airflow, "failed")
        emulator.start_ingest(seconds=math.inf, creative_url=f"{URL}2")
        # Of two map indexes, in either order.
        for earlier in (3600, 0, 3600):
            pushed.append(("Cannot read the XCom x", datetime.fromtimestamp(clock.now - earlier, UTC)))
        clock.advance(59)
        emulator.start_ingest(seconds=math.inf, creative_url=f"{URL}3")
        clock.advance(2)
        later = emulator.start_ingest(seconds=math.inf, creative_url=f"{URL}4")
        clock.advance(10)
        report = sweep(older_than=1e-3, max_cancellations=5)
        assert cancelled(emulator) == {name, later}
        assert report["passed_over"]["unowned"] == 2
        assert log.lines("Cannot read the XCom x. Any operation created until 20")

    def test_beside_an_unreadable_one_an_undated_operation_is_left_alone(
        self, emulator: DaiEmulator, pushed: list[Any]
    ) -> None:
        answer_list(emulator, listed(emulator.start_ingest(seconds=math.inf, creative_url=URL)))
        pushed.append(("Cannot read the XCom x", datetime.fromtimestamp(1.0, UTC)))
        assert sweep(older_than=1e-3, include_undated=True)["passed_over"]["unowned"] == 1
        assert cancelled(emulator) == set()

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
