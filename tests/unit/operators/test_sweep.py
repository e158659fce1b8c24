"""DaiCancelStrayOperationsOperator, against a real HTTP server, and where it matters on the real metadata database."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowException,
    AirflowFailException,
    AirflowNotFoundException,
    BaseHook,
    BaseOperator,
    task,
)

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.operators.dai import XCOM_REPORT, DaiCancelStrayOperationsOperator
from tests.support.event_loop import TokenService
from tests.support.tiny_server import TinyServer

LIST, GET, CANCEL = "operations.list", "operations.get", "operations.cancel"
HOUR = 3600.0
PLACES = ("requested", "cancelled", "finished", "refused", "left")
SIGNED = "https://user:s3cret@media.example/ad.mp4?X-Goog-Signature=s3cret#s3cret"
METADATA_TYPE = "type.googleapis.com/google.ads.dai.v1.CreateCreativeOperationMetadata"


@pytest.fixture(autouse=True)
def _time(monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
    for attribute, fake in {"_clock": clock, "_sleep": clock.sleep, "_random": lambda: 0.0}.items():
        monkeypatch.setattr(DaiCancelStrayOperationsOperator, attribute, staticmethod(fake))


@pytest.fixture
def strays(emulator: DaiEmulator, clock: Any) -> Callable[..., list[str]]:
    """Give a function that starts ingests which are two hours old then."""

    def start(*names: str, **options: Any) -> list[str]:
        started = [emulator.start_ingest(f"operations/{name}", **options) for name in names]
        clock.advance(2 * HOUR)
        return started

    return start


@pytest.fixture
def execute(ti: Any) -> Callable[..., Any]:
    """Execute the operator, with a context that has what it needs of one."""

    def run(**options: Any) -> Any:
        return make(**options).execute({"ti": ti})

    return run


def make(**options: Any) -> DaiCancelStrayOperationsOperator:
    return DaiCancelStrayOperationsOperator(task_id="sweep", **{"older_than": HOUR, **options})


def count(emulator: DaiEmulator, method: str) -> int:
    return [request.method for request in emulator.requests].count(method)


def pushed_report(ti: Any) -> dict[str, Any]:
    report: dict[str, Any] = ti.pushed[ti.task_id, -1, XCOM_REPORT]
    assert json.loads(json.dumps(report)) == report
    return report


def places(report: dict[str, Any]) -> dict[str, Any]:
    """Return where the operations found are, without what is empty."""
    return {place: report[place] for place in PLACES if report[place]}


def listed(name: str, **metadata: Any) -> dict[str, Any]:
    """Return a running operation as a list shows it."""
    return {"name": name, "metadata": {"@type": METADATA_TYPE, **metadata}}


def answer_list(emulator: DaiEmulator, *operations: dict[str, Any], token: str | None = None) -> None:
    """Have the next list request answer these."""
    page = {"operations": list(operations), "nextPageToken": token}
    emulator.inject(Fault(method=LIST, status=200, body=json.dumps(page).encode()))


class TestSweep:
    def test_it_requests_the_cancellation_of_what_is_old(
        self, emulator: DaiEmulator, strays: Any, execute: Any, log: Any, ti: Any
    ) -> None:
        old = strays("a", "b/c", "d:e+f=")
        emulator.start_ingest("operations/young")
        report = execute()
        assert {name for name, state in emulator.states().items() if state == "CANCELLED"} == set(old)
        assert places(report) == {"requested": old}
        assert report["listed"] == 4
        assert report["passed_over"]["younger"] == 1
        assert report["found"][0] == {
            "name": "operations/a",
            "create_time": "2025-06-15T15:06:40+00:00",
            "age": 7200,
            "creative_url": "https://media.example/ad.mp4",
        }
        assert pushed_report(ti) == report
        assert [request.method for request in emulator.requests] == [LIST, *[CANCEL] * 3]
        assert log.ours[:2] == [
            "4 operations listed: 0 finished, 0 spared, 0 of another URL, 0 without a create time, 1 young enough; "
            "3 stray.",
            "Found operations/a (2:00:00 old, https://media.example/ad.mp4).",
        ]
        assert sorted(log.ours[4:7]) == [f"Requested the cancellation of {name}." for name in old]
        assert log.ours[7] == "3 stray: 3 requested, 0 cancelled, 0 finished meanwhile, 0 refused, 0 left."
        assert log.errors == []

    def test_it_says_cancelled_only_when_get_has_shown_it(self, strays: Any, execute: Any, log: Any) -> None:
        strays("a", cancel_seconds=60)
        report = execute()
        assert report["cancelled"] == []
        assert "cancelled" not in log.text.replace("0 cancelled", "")

    def test_young_operations_are_left_alone(self, emulator: DaiEmulator, execute: Any, log: Any, ti: Any) -> None:
        emulator.start_ingest("operations/young")
        report = execute()
        assert places(report) == {}
        assert pushed_report(ti) == report
        assert [request.method for request in emulator.requests] == [LIST]
        assert log.ours[-1].startswith("0 stray")

    @pytest.mark.usefixtures("emulator")
    def test_an_empty_account_is_no_error(self, execute: Any) -> None:
        assert execute()["listed"] == 0

    @pytest.mark.parametrize(
        ("parameters", "picked"),
        [
            ({}, ["plain", "signed", "other"]),
            ({"url_prefix": "https://user:s3cret@media.example/"}, ["signed"]),
            ({"url_pattern": r"//(user:.*@)?media\.example/"}, ["plain", "signed"]),
            ({"url_pattern": "example", "url_prefix": "https://media"}, ["plain"]),
            ({"spare": ["operations/signed", "operations/never"]}, ["plain", "other"]),
            ({"spare": "operations/plain"}, ["signed", "other"]),
            ({"older_than": timedelta(hours=1)}, ["plain", "signed", "other"]),
            ({"older_than": timedelta(days=1)}, []),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
    )
    def test_the_filters_select_operations(
        self, emulator: DaiEmulator, strays: Any, execute: Any, parameters: dict[str, Any], picked: list[str]
    ) -> None:
        emulator.start_ingest("operations/plain", creative_url="https://media.example/ad.mp4")
        emulator.start_ingest("operations/signed", creative_url=SIGNED)
        emulator.start_ingest("operations/other", creative_url="https://other.example/ad.mp4")
        strays()
        names = [f"operations/{name}" for name in picked]
        assert execute(**parameters)["requested"] == names
        assert [name for name, state in emulator.states().items() if state == "CANCELLED"] == names

    @pytest.mark.parametrize("include_undated", [False, True])
    def test_an_undated_operation_is_selected_only_with_include_undated(
        self, emulator: DaiEmulator, strays: Any, execute: Any, log: Any, include_undated: bool
    ) -> None:
        name = strays("undated")[0]
        answer_list(emulator, listed(name))
        report = execute(include_undated=include_undated)
        assert report["requested"] == [name] * include_undated
        assert emulator.cancel_requested(name) == include_undated
        assert ("1 running operations have no create time; only include_undated=True selects them." in log.text) == (
            not include_undated
        )

    def test_an_operation_on_two_pages_counts_once(self, emulator: DaiEmulator, strays: Any, execute: Any) -> None:
        name, finished = strays("moving", "ending")
        answer_list(emulator, *(listed(n, createTime="2025-06-15T00:00:00Z") for n in (name, finished)), token="next")
        answer_list(
            emulator,
            listed(name, createTime="2025-06-15T00:00:00Z"),
            {"name": finished, "done": True, "response": {}},
        )
        report = execute()
        assert (report["listed"], report["requested"]) == (2, [name])
        assert [emulator.cancel_requested(n) for n in (name, finished)] == [1, 0]

    def test_all_of_several_pages_are_cancelled(self, emulator: DaiEmulator, strays: Any, execute: Any) -> None:
        names = strays(*map(str, range(500)))
        report = execute(max_cancellations=500)
        assert report["requested"] == names
        pages = [request for request in emulator.requests if request.method == LIST]
        assert [request.query["pageSize"] for request in pages] == ["100"] * 5
        assert all("filter" not in request.query for request in pages)
        assert count(emulator, CANCEL) == 500
        assert set(emulator.states().values()) == {"CANCELLED"}

    @pytest.mark.parametrize("answer", ["failed_precondition", "not_found"])
    def test_an_operation_that_finished_meanwhile_is_reported_as_finished(
        self, make_emulator: Any, execute: Any, clock: Any, answer: str
    ) -> None:
        emulator = make_emulator(finished_cancel=answer)
        emulator.start_ingest("operations/done", seconds=0)
        emulator.start_ingest("operations/stopped")
        emulator.start_ingest("operations/runs")
        clock.advance(2 * HOUR)
        with DaiHook() as other_client:
            other_client.cancel_operation("operations/stopped")
        times = {"createTime": "2025-06-15T00:00:00Z"}
        answer_list(emulator, *(listed(f"operations/{name}", **times) for name in ("done", "stopped", "runs")))
        assert places(execute()) == {
            "requested": ["operations/runs"],
            "cancelled": ["operations/stopped"],
            "finished": {"operations/done": "SUCCEEDED"},
        }


class TestWait:
    def test_every_final_state_is_reported(
        self, emulator: DaiEmulator, strays: Any, execute: Any, log: Any, ti: Any
    ) -> None:
        emulator.start_ingest("operations/stubborn", cancel="ignored", seconds=2 * HOUR + 5)
        emulator.start_ingest("operations/bad", cancel="ignored", seconds=2 * HOUR + 9, outcome="INVALID_MEDIA")
        names = strays("quick", "slow", cancel_seconds=20)
        report = execute(wait_for_completion=True)
        assert places(report) == {
            "cancelled": names,
            "finished": {"operations/stubborn": "SUCCEEDED", "operations/bad": "FAILED"},
        }
        assert pushed_report(ti) == report
        assert "operations/slow is CANCELLED (last: ingest PROCESSING)." in log.ours
        assert log.ours[-1] == "4 stray: 0 requested, 2 cancelled, 2 finished meanwhile, 0 refused, 0 left."

    def test_polls_are_quick_at_first_and_then_one_per_interval(
        self, emulator: DaiEmulator, strays: Any, execute: Any, clock: Any, log: Any
    ) -> None:
        strays("a", "b", cancel_seconds=60)
        execute(wait_for_completion=True, poll_interval=10)
        assert clock.slept[:2] == [1, 1.5]
        assert clock.slept == sorted(clock.slept)
        assert clock.slept[-1] == 10
        assert count(emulator, GET) == 2 * (len(clock.slept) + 1)
        assert "2 operations have not finished yet; 1 s elapsed, next poll in 1.5 s" in log.ours

    def test_a_finished_operation_is_not_polled_again(self, emulator: DaiEmulator, strays: Any, execute: Any) -> None:
        emulator.start_ingest("operations/quick")
        strays("slow", cancel_seconds=20)
        execute(wait_for_completion=True)
        polls = [request.name for request in emulator.requests if request.method == GET]
        assert polls.count("operations/quick") == 1
        assert polls.count("operations/slow") > 3

    def test_a_timeout_leaves_the_unfinished_operations(
        self, emulator: DaiEmulator, strays: Any, execute: Any, clock: Any, ti: Any
    ) -> None:
        emulator.start_ingest("operations/stubborn", cancel="ignored")
        strays("quick")
        with pytest.raises(AirflowException, match="1 of 2 stray operations may still run.*waited for 90 s") as raised:
            execute(wait_for_completion=True, timeout=90)
        assert not isinstance(raised.value, AirflowFailException)
        assert sum(clock.slept) == pytest.approx(90)
        report = pushed_report(ti)
        assert report["cancelled"] == ["operations/quick"]
        assert "requested, but operations/stubborn is RUNNING" in report["left"]["operations/stubborn"]
        assert count(emulator, CANCEL) == 2

    def test_a_short_outage_does_not_end_the_wait(self, emulator: DaiEmulator, strays: Any, execute: Any) -> None:
        names = strays("a", "b", cancel_seconds=20)
        emulator.inject(Fault(method=GET, status=503, times=10))
        report = execute(wait_for_completion=True)
        assert list(places(report)) == ["cancelled"]
        assert sorted(report["cancelled"]) == names

    def test_an_outage_ends_the_wait(
        self, emulator: DaiEmulator, strays: Any, execute: Any, clock: Any, ti: Any
    ) -> None:
        names = strays("a", "b", cancel_seconds=20)
        emulator.inject(Fault(method=GET, status=503, times=None))
        with pytest.raises(AirflowException, match=f"{GET} of operations/a returned 503.*waited for 3.. s") as raised:
            execute(wait_for_completion=True)
        assert not isinstance(raised.value, AirflowFailException)
        assert 300 <= sum(clock.slept) <= 330  # and not the whole timeout
        assert list(pushed_report(ti)["left"]) == names
        assert count(emulator, GET) == 2 * (len(clock.slept) + 1)  # a round is the repeat of the one before

    def test_a_failing_poll_does_not_hold_up_the_others(
        self, emulator: DaiEmulator, strays: Any, execute: Any, ti: Any
    ) -> None:
        strays("a", "dark", cancel_seconds=900)
        emulator.inject(Fault(method=GET, name="operations/dark", status=503, times=None))
        with pytest.raises(AirflowException, match="1 of 2"):
            execute(wait_for_completion=True)
        assert pushed_report(ti)["cancelled"] == ["operations/a"]
        assert "returned 503" in pushed_report(ti)["left"]["operations/dark"]

    @pytest.mark.parametrize(("rpc_status", "place"), [("PERMISSION_DENIED", "refused"), ("NOT_FOUND", "left")])
    def test_a_poll_is_not_retried_after_a_permanent_error(
        self, emulator: DaiEmulator, strays: Any, execute: Any, ti: Any, rpc_status: str, place: str
    ) -> None:
        strays("a", "dark", cancel_seconds=20)
        emulator.inject(Fault(method=GET, name="operations/dark", rpc_status=rpc_status, times=None))
        emulator.inject(Fault(method=GET, name="operations/a", status=503, times=3))
        with pytest.raises(AirflowException) as raised:
            execute(wait_for_completion=True)
        assert isinstance(raised.value, AirflowFailException) == (place == "refused")
        assert pushed_report(ti)["cancelled"] == ["operations/a"]
        assert rpc_status in pushed_report(ti)[place]["operations/dark"]
        assert [request.name for request in emulator.requests if request.method == GET].count("operations/dark") == 1

    def test_what_was_refused_is_not_waited_for(
        self, emulator: DaiEmulator, strays: Any, execute: Any, clock: Any
    ) -> None:
        strays("a")
        emulator.inject(Fault(method=CANCEL, rpc_status="PERMISSION_DENIED"))
        with pytest.raises(AirflowFailException):
            execute(wait_for_completion=True)
        assert clock.slept == []
        assert count(emulator, GET) == 0


class TestDryRun:
    def test_it_only_lists(self, emulator: DaiEmulator, strays: Any, execute: Any, log: Any, ti: Any) -> None:
        strays("a", "b")
        report = execute(dry_run=True, wait_for_completion=True)
        assert report["dry_run"] is True
        assert [stray["name"] for stray in report["found"]] == ["operations/a", "operations/b"]
        assert places(report) == {}
        assert pushed_report(ti) == report
        assert {request.http_method for request in emulator.requests} == {"GET"}
        assert [request.method for request in emulator.requests] == [LIST]
        assert "Found operations/b (2:00:00 old, https://media.example/ad.mp4)." in log.ours
        assert "This is a dry run. A real one would request 2 cancellations." in log.ours
        assert set(emulator.states().values()) == {"RUNNING"}

    def test_a_dry_run_logs_that_too_many_would_fail(
        self, emulator: DaiEmulator, strays: Any, execute: Any, log: Any
    ) -> None:
        strays("a", "b", "c")
        assert len(execute(dry_run=True, max_cancellations=2)["found"]) == 3
        words = "A real one would fail: 3 stray operations are more than max_cancellations=2."
        assert any(words in line for line in log.ours)
        assert [request.method for request in emulator.requests] == [LIST]


class TestLimit:
    def test_more_than_max_cancellations_fail_and_cancel_none(
        self, emulator: DaiEmulator, strays: Any, execute: Any, ti: Any, log: Any
    ) -> None:
        names = strays(*(f"ad-{number:02}" for number in range(21)))
        with pytest.raises(AirflowFailException, match="21 stray operations are more than max_cancellations=20") as it:
            execute()
        message = str(it.value)
        assert "no cancellation was requested. These would have been cancelled: " in message
        assert f"{names[0]} (2:00:00 old, https://media.example/ad.mp4); {names[1]}" in message
        assert names[9] in message
        assert names[10] not in message
        assert "; and 11 more. Narrow the selection, or raise max_cancellations." in message
        assert all(f"Found {name} " in log.text for name in names)
        report = pushed_report(ti)
        assert [stray["name"] for stray in report["found"]] == names
        assert places(report) == {}
        assert [request.method for request in emulator.requests] == [LIST]
        assert set(emulator.states().values()) == {"RUNNING"}

    def test_as_many_as_max_cancellations_are_cancelled(self, emulator: DaiEmulator, strays: Any, execute: Any) -> None:
        strays("a", "b")
        execute(max_cancellations=2)
        assert set(emulator.states().values()) == {"CANCELLED"}


class TestErrors:
    @pytest.mark.parametrize("dry_run", [False, True])
    def test_a_server_without_list_fails_the_task_at_once(
        self, emulator: DaiEmulator, strays: Any, execute: Any, clock: Any, ti: Any, dry_run: bool
    ) -> None:
        strays("a")
        emulator.unimplement(LIST)
        with pytest.raises(AirflowFailException) as raised:
            execute(dry_run=dry_run)
        assert f"{LIST} of operations returned 501 UNIMPLEMENTED" in str(raised.value)
        assert "A sweep needs operations.list" in str(raised.value)
        assert "cancel by name. No cancellation was requested." in str(raised.value)
        assert (count(emulator, LIST), len(emulator.requests)) == (1, 1)
        assert clock.slept == []
        assert ti.pushed == {}

    @pytest.mark.parametrize("wait", [False, True], ids=["asks", "waits"])
    def test_a_server_without_cancel_fails_the_task_at_once(
        self, emulator: DaiEmulator, strays: Any, execute: Any, clock: Any, ti: Any, wait: bool
    ) -> None:
        names = strays("a", "b", "c")
        emulator.unimplement(CANCEL)
        with pytest.raises(AirflowFailException) as raised:
            execute(wait_for_completion=wait)
        assert f"3 of 3 stray operations may still run: {names[0]}: {CANCEL} of {names[0]} returned 501" in str(
            raised.value
        )
        assert "does not support the method, and a retry cannot help" in str(raised.value)
        assert list(pushed_report(ti)["refused"]) == names
        assert count(emulator, CANCEL) == 3
        assert clock.slept == []

    def test_a_server_without_get_fails_only_a_task_that_waits(
        self, emulator: DaiEmulator, strays: Any, execute: Any
    ) -> None:
        strays("a", cancel_seconds=60)
        emulator.unimplement(GET)
        assert execute()["requested"] == ["operations/a"]
        with pytest.raises(AirflowFailException, match=f"requested, but {GET} of operations/a returned 501"):
            execute(wait_for_completion=True)

    def test_unimplemented_fails_for_good_beside_a_transient_error(
        self, emulator: DaiEmulator, strays: Any, execute: Any
    ) -> None:
        strays("a", "b")
        emulator.inject(Fault(method=CANCEL, name="operations/a", rpc_status="UNIMPLEMENTED"))
        emulator.inject(Fault(method=CANCEL, name="operations/b", status=503, times=None))
        with pytest.raises(AirflowFailException, match="2 of 2"):
            execute()

    @pytest.mark.parametrize(
        ("rpc_status", "words"),
        [
            ("PERMISSION_DENIED", "allow-listed"),
            ("FAILED_PRECONDITION", "is RUNNING"),
            ("INVALID_ARGUMENT", "INVALID_ARGUMENT"),
            ("OUT_OF_RANGE", "OUT_OF_RANGE"),
        ],
    )
    def test_all_are_attempted_before_the_task_fails(
        self, emulator: DaiEmulator, strays: Any, execute: Any, ti: Any, log: Any, rpc_status: str, words: str
    ) -> None:
        names = strays(*"abcde")
        emulator.inject(Fault(method=CANCEL, name="operations/b", rpc_status=rpc_status, times=None))
        with pytest.raises(AirflowFailException, match=f"1 of 5 .*: operations/b: {CANCEL} of .*{words}") as raised:
            execute(max_concurrency=1)
        assert ".." not in str(raised.value)
        report = pushed_report(ti)
        assert list(report["refused"]) == ["operations/b"]
        assert report["requested"] == [name for name in names if name != "operations/b"]
        assert any("operations/b may still run: " in line for line in log.errors)

    def test_a_listed_but_unknown_operation_is_left(
        self, emulator: DaiEmulator, strays: Any, execute: Any, ti: Any
    ) -> None:
        """The ingest of a deleted operation runs on, and a list that disagrees with get may hide a running one."""
        name = strays("a")[0]
        answer_list(emulator, *(listed(n, createTime="2025-06-15T00:00:00Z") for n in (name, "operations/ghost")))
        with pytest.raises(AirflowException, match="1 of 2.*operations/ghost.*404") as raised:
            execute()
        assert not isinstance(raised.value, AirflowFailException)
        assert list(pushed_report(ti)["left"]) == ["operations/ghost"]
        assert pushed_report(ti)["requested"] == [name]

    def test_a_listed_invalid_name_is_refused(self, emulator: DaiEmulator, strays: Any, execute: Any, ti: Any) -> None:
        name = strays("a")[0]
        answer_list(emulator, *(listed(n, createTime="2025-06-15T00:00:00Z") for n in ("operations/../x", name)))
        with pytest.raises(AirflowFailException, match="Invalid operation name 'operations/../x'"):
            execute()
        assert list(pushed_report(ti)["refused"]) == ["operations/../x"]
        assert pushed_report(ti)["requested"] == [name]

    @pytest.mark.parametrize(
        "fault",
        [
            pytest.param({"status": 503}, id="503"),
            pytest.param({"status": 429, "headers": {"Retry-After": "3"}}, id="429"),
            pytest.param({"drop": "before"}, id="dropped"),
            pytest.param({"drop": "after"}, id="answer-lost"),
        ],
    )
    @pytest.mark.parametrize("method", [LIST, CANCEL])
    def test_a_transient_error_is_retried(
        self, emulator: DaiEmulator, strays: Any, execute: Any, method: str, fault: dict[str, Any]
    ) -> None:
        names = strays("a", "b", "c")
        emulator.inject(Fault(method=method, times=2, **fault))
        assert execute()["requested"] == names
        assert set(emulator.states().values()) == {"CANCELLED"}

    def test_an_unavailable_service_fails_the_task_before_anything_is_cancelled(
        self, emulator: DaiEmulator, execute: Any, ti: Any
    ) -> None:
        emulator.stop()
        with pytest.raises(AirflowException, match=f"{LIST} of .* No cancellation was requested") as raised:
            execute()
        assert not isinstance(raised.value, AirflowFailException)
        assert ti.pushed == {}

    def test_an_incomplete_list_cancels_nothing(
        self, emulator: DaiEmulator, strays: Any, execute: Any, ti: Any
    ) -> None:
        strays(*map(str, range(150)))
        emulator.inject(Fault(method=LIST, headers={"X-Page": "fine"}))
        emulator.inject(Fault(method=LIST, status=503, times=None))
        with pytest.raises(AirflowException, match="503.*No cancellation was requested"):
            execute(max_cancellations=500)
        assert count(emulator, CANCEL) == 0
        assert ti.pushed == {}

    @pytest.mark.parametrize("down", ["answers-503", "is-gone"])
    def test_an_outage_in_the_middle_leaves_the_rest(
        self, emulator: DaiEmulator, strays: Any, execute: Any, ti: Any, clock: Any, down: str
    ) -> None:
        names = strays(*(f"ad-{number:02}" for number in range(30)))
        emulator.inject(Fault(method=CANCEL, headers={"X-Cancel": "fine"}, times=10))
        if down == "is-gone":
            emulator.inject(Fault(method=CANCEL, drop="before", times=None))
        else:
            emulator.inject(Fault(method=CANCEL, status=503, times=None))
        with pytest.raises(AirflowException, match="20 of 30 stray operations may still run") as raised:
            execute(max_cancellations=30, max_concurrency=2)
        assert not isinstance(raised.value, AirflowFailException)
        assert "; and 10 more." in str(raised.value)
        report = pushed_report(ti)
        assert len(report["requested"]) == 10
        assert sorted([*report["requested"], *report["left"]]) == names
        # The first of each of the two sessions is repeated, the others are not: a long list must not take hours.
        assert count(emulator, CANCEL) == 10 + 2 * 6 + 18
        assert len(clock.slept) == 2 * 5

    @pytest.mark.parametrize("answer", [{"headers": {"X-Cancel": "fine"}}, {"rpc_status": "PERMISSION_DENIED"}])
    def test_requests_are_retried_again_when_the_service_is_back(
        self, emulator: DaiEmulator, strays: Any, execute: Any, ti: Any, answer: dict[str, Any]
    ) -> None:
        names = strays(*"abcdef")
        emulator.inject(Fault(method=CANCEL, status=503, times=7))  # a with its repeats, and b
        emulator.inject(Fault(method=CANCEL, **answer))  # c
        emulator.inject(Fault(method=CANCEL, status=503, times=2))  # d is repeated again
        with pytest.raises(AirflowException, match="may still run"):
            execute(max_concurrency=1)
        assert list(pushed_report(ti)["left"]) == names[:2]
        assert set(names[3:]) <= set(pushed_report(ti)["requested"])

    @pytest.mark.usefixtures("metadata_database")
    def test_an_undefined_connection_fails_the_task(self, monkeypatch: pytest.MonkeyPatch, execute: Any) -> None:
        monkeypatch.delenv("DAI_EMULATOR_HOST", raising=False)
        with pytest.raises(AirflowNotFoundException, match="no_such_connection"):
            execute(gcp_conn_id="no_such_connection")

    def test_missing_credentials_fail_the_task_for_good(self, monkeypatch: pytest.MonkeyPatch, execute: Any) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_DAI", json.dumps({"conn_type": "google_cloud_platform"}))
        with pytest.raises(AirflowFailException, match=r"no usable credentials.*No cancellation was requested\."):
            execute(gcp_conn_id="dai")


class TestSecrets:
    @pytest.mark.parametrize("end", ["fine", "waits", "dry-run", "too-many", "refused", "away"])
    def test_a_signed_url_is_shown_nowhere(
        self, emulator: DaiEmulator, strays: Any, execute: Any, ti: Any, log: Any, end: str
    ) -> None:
        strays("a", "b", creative_url=SIGNED, cancel="ignored", seconds=3 * HOUR, outcome="DOWNLOAD_ERROR")
        words = ""
        if end == "refused":
            emulator.inject(Fault(method=CANCEL, rpc_status="PERMISSION_DENIED", times=None))
        if end == "away":
            emulator.inject(Fault(method=CANCEL, status=503, times=None))
        options: dict[str, dict[str, Any]] = {
            "waits": {"wait_for_completion": True},
            "dry-run": {"dry_run": True},
            "too-many": {"max_cancellations": 1},
        }
        try:
            execute(url_prefix="https://user:s3cret@", url_pattern="s3cret$", **options.get(end, {}))
        except AirflowException as error:
            words = f"{error} {error.__cause__}"
        assert ("media.example/ad.mp4" in words) == (end == "too-many")
        assert "media.example/ad.mp4" in " ".join(log.ours)
        assert [stray["creative_url"] for stray in pushed_report(ti)["found"]] == ["https://media.example/ad.mp4"] * 2
        assert "s3cret" not in f"{words} {json.dumps(pushed_report(ti))} {' '.join(log.ours)}"


@contextmanager
def peak(emulator: DaiEmulator, method: str) -> Iterator[list[int]]:
    """Tell how many requests of a method were under way at a time, as the server saw it."""
    over = threading.Event()
    seen = [0]

    def watch() -> None:
        while not over.is_set():
            under_way = [request for request in emulator.requests if request.method == method and not request.status]
            seen[0] = max(seen[0], len(under_way))
            time.sleep(0.002)  # real: the test's clock stands still here

    with ThreadPoolExecutor(1) as watcher:
        watching = watcher.submit(watch)
        try:
            yield seen
        finally:
            over.set()
            watching.result()


class TestConcurrency:
    @pytest.mark.parametrize("size", [1, 3, 8])
    def test_concurrent_requests_are_bounded(self, emulator: DaiEmulator, strays: Any, execute: Any, size: int) -> None:
        strays(*map(str, range(16)))
        emulator.inject(Fault(method=CANCEL, delay=0.05, times=None))
        with peak(emulator, CANCEL) as cancels:
            execute(max_concurrency=size)
        assert cancels == [size]
        assert emulator.connections == size + 1  # that of the list
        assert set(emulator.states().values()) == {"CANCELLED"}

    def test_polls_are_bounded_and_reuse_the_connections(
        self, emulator: DaiEmulator, strays: Any, execute: Any
    ) -> None:
        strays(*map(str, range(12)), cancel_seconds=5)
        emulator.inject(Fault(method=GET, delay=0.03, times=None))
        with peak(emulator, GET) as polls:
            execute(max_concurrency=4, wait_for_completion=True)
        assert polls == [4]
        assert count(emulator, GET) > 12
        assert emulator.connections == 4 + 1

    def test_no_more_threads_than_operations(self, emulator: DaiEmulator, strays: Any, execute: Any) -> None:
        strays("a", "b")
        execute(max_concurrency=50)
        assert emulator.connections <= 2 + 1

    def test_no_thread_is_left(self, strays: Any, execute: Any) -> None:
        strays("a", "b")
        execute()
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("dai-worker")]

    def test_only_the_main_thread_asks_airflow_for_the_connection(
        self, emulator: DaiEmulator, strays: Any, execute: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("DAI_EMULATOR_HOST")
        extra = {"is_anonymous": True, "dai_api_endpoint": emulator.endpoint}
        monkeypatch.setenv("AIRFLOW_CONN_DAI", json.dumps({"conn_type": "google_cloud_platform", "extra": extra}))
        asking: list[threading.Thread] = []
        get_connection = BaseHook.get_connection

        def watched(_: object, conn_id: str) -> Any:
            asking.append(threading.current_thread())
            return get_connection(conn_id)

        monkeypatch.setattr(BaseHook, "get_connection", watched)
        strays(*"abcdef", cancel_seconds=5)
        execute(gcp_conn_id="dai", wait_for_completion=True)
        assert set(emulator.states().values()) == {"CANCELLED"}
        assert asking == [threading.main_thread()]

    def test_all_threads_use_one_token(
        self, emulator: DaiEmulator, strays: Any, execute: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tokens = TokenService()
        strays(*"abcdef")
        monkeypatch.delenv("DAI_EMULATOR_HOST")
        with TinyServer(tokens.respond) as token_server:
            extra = {
                "keyfile_dict": tokens.key(f"{token_server.endpoint}/token"),
                "dai_api_endpoint": emulator.endpoint,
            }
            monkeypatch.setenv("AIRFLOW_CONN_DAI", json.dumps({"conn_type": "google_cloud_platform", "extra": extra}))
            execute(gcp_conn_id="dai")
        assert tokens.asked == 1
        assert {request.headers.get("authorization") for request in emulator.requests} == {f"Bearer {tokens.tokens[0]}"}
        assert set(emulator.states().values()) == {"CANCELLED"}


class TestConnection:
    def test_an_endpoint_overrides_the_emulator_of_the_environment(
        self, make_emulator: Any, execute: Any, clock: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        meant, other = make_emulator(), make_emulator()
        connection = {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True}}
        monkeypatch.setenv("AIRFLOW_CONN_DAI", json.dumps(connection))
        meant.start_ingest("operations/a")
        clock.advance(2 * HOUR)
        assert execute(gcp_conn_id="dai", api_endpoint=meant.endpoint)["requested"] == ["operations/a"]
        assert other.requests == []

    def test_the_impersonated_account_gets_the_token(
        self, emulator: DaiEmulator, execute: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Google's own service, which does that, is out of reach here."""
        tokens = TokenService()
        monkeypatch.delenv("DAI_EMULATOR_HOST")
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        with TinyServer(tokens.respond) as token_server:
            extra = {
                "keyfile_dict": tokens.key(f"{token_server.endpoint}/token"),
                "dai_api_endpoint": emulator.endpoint,
                "num_retries": 0,
            }
            monkeypatch.setenv("AIRFLOW_CONN_DAI", json.dumps({"conn_type": "google_cloud_platform", "extra": extra}))
            with pytest.raises(AirflowException, match="was not sent: no access token.*iamcredentials"):
                execute(gcp_conn_id="dai", impersonation_chain="robot@p.iam.gserviceaccount.com")
        assert emulator.requests == []


