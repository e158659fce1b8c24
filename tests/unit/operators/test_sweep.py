"""DaiCancelStrayOperationsOperator: what it selects, requests, waits for and reports."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_dai_provider.api.batched_polls import MIN_POLLS
from airflow_dai_provider.api.polling import NOT_FOUND_GRACE
from airflow_dai_provider.api.rest import MAX_RESPONSE_BYTES
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from tests.support.clock import Clock
from tests.support.connections import define_connection
from tests.support.emulators import MakeEmulator, count, methods
from tests.support.log import Log
from tests.support.payloads import large_url
from tests.support.strays import CANCEL, GET, HOUR, LIST, SIGNED, answer_list, listed, places, pushed_report
from tests.support.task_instance import Ti

pytestmark = pytest.mark.usefixtures("sweep_time")


class TestSweep:
    def test_it_requests_the_cancellation_of_what_is_old(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, log: Log, ti: Ti
    ) -> None:
        old = strays("a", "b/c", "d:e+f=")
        emulator.start_ingest("operations/young")
        report = sweep()
        assert {name for name, state in emulator.states().items() if state == "CANCELLED"} == set(old)
        assert places(report) == {"requested": old}
        assert report["listed"] == 4
        assert report["passed_over"]["younger"] == 1
        assert report["found"][0] == {
            "name": "operations/a",
            "create_time": "2025-06-15T15:06:40+00:00",
            "age": 7200,
            "creative_url": "https://media.example/ad.mp4",
            "owner": None,
        }
        assert pushed_report(ti) == report
        assert methods(emulator) == [LIST, *[CANCEL] * 3]
        assert log.ours[:2] == [
            "4 operations listed: 0 finished, 0 spared, 0 with another URL, 0 still needed by a task, "
            "0 without an owner, 0 without a create time, 1 younger than older_than; 3 stray.",
            "Found operations/a (2:00:00 old, https://media.example/ad.mp4).",
        ]
        assert sorted(log.ours[4:7]) == [f"Requested the cancellation of {name}." for name in old]
        assert log.ours[7] == "3 stray: 3 requested, 0 cancelled, 0 finished meanwhile, 0 refused, 0 left."
        assert log.errors == []

    def test_it_says_cancelled_only_when_get_has_shown_it(self, strays: Any, sweep: Any, log: Log) -> None:
        strays("a", cancel_seconds=60)
        report = sweep()
        assert report["cancelled"] == []
        assert "cancelled" not in log.text.replace("0 cancelled", "")

    def test_young_operations_are_left_alone(self, emulator: DaiEmulator, sweep: Any, log: Log, ti: Ti) -> None:
        emulator.start_ingest("operations/young")
        report = sweep()
        assert places(report) == {}
        assert pushed_report(ti) == report
        assert methods(emulator) == [LIST]
        assert log.ours[-1].startswith("0 stray")

    @pytest.mark.parametrize("poison", [None, [], {}, {"name": "x"}, {"name": "operations/p", "done": 1}], ids=str)
    def test_an_item_that_cannot_be_read_does_not_hide_the_others(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, log: Log, poison: Any
    ) -> None:
        strays("a", "b")
        emulator.inject(Fault(method=LIST, listed=(poison, poison)))
        report = sweep()
        assert places(report) == {"requested": ["operations/a", "operations/b"]}
        assert (report["listed"], report["unreadable"]) == (2, 2)
        assert len(log.lines("2 unreadable operations were passed over")) == 1
        assert len(log.lines("2 stray; 2 more could not be read.")) == 1

    @pytest.mark.usefixtures("emulator")
    def test_an_empty_account_is_no_error(self, sweep: Any) -> None:
        assert sweep()["listed"] == 0

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
        self, emulator: DaiEmulator, strays: Any, sweep: Any, parameters: dict[str, Any], picked: list[str]
    ) -> None:
        emulator.start_ingest("operations/plain", creative_url="https://media.example/ad.mp4")
        emulator.start_ingest("operations/signed", creative_url=SIGNED)
        emulator.start_ingest("operations/other", creative_url="https://other.example/ad.mp4")
        strays()
        names = [f"operations/{name}" for name in picked]
        assert sweep(**parameters)["requested"] == names
        assert [name for name, state in emulator.states().items() if state == "CANCELLED"] == names

    @pytest.mark.parametrize("include_undated", [False, True])
    def test_an_undated_operation_is_selected_only_with_include_undated(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, log: Log, include_undated: bool
    ) -> None:
        name = strays("undated")[0]
        answer_list(emulator, listed(name))
        report = sweep(include_undated=include_undated)
        assert report["requested"] == [name] * include_undated
        assert emulator.cancel_requested(name) == include_undated
        assert ("1 running operations have no create time; only include_undated=True selects them." in log.text) == (
            not include_undated
        )

    def test_an_operation_on_two_pages_counts_once(self, emulator: DaiEmulator, strays: Any, sweep: Any) -> None:
        name, finished = strays("moving", "ending")
        answer_list(emulator, *(listed(n, createTime="2025-06-15T00:00:00Z") for n in (name, finished)), token="next")
        answer_list(
            emulator,
            listed(name, createTime="2025-06-15T00:00:00Z"),
            {"name": finished, "done": True, "response": {}},
        )
        report = sweep()
        assert (report["listed"], report["requested"]) == (2, [name])
        assert [emulator.cancel_requested(n) for n in (name, finished)] == [1, 0]

    def test_pages_that_are_too_large_are_halved(self, emulator: DaiEmulator, strays: Any, sweep: Any) -> None:
        old = strays(*"abcde", creative_url=large_url(MAX_RESPONSE_BYTES // 4))
        assert places(sweep()) == {"requested": old}
        pages = [request for request in emulator.requests if request.method == LIST]
        assert [request.query["pageSize"] for request in pages] == ["100", "50", "25", "12", "6", "3", "3"]

    def test_a_list_that_does_not_end_cancels_nothing_and_says_how_far_it_was_read(
        self, emulator: DaiEmulator, strays: Any, sweep: Any
    ) -> None:
        strays("a", "b")
        emulator.inject(Fault(method=LIST, status=None, merge={"nextPageToken": "t"}))
        emulator.inject(Fault(method=LIST, status=200, body=b'{"nextPageToken": "t"}', times=None))
        with pytest.raises(AirflowException, match="twice: t; the list does not end; 2 pages .* 2 operations.*No canc"):
            sweep()
        assert emulator.states() == {"operations/a": "RUNNING", "operations/b": "RUNNING"}

    def test_all_of_several_pages_are_cancelled(self, emulator: DaiEmulator, strays: Any, sweep: Any) -> None:
        names = strays(*map(str, range(500)))
        report = sweep(max_cancellations=500)
        assert report["requested"] == names
        pages = [request for request in emulator.requests if request.method == LIST]
        assert [request.query["pageSize"] for request in pages] == ["100"] * 5
        assert all("filter" not in request.query for request in pages)
        assert count(emulator, CANCEL) == 500
        assert set(emulator.states().values()) == {"CANCELLED"}

    @pytest.mark.parametrize("answer", ["failed_precondition", "not_found"])
    def test_an_operation_that_finished_meanwhile_is_reported_as_finished(
        self, make_emulator: MakeEmulator, sweep: Any, clock: Clock, answer: str
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
        assert places(sweep()) == {
            "requested": ["operations/runs"],
            "cancelled": ["operations/stopped"],
            "finished": {"operations/done": "SUCCEEDED"},
        }


class TestWait:
    def test_the_wait_for_many_reads_the_list(self, emulator: DaiEmulator, strays: Any, sweep: Any) -> None:
        names = strays(*(f"many-{number}" for number in range(2 * MIN_POLLS)), cancel_seconds=40)
        report = sweep(wait_for_completion=True, max_cancellations=len(names))
        assert sorted(report["cancelled"]) == sorted(names)
        assert count(emulator, LIST) >= 1 + 3, "The first is the search."
        assert count(emulator, GET) < 4 * len(names)

    def test_every_final_state_is_reported(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, log: Log, ti: Ti
    ) -> None:
        emulator.start_ingest("operations/stubborn", cancel="ignored", seconds=2 * HOUR + 5)
        emulator.start_ingest("operations/bad", cancel="ignored", seconds=2 * HOUR + 9, outcome="INVALID_MEDIA")
        names = strays("quick", "slow", cancel_seconds=20)
        report = sweep(wait_for_completion=True)
        assert places(report) == {
            "cancelled": names,
            "finished": {"operations/stubborn": "SUCCEEDED", "operations/bad": "FAILED"},
        }
        assert pushed_report(ti) == report
        assert "operations/slow is CANCELLED (last: ingest PROCESSING)." in log.ours
        assert log.ours[-1] == "4 stray: 0 requested, 2 cancelled, 2 finished meanwhile, 0 refused, 0 left."

    def test_polls_are_quick_at_first_and_then_one_per_interval(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, clock: Clock, log: Log
    ) -> None:
        strays("a", "b", cancel_seconds=60)
        sweep(wait_for_completion=True, poll_interval=10)
        assert clock.slept[:2] == [1, 1.5]
        assert clock.slept == sorted(clock.slept)
        assert clock.slept[-1] == 10
        assert count(emulator, GET) == 2 * (len(clock.slept) + 1)
        assert "0 of 2 finished; 1 s elapsed, next poll in 1.5 s" in log.ours

    def test_a_finished_operation_is_not_polled_again(self, emulator: DaiEmulator, strays: Any, sweep: Any) -> None:
        emulator.start_ingest("operations/quick")
        strays("slow", cancel_seconds=20)
        sweep(wait_for_completion=True)
        polls = [request.name for request in emulator.requests if request.method == GET]
        assert polls.count("operations/quick") == 1
        assert polls.count("operations/slow") > 3

    def test_a_timeout_leaves_the_unfinished_operations(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, clock: Clock, ti: Ti
    ) -> None:
        emulator.start_ingest("operations/stubborn", cancel="ignored")
        strays("quick")
        with pytest.raises(AirflowException, match="1 of 2 stray operations may still run.*waited for 90 s") as raised:
            sweep(wait_for_completion=True, timeout=90)
        assert not isinstance(raised.value, AirflowFailException)
        assert sum(clock.slept) == pytest.approx(90)
        report = pushed_report(ti)
        assert report["cancelled"] == ["operations/quick"]
        assert "requested, but operations/stubborn is RUNNING" in report["left"]["operations/stubborn"]
        assert count(emulator, CANCEL) == 2

    def test_a_short_outage_does_not_end_the_wait(self, emulator: DaiEmulator, strays: Any, sweep: Any) -> None:
        names = strays("a", "b", cancel_seconds=20)
        emulator.inject(Fault(method=GET, status=503, times=10))
        report = sweep(wait_for_completion=True)
        assert list(places(report)) == ["cancelled"]
        assert sorted(report["cancelled"]) == names

    def test_an_outage_ends_the_wait(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, clock: Clock, ti: Ti
    ) -> None:
        names = strays("a", "b", cancel_seconds=20)
        emulator.inject(Fault(method=GET, status=503, times=None))
        with pytest.raises(AirflowException, match=f"{GET} of operations/a returned 503.*waited for 3.. s") as raised:
            sweep(wait_for_completion=True)
        assert not isinstance(raised.value, AirflowFailException)
        assert 300 <= sum(clock.slept) <= 330  # and not the whole timeout
        assert list(pushed_report(ti)["left"]) == names
        assert count(emulator, GET) == 2 * (len(clock.slept) + 1)  # a round is the repeat of the one before

    def test_a_failing_poll_does_not_hold_up_the_others(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, ti: Ti
    ) -> None:
        strays("a", "dark", cancel_seconds=900)
        emulator.inject(Fault(method=GET, name="operations/dark", status=503, times=None))
        with pytest.raises(AirflowException, match="1 of 2"):
            sweep(wait_for_completion=True)
        assert pushed_report(ti)["cancelled"] == ["operations/a"]
        assert "returned 503" in pushed_report(ti)["left"]["operations/dark"]

    @pytest.mark.parametrize(("rpc_status", "place"), [("PERMISSION_DENIED", "refused"), ("NOT_FOUND", "left")])
    def test_a_poll_is_not_retried_after_a_permanent_error(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, ti: Ti, rpc_status: str, place: str
    ) -> None:
        strays("a", "dark", cancel_seconds=20)
        emulator.inject(Fault(method=GET, name="operations/dark", rpc_status=rpc_status, times=None))
        emulator.inject(Fault(method=GET, name="operations/a", status=503, times=3))
        with pytest.raises(AirflowException) as raised:
            sweep(wait_for_completion=True)
        assert isinstance(raised.value, AirflowFailException) == (place == "refused")
        assert pushed_report(ti)["cancelled"] == ["operations/a"]
        assert rpc_status in pushed_report(ti)[place]["operations/dark"]
        dark = [request.time for request in emulator.requests if request.name == "operations/dark"][1:]
        assert (len(dark) == 1) == (place == "refused")
        assert dark[-1] - dark[0] == (0 if place == "refused" else NOT_FOUND_GRACE)

    @pytest.mark.parametrize("fault", [{"status": 404}, {"status": 403, "html": True}, {"status": 503}], ids=str)
    @pytest.mark.parametrize("poll_interval", [30, 3600])
    def test_a_poll_that_fails_for_now_does_not_settle_an_operation(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, log: Log, fault: Any, poll_interval: float
    ) -> None:
        strays("a", "b", cancel_seconds=60)
        emulator.inject(Fault(method=GET, name="operations/a", times=3, **fault))
        report = sweep(wait_for_completion=True, poll_interval=poll_interval)
        assert places(report) == {"cancelled": ["operations/a", "operations/b"]}
        assert "0 of 2 finished (1 could not be polled yet)" in log.text
        assert log.errors == []

    def test_an_outage_of_a_wait_costs_few_lines(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, log: Log
    ) -> None:
        # So few that each is polled by get.
        strays(*map(str, range(15)), cancel_seconds=400)
        emulator.inject(Fault(method=GET, status=503, times=15 * 12))
        assert len(sweep(wait_for_completion=True)["cancelled"]) == 15
        about = [line for line in log.ours if "503" in line or "responded again" in line]
        assert len(about) == 2

    def test_what_was_refused_is_not_waited_for(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, clock: Clock
    ) -> None:
        strays("a")
        emulator.inject(Fault(method=CANCEL, rpc_status="PERMISSION_DENIED"))
        with pytest.raises(AirflowFailException):
            sweep(wait_for_completion=True)
        assert clock.slept == []
        assert count(emulator, GET) == 0


class TestDryRun:
    def test_it_only_lists(self, emulator: DaiEmulator, strays: Any, sweep: Any, log: Log, ti: Ti) -> None:
        strays("a", "b")
        report = sweep(dry_run=True, wait_for_completion=True)
        assert report["dry_run"] is True
        assert [stray["name"] for stray in report["found"]] == ["operations/a", "operations/b"]
        assert places(report) == {}
        assert pushed_report(ti) == report
        assert {request.http_method for request in emulator.requests} == {"GET"}
        assert methods(emulator) == [LIST]
        assert "Found operations/b (2:00:00 old, https://media.example/ad.mp4)." in log.ours
        assert "This is a dry run. A real one would request 2 cancellations." in log.ours
        assert set(emulator.states().values()) == {"RUNNING"}

    def test_a_dry_run_logs_that_too_many_would_fail(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, log: Log
    ) -> None:
        strays("a", "b", "c")
        assert len(sweep(dry_run=True, max_cancellations=2)["found"]) == 3
        words = (
            "A real one would request 0 cancellations, and fail: 3 stray operations are more than max_cancellations=2."
        )
        assert any(words in line for line in log.ours)
        assert methods(emulator) == [LIST]


class TestLimit:
    def test_more_than_max_cancellations_fail_and_cancel_none(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, ti: Ti, log: Log
    ) -> None:
        names = strays(*(f"ad-{number:02}" for number in range(21)))
        with pytest.raises(AirflowFailException, match="21 stray operations are more than max_cancellations=20") as it:
            sweep()
        message = str(it.value)
        assert "so those without an owner were not cancelled: " in message
        assert f"{names[0]} (2:00:00 old, https://media.example/ad.mp4); {names[1]}" in message
        assert names[9] in message
        assert names[10] not in message
        assert "; and 11 more. Narrow the selection, or raise max_cancellations." in message
        assert all(f"Found {name} " in log.text for name in names)
        report = pushed_report(ti)
        assert [stray["name"] for stray in report["found"]] == names
        assert places(report) == {}
        assert methods(emulator) == [LIST]
        assert set(emulator.states().values()) == {"RUNNING"}

    def test_as_many_as_max_cancellations_are_cancelled(self, emulator: DaiEmulator, strays: Any, sweep: Any) -> None:
        strays("a", "b")
        sweep(max_cancellations=2)
        assert set(emulator.states().values()) == {"CANCELLED"}


class TestErrors:
    @pytest.mark.parametrize("dry_run", [False, True])
    def test_a_server_without_list_fails_the_task_at_once(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, clock: Clock, ti: Ti, dry_run: bool
    ) -> None:
        strays("a")
        emulator.unimplement(LIST)
        with pytest.raises(AirflowFailException) as raised:
            sweep(dry_run=dry_run)
        assert f"{LIST} of operations returned 501 UNIMPLEMENTED" in str(raised.value)
        assert "A sweep needs operations.list" in str(raised.value)
        assert "cancel by name. No cancellation was requested." in str(raised.value)
        assert (count(emulator, LIST), len(emulator.requests)) == (1, 1)
        assert clock.slept == []
        assert ti.pushed == {}

    @pytest.mark.parametrize("wait", [False, True], ids=["asks", "waits"])
    def test_a_server_without_cancel_fails_the_task_at_once(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, clock: Clock, ti: Ti, wait: bool
    ) -> None:
        names = strays("a", "b", "c")
        emulator.unimplement(CANCEL)
        with pytest.raises(AirflowFailException) as raised:
            sweep(wait_for_completion=wait)
        assert f"3 of 3 stray operations may still run: {names[0]}: {CANCEL} of {names[0]} returned 501" in str(
            raised.value
        )
        assert "does not support the method, and a retry cannot help" in str(raised.value)
        assert list(pushed_report(ti)["refused"]) == names
        assert count(emulator, CANCEL) == 3
        assert clock.slept == []

    def test_a_server_without_get_fails_only_a_task_that_waits(
        self, emulator: DaiEmulator, strays: Any, sweep: Any
    ) -> None:
        strays("a", cancel_seconds=60)
        emulator.unimplement(GET)
        assert sweep()["requested"] == ["operations/a"]
        with pytest.raises(AirflowFailException, match=f"requested, but {GET} of operations/a returned 501"):
            sweep(wait_for_completion=True)

    def test_unimplemented_fails_for_good_beside_a_transient_error(
        self, emulator: DaiEmulator, strays: Any, sweep: Any
    ) -> None:
        strays("a", "b")
        emulator.inject(Fault(method=CANCEL, name="operations/a", rpc_status="UNIMPLEMENTED"))
        emulator.inject(Fault(method=CANCEL, name="operations/b", status=503, times=None))
        with pytest.raises(AirflowFailException, match="2 of 2"):
            sweep()

    @pytest.mark.parametrize(
        ("rpc_status", "words"),
        [
            ("PERMISSION_DENIED", "allow-listed"),
            ("INVALID_ARGUMENT", "INVALID_ARGUMENT"),
            ("OUT_OF_RANGE", "OUT_OF_RANGE"),
        ],
    )
    def test_all_are_attempted_before_the_task_fails(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, ti: Ti, log: Log, rpc_status: str, words: str
    ) -> None:
        names = strays(*"abcde")
        emulator.inject(Fault(method=CANCEL, name="operations/b", rpc_status=rpc_status, times=None))
        with pytest.raises(AirflowFailException, match=f"1 of 5 .*: operations/b: {CANCEL} of .*{words}") as raised:
            sweep(max_concurrency=1)
        assert ".." not in str(raised.value)
        report = pushed_report(ti)
        assert list(report["refused"]) == ["operations/b"]
        assert report["requested"] == [name for name in names if name != "operations/b"]
        assert any("operations/b may still run: " in line for line in log.errors)

    @pytest.mark.parametrize("rpc_status", ["FAILED_PRECONDITION", "NOT_FOUND"])
    def test_an_operation_that_cancel_and_get_contradict_each_other_about_is_left(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, ti: Ti, rpc_status: str
    ) -> None:
        names = strays(*"ab")
        emulator.inject(Fault(method=CANCEL, name="operations/a", rpc_status=rpc_status, times=None))
        with pytest.raises(AirflowException, match="1 of 2 .*: operations/a: .*But operations/a is RUNNING") as raised:
            sweep()
        assert not isinstance(raised.value, AirflowFailException)
        assert places(pushed_report(ti)) == {"requested": names[1:], "left": pushed_report(ti)["left"]}

    def test_a_listed_but_unknown_operation_is_left(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, ti: Ti
    ) -> None:
        """The ingest of a deleted operation runs on, and a list that disagrees with get may hide a running one."""
        name = strays("a")[0]
        answer_list(emulator, *(listed(n, createTime="2025-06-15T00:00:00Z") for n in (name, "operations/ghost")))
        with pytest.raises(AirflowException, match="1 of 2.*operations/ghost.*404") as raised:
            sweep()
        assert not isinstance(raised.value, AirflowFailException)
        assert list(pushed_report(ti)["left"]) == ["operations/ghost"]
        assert pushed_report(ti)["requested"] == [name]

    def test_a_listed_invalid_name_is_passed_over(self, emulator: DaiEmulator, strays: Any, sweep: Any) -> None:
        name = strays("a")[0]
        answer_list(emulator, *(listed(n, createTime="2025-06-15T00:00:00Z") for n in ("operations/../x", name)))
        report = sweep()
        assert places(report) == {"requested": [name]}
        assert report["unreadable"] == 1

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
        self, emulator: DaiEmulator, strays: Any, sweep: Any, method: str, fault: dict[str, Any]
    ) -> None:
        names = strays("a", "b", "c")
        emulator.inject(Fault(method=method, times=2, **fault))
        assert sweep()["requested"] == names
        assert set(emulator.states().values()) == {"CANCELLED"}

    def test_an_unavailable_service_fails_the_task_before_anything_is_cancelled(
        self, emulator: DaiEmulator, sweep: Any, ti: Ti
    ) -> None:
        emulator.stop()
        with pytest.raises(AirflowException, match=f"{LIST} of .* No cancellation was requested") as raised:
            sweep()
        assert not isinstance(raised.value, AirflowFailException)
        assert ti.pushed == {}

    def test_an_incomplete_list_cancels_nothing(self, emulator: DaiEmulator, strays: Any, sweep: Any, ti: Ti) -> None:
        strays(*map(str, range(150)))
        emulator.inject(Fault(method=LIST, headers={"X-Page": "fine"}))
        emulator.inject(Fault(method=LIST, status=503, times=None))
        with pytest.raises(AirflowException, match="503.*No cancellation was requested"):
            sweep(max_cancellations=500)
        assert count(emulator, CANCEL) == 0
        assert ti.pushed == {}

    @pytest.mark.parametrize("down", ["answers-503", "is-gone"])
    def test_an_outage_in_the_middle_leaves_the_rest(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, ti: Ti, clock: Clock, down: str
    ) -> None:
        names = strays(*(f"ad-{number:02}" for number in range(30)))
        emulator.inject(Fault(method=CANCEL, headers={"X-Cancel": "fine"}, times=10))
        if down == "is-gone":
            emulator.inject(Fault(method=CANCEL, drop="before", times=None))
        else:
            emulator.inject(Fault(method=CANCEL, status=503, times=None))
        with pytest.raises(AirflowException, match="20 of 30 stray operations may still run") as raised:
            sweep(max_cancellations=30, max_concurrency=2)
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
        self, emulator: DaiEmulator, strays: Any, sweep: Any, ti: Ti, answer: dict[str, Any]
    ) -> None:
        names = strays(*"abcdef")
        emulator.inject(Fault(method=CANCEL, status=503, times=7))  # a with its repeats, and b
        emulator.inject(Fault(method=CANCEL, **answer))  # c
        emulator.inject(Fault(method=CANCEL, status=503, times=2))  # d is repeated again
        with pytest.raises(AirflowException, match="may still run"):
            sweep(max_concurrency=1)
        assert list(pushed_report(ti)["left"]) == names[:2]
        assert set(names[3:]) <= set(pushed_report(ti)["requested"])

    @pytest.mark.usefixtures("metadata_database")
    def test_an_undefined_connection_fails_the_task(self, monkeypatch: pytest.MonkeyPatch, sweep: Any) -> None:
        monkeypatch.delenv("DAI_EMULATOR_HOST", raising=False)
        with pytest.raises(AirflowException, match="no_such_connection.* isn't defined"):
            sweep(gcp_conn_id="no_such_connection")

    def test_missing_credentials_fail_the_task_for_good(self, monkeypatch: pytest.MonkeyPatch, sweep: Any) -> None:
        define_connection(monkeypatch, "dai")
        with pytest.raises(AirflowFailException, match=r"no usable credentials.*No cancellation was requested\."):
            sweep(gcp_conn_id="dai")


class TestSecrets:
    @pytest.mark.parametrize("end", ["fine", "waits", "dry-run", "too-many", "refused", "away"])
    def test_a_signed_url_is_shown_nowhere(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, ti: Ti, log: Log, end: str
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
            sweep(url_prefix="https://user:s3cret@", url_pattern="s3cret$", **options.get(end, {}))
        except AirflowException as error:
            words = f"{error} {error.__cause__}"
        assert ("media.example/ad.mp4" in words) == (end == "too-many")
        assert "media.example/ad.mp4" in " ".join(log.ours)
        assert [stray["creative_url"] for stray in pushed_report(ti)["found"]] == ["https://media.example/ad.mp4"] * 2
        assert "s3cret" not in f"{words} {json.dumps(pushed_report(ti))} {' '.join(log.ours)}"