@contextmanager
def after_requests(emulator: DaiEmulator, number: int, method: str, act: Callable[[], object]) -> Iterator[None]:
    """Do something, in a thread, as soon as the server has seen so many requests."""

    def watch() -> None:
        while count(emulator, method) < number:
            time.sleep(0.002)  # real: the test's clock stands still here
        act()

    with ThreadPoolExecutor(1) as watcher:
        watching = watcher.submit(watch)
        yield
        watching.result()


class TestKill:
    def test_a_killed_sweep_requests_nothing_more(self, emulator: DaiEmulator, strays: Any, ti: Any) -> None:
        """As on Airflow 3, where a kill does not interrupt ``execute``."""
        names = strays(*(f"ad-{number:02}" for number in range(20)))
        emulator.inject(Fault(method=CANCEL, delay=0.05, times=None))
        operator = make(max_concurrency=1, wait_for_completion=True)
        with (
            after_requests(emulator, 3, CANCEL, operator.on_kill),
            pytest.raises(AirflowException, match="20 of 20 stray operations may still run"),
        ):
            operator.execute({"ti": ti})
        assert 3 <= count(emulator, CANCEL) <= 4
        assert count(emulator, GET) == 0
        left = pushed_report(ti)["left"]
        assert sorted(left) == names
        assert "the task was killed before this was attempted" in left[names[-1]]
        assert left[names[0]].startswith("its cancellation is requested, but the task was killed")

    def test_an_exception_from_outside_stops_it_at_once(self, emulator: DaiEmulator, strays: Any, ti: Any) -> None:
        """As on Airflow 2, and with an ``execution_timeout``: a signal handler raises in the main thread."""

        class KilledError(BaseException):
            pass

        def raise_killed(*_: object) -> None:
            raise KilledError

        names = strays(*(f"ad-{number:02}" for number in range(20)))
        emulator.inject(Fault(method=CANCEL, delay=0.2, times=None))
        before = signal.signal(signal.SIGALRM, raise_killed)
        try:
            with (
                after_requests(emulator, 3, CANCEL, lambda: os.kill(os.getpid(), signal.SIGALRM)),
                pytest.raises(KilledError),
            ):
                make(max_concurrency=1).execute({"ti": ti})
        finally:
            signal.signal(signal.SIGALRM, before)
        under_way = [thread for thread in threading.enumerate() if thread.name.startswith("dai-worker")]
        assert under_way  # the response was not waited for
        for thread in under_way:
            thread.join()
        assert count(emulator, CANCEL) <= 4
        left = pushed_report(ti)["left"]
        assert set(names[4:]) <= set(left) <= set(names[1:])
        assert "broke off before its cancellation was requested" in left[names[-1]]


class TestParameters:
    @pytest.mark.parametrize(
        ("parameter", "value", "expected"),
        [
            ("older_than", 0, "a timedelta, or a positive number of seconds"),
            ("older_than", float("nan"), "a timedelta, or a positive number of seconds"),
            ("older_than", True, "a timedelta, or a positive number of seconds"),
            ("older_than", "six hours", "a timedelta, or a positive number of seconds"),
            ("url_prefix", "", "the beginning of a URL, or None"),
            ("url_pattern", "(", "a regular expression, but missing"),
            ("spare", ["operations/a", "None"], "the upstream task has pushed no name"),
            ("include_undated", "False", "True or False"),
            ("max_cancellations", 0, "a whole number from 1 on"),
            ("max_cancellations", None, "a whole number from 1 on"),
            ("max_concurrency", 51, "a whole number from 1 to 50"),
            ("max_concurrency", 2.5, "a whole number from 1 to 50"),
            ("wait_for_completion", "yes", "True or False"),
            ("poll_interval", 0, "a positive number of seconds"),
            ("timeout", -1, "a positive number of seconds"),
            ("dry_run", "{{ params.dry_run }}", "True or False"),
        ],
    )
    def test_an_invalid_parameter_fails_for_good_without_a_request(
        self, emulator: DaiEmulator, strays: Any, execute: Any, parameter: str, value: Any, expected: str
    ) -> None:
        strays("a")
        with pytest.raises(AirflowFailException, match=f"^Invalid {parameter}.*{expected}"):
            execute(**{parameter: value})
        assert emulator.requests == []

    def test_the_constructor_only_assigns(self) -> None:
        flags = ["include_undated", "wait_for_completion"]
        numbers = ["max_cancellations", "max_concurrency", "poll_interval", "timeout"]
        names = [*DaiCancelStrayOperationsOperator.template_fields, *flags, *numbers]
        given: dict[str, Any] = {name: object() for name in names}
        dry_run: Any = object()
        operator = DaiCancelStrayOperationsOperator(task_id="sweep", dry_run=dry_run, **given)
        assert {name: getattr(operator, name) for name in given} == given
        assert operator.is_dry_run is dry_run

    def test_defaults(self) -> None:
        operator = make()
        assert (operator.url_prefix, operator.url_pattern, operator.spare) == (None, None, None)
        assert (operator.include_undated, operator.wait_for_completion, operator.is_dry_run) == (False, False, False)
        assert (operator.max_cancellations, operator.max_concurrency) == (20, 8)
        assert (operator.poll_interval, operator.timeout) == (30.0, 3600.0)
        assert operator.gcp_conn_id == "google_cloud_default"
        assert (operator.impersonation_chain, operator.api_endpoint) == (None, None)

    def test_older_than_is_required(self) -> None:
        with pytest.raises((TypeError, AirflowException), match="older_than"):
            DaiCancelStrayOperationsOperator(task_id="sweep")

    def test_parameters_are_keyword_only(self) -> None:
        with pytest.raises((TypeError, AirflowException)):
            DaiCancelStrayOperationsOperator(HOUR, task_id="sweep")

    @pytest.mark.skipif(not hasattr(BaseOperator, "dry_run"), reason="The operators of Airflow 3.0 have no dry_run()")
    def test_the_dry_run_of_every_operator_still_works(self, emulator: DaiEmulator) -> None:
        """``dry_run()`` is what ``airflow tasks test --dry-run`` calls."""
        make(dry_run=True, url_prefix="https://").dry_run()
        assert emulator.requests == []

    def test_templates_are_rendered(self) -> None:
        operator = make(
            older_than="{{ seconds }}",
            url_prefix="https://{{ word }}/",
            url_pattern="{{ word }}$",
            spare=["operations/{{ word }}"],
            gcp_conn_id="{{ word }}_conn",
            impersonation_chain=["{{ word }}@example.com"],
            api_endpoint="{{ word }}.example.com",
        )
        operator.render_template_fields({"word": "x", "seconds": 60})
        assert {name: getattr(operator, name) for name in operator.template_fields} == {
            "older_than": "60",
            "url_prefix": "https://x/",
            "url_pattern": "x$",
            "spare": ["operations/x"],
            "gcp_conn_id": "x_conn",
            "impersonation_chain": ["x@example.com"],
            "api_endpoint": "x.example.com",
        }


class TestRun:
    """On the real metadata database, by ``dag.test()``."""

    @staticmethod
    def dag(dag_id: str, **options: Any) -> Any:
        with DAG(dag_id, schedule=None, params={"hours": 1}) as dag:
            DaiCancelStrayOperationsOperator(task_id="sweep", **{"older_than": timedelta(hours=1), **options})
        return dag

    def test_the_report_is_returned_and_pushed(self, emulator: DaiEmulator, strays: Any, run_dag: Any) -> None:
        names = strays("a", "b", cancel_seconds=7)
        run = run_dag(self.dag("stray_report", wait_for_completion=True))
        assert run.tasks == {"sweep": "success"}
        assert run.xcom("sweep")["cancelled"] == names
        assert run.xcom("sweep", XCOM_REPORT) == run.xcom("sweep")
        assert set(emulator.states().values()) == {"CANCELLED"}

    def test_templates_are_rendered_in_a_run(self, strays: Any, run_dag: Any) -> None:
        strays("a", "b", "c")
        with DAG("stray_templates", schedule=None, params={"hours": 1, "url": "https://media.example/"}) as dag:

            @task
            def ours() -> list[str]:
                return ["operations/a", "operations/c"]

            DaiCancelStrayOperationsOperator(
                task_id="sweep", older_than="{{ params.hours * 3600 }}", url_prefix="{{ params.url }}", spare=ours()
            )
        run = run_dag(dag)
        assert run.state == "success"
        assert run.xcom("sweep")["requested"] == ["operations/b"]

    def test_each_map_index_sweeps_its_own_url(self, emulator: DaiEmulator, run_dag: Any, clock: Any) -> None:
        for word in ("one", "two", "three"):
            emulator.start_ingest(f"operations/{word}", creative_url=f"https://{word}.example/ad.mp4")
        clock.advance(2 * HOUR)
        with DAG("stray_mapped", schedule=None) as dag:
            DaiCancelStrayOperationsOperator.partial(task_id="sweep", older_than=timedelta(hours=1)).expand(
                url_prefix=["https://one.example/", "https://two.example/"]
            )
        run = run_dag(dag)
        assert run.tasks == {"sweep[0]": "success", "sweep[1]": "success"}
        assert [run.xcom("sweep", map_index=index)["requested"] for index in (0, 1)] == [
            ["operations/one"],
            ["operations/two"],
        ]
        assert emulator.state("operations/three") == "RUNNING"

    def test_the_connection_sets_the_endpoint_and_the_retries(
        self, emulator: DaiEmulator, strays: Any, run_dag: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("DAI_EMULATOR_HOST")
        extra = {"is_anonymous": True, "num_retries": 2, "dai_api_endpoint": emulator.endpoint}
        monkeypatch.setenv("AIRFLOW_CONN_DAI", json.dumps({"conn_type": "google_cloud_platform", "extra": extra}))
        strays("a")
        emulator.inject(Fault(method=CANCEL, status=503, times=None))
        run = run_dag(self.dag("stray_connection", gcp_conn_id="dai"))
        assert run.tasks == {"sweep": "failed"}
        assert count(emulator, CANCEL) == 3

    def test_a_failed_sweep_leaves_its_report(self, emulator: DaiEmulator, strays: Any, run_dag: Any) -> None:
        strays("a", "b")
        emulator.inject(Fault(method=CANCEL, name="operations/a", rpc_status="PERMISSION_DENIED", times=None))
        run = run_dag(self.dag("stray_refused", retries=3))
        assert run.tasks == {"sweep": "failed"}
        assert run.tries("sweep") == 1
        assert list(run.xcom("sweep", XCOM_REPORT)["refused"]) == ["operations/a"]
        assert emulator.state("operations/b") == "CANCELLED"

    def test_a_retry_lists_anew_and_heals_an_outage(self, emulator: DaiEmulator, strays: Any, run_dag: Any) -> None:
        strays("a", "b", "c")
        emulator.inject(Fault(method=CANCEL, name="operations/b", status=503, times=7))
        run = run_dag(self.dag("stray_recovers", retries=3, retry_delay=timedelta(0)))
        assert run.tasks == {"sweep": "success"}
        assert run.tries("sweep") == 2
        assert run.xcom("sweep")["requested"] == ["operations/b"]
        assert run.xcom("sweep")["passed_over"]["finished"] == 2
        assert set(emulator.states().values()) == {"CANCELLED"}

    @pytest.mark.parametrize("method", [LIST, CANCEL])
    def test_unimplemented_spends_no_retry(self, emulator: DaiEmulator, strays: Any, run_dag: Any, method: str) -> None:
        strays("a")
        emulator.unimplement(method)
        run = run_dag(self.dag(f"stray_unimplemented_{method[11:]}", retries=3))
        assert run.tasks == {"sweep": "failed"}
        assert run.tries("sweep") == 1
        assert count(emulator, method) == 1

    def test_too_many_spend_no_retry(self, emulator: DaiEmulator, strays: Any, run_dag: Any) -> None:
        strays("a", "b")
        run = run_dag(self.dag("stray_too_many", retries=3, max_cancellations=1))
        assert run.tasks == {"sweep": "failed"}
        assert run.tries("sweep") == 1
        assert len(run.xcom("sweep", XCOM_REPORT)["found"]) == 2
        assert count(emulator, CANCEL) == 0
