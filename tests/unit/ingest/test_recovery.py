"""An ingest whose creation response was lost is recovered, and a second one is never started."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowTaskTimeout

from airflow_dai_provider.api.rest import MAX_RESPONSE_BYTES
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.ingest.recovery import PAUSES, IngestMayHaveStartedError
from airflow_dai_provider.operators.dai import DaiCreateCreativeOperator
from airflow_dai_provider.version_compat import HAS_TASK_STATE_STORE
from tests.support.clock import Clock
from tests.support.emulators import count
from tests.support.ingests import CREATE, JSON, LIST, SECRET, URL, execute, fail, interrupt_create, the
from tests.support.log import Log
from tests.support.payloads import creative, large_url
from tests.support.task_instance import Ti

pytestmark = pytest.mark.usefixtures("_time")


class TestLostResponse:
    """Creating is not repeated where the service may have acted: a second ingest is never started."""

    @pytest.mark.parametrize(
        "fault",
        [
            Fault(CREATE, drop="after"),
            Fault(CREATE, truncate=5),
            Fault(CREATE, status=200, body=b"<html>", **JSON),
        ],
        ids=["no answer", "cut off", "not JSON"],
    )
    def test_the_ingest_is_recovered_and_adopted(self, slow: DaiEmulator, context: Any, log: Log, fault: Fault) -> None:
        slow.inject(fault)
        if fault.status:  # this fault keeps the request from the service; another ingest takes the place of its own
            slow.start_ingest("operations/mine", creative_url=URL)
        name = execute(context)
        assert slow.states() == {name: "SUCCEEDED"}
        assert count(slow, CREATE) == 1
        assert (
            "An ingest of https://media.example.com/ad.mp4 may have started. Searching the operations for it."
            in log.text
        )
        assert SECRET not in log.text

    @pytest.mark.parametrize("status", [500, 502, 503, 504, 408])
    def test_creating_is_not_retried_after_an_error_of_the_server(
        self, slow: DaiEmulator, context: Any, clock: Clock, status: int
    ) -> None:
        slow.inject(Fault(CREATE, status=status, times=None))
        with pytest.raises(IngestMayHaveStartedError, match="no operation matched within 17 s") as caught:
            execute(context)
        assert "https://media.example.com/ad.mp4" in str(caught.value)
        assert SECRET not in str(caught.value)
        assert count(slow, CREATE) == 1
        assert count(slow, LIST) == len(PAUSES)
        assert clock.slept == list(PAUSES)

    def test_an_ingest_that_is_listed_late_is_recovered(self, slow: DaiEmulator, context: Any) -> None:
        slow.inject(Fault(CREATE, drop="after"))
        slow.inject(Fault(LIST, status=200, body=b"{}", times=2))
        name = execute(context)
        assert slow.states() == {name: "SUCCEEDED"}

    def test_an_item_that_cannot_be_read_does_not_hide_the_ingest(self, slow: DaiEmulator, context: Any) -> None:
        slow.inject(Fault(CREATE, drop="after"))
        slow.inject(Fault(LIST, listed=(None, {"done": False}, {"name": "operations/a b"}), times=None))
        name = execute(context)
        assert slow.states() == {name: "SUCCEEDED"}

    def test_the_ingest_is_recovered_from_pages_that_are_too_large(self, slow: DaiEmulator, context: Any) -> None:
        for _ in range(10):
            slow.start_ingest(creative_url=large_url(MAX_RESPONSE_BYTES // 8), seconds=1)
        slow.forget_requests()
        slow.inject(Fault(CREATE, drop="after"))
        name = execute(context)
        assert slow.states()[name] == "SUCCEEDED"
        assert count(slow, CREATE) == 1

    def test_a_list_that_does_not_end_starts_nothing_again(self, slow: DaiEmulator, context: Any) -> None:
        slow.inject(Fault(CREATE, drop="after"))
        slow.inject(Fault(LIST, status=200, body=b'{"nextPageToken": "t"}', times=None))
        with pytest.raises(IngestMayHaveStartedError, match="cannot be listed: .*same page token twice"):
            execute(context)
        assert count(slow, CREATE) == 1

    def test_a_list_request_that_fails_is_retried(self, slow: DaiEmulator, context: Any) -> None:
        slow.inject(Fault(CREATE, drop="after"))
        slow.inject(Fault(LIST, status=500, times=len(PAUSES) - 1))
        name = execute(context)
        assert slow.states() == {name: "SUCCEEDED"}

    def test_a_long_pause_does_not_keep_the_ingest_from_being_found(self, slow: DaiEmulator, context: Any) -> None:
        """The service has started it, and responds that it is unavailable for two minutes."""
        slow.start_ingest("operations/started", creative_url=URL)
        slow.inject(Fault(CREATE, status=503, retry_after=120))
        assert execute(context) == "operations/started"
        assert list(slow.states()) == ["operations/started"]

    @pytest.mark.parametrize("other", ["another file", "an hour ago"])
    def test_another_ingest_is_not_adopted(self, slow: DaiEmulator, context: Any, clock: Clock, other: str) -> None:
        slow.start_ingest(
            "operations/other", creative_url=URL.replace("ad", "other") if other == "another file" else URL
        )
        clock.advance(3600 if other == "an hour ago" else 0)
        slow.inject(Fault(CREATE, drop="before"))
        with pytest.raises(IngestMayHaveStartedError, match="no operation matched"):
            execute(context)
        assert slow.cancel_requested("operations/other") == 0

    def test_two_matching_ingests_fail_the_task_and_are_named(self, slow: DaiEmulator, context: Any) -> None:
        slow.start_ingest("operations/other", creative_url=URL)
        slow.inject(Fault(CREATE, drop="after"))
        with pytest.raises(IngestMayHaveStartedError, match="operations/other") as caught:
            execute(context)
        assert all(name in str(caught.value) for name in slow.states())
        assert all(slow.cancel_requested(name) == 0 for name in slow.states())

    def test_the_ingest_of_an_earlier_try_is_not_taken_for_this_one(
        self, slow: DaiEmulator, context: Any, ti: Ti, clock: Clock
    ) -> None:
        """It was cancelled a moment ago, and the same creative is submitted again."""
        first = execute(context, wait_for_completion=False, url=URL)
        ti.try_number = 2
        clock.advance(1)
        slow.inject(Fault(CREATE, drop="before"))
        with pytest.raises(IngestMayHaveStartedError, match="no operation matched"):
            execute(context, creative=creative(URL, adTitle="new"))
        assert slow.cancel_requested(first) == 1

    @pytest.mark.parametrize("drop", ["before", "after"])
    def test_the_ingest_of_another_start_shortly_before_is_not_taken(
        self, slow: DaiEmulator, context: Any, clock: Clock, drop: str
    ) -> None:
        """Another task has started the same URL 3 s ago."""
        slow.start_ingest("operations/other", creative_url=URL)
        clock.advance(3)
        slow.inject(Fault(CREATE, drop=drop))
        if drop == "before":
            with pytest.raises(IngestMayHaveStartedError, match="no operation matched .*operations/other was created"):
                execute(context)
        else:
            assert execute(context) != "operations/other"
        assert slow.cancel_requested("operations/other") == 0

    def test_a_clock_of_the_service_that_is_a_little_behind_is_borne(
        self, slow: DaiEmulator, context: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(DaiCreateCreativeOperator, "_clock", staticmethod(lambda: clock() + 0.9))
        slow.inject(Fault(CREATE, drop="after"))
        assert execute(context, wait_for_completion=False) == the(slow)

    @pytest.mark.parametrize("list_fault", [{"rpc_status": "UNIMPLEMENTED"}, {"status": 503, "times": None}])
    def test_a_server_without_a_list_fails_the_task(self, slow: DaiEmulator, context: Any, list_fault: Any) -> None:
        slow.inject(Fault(CREATE, drop="after"))
        slow.inject(Fault(LIST, **list_fault))
        with pytest.raises(IngestMayHaveStartedError, match="the operations cannot be listed: operations.list of"):
            execute(context)

    def test_creating_is_retried_while_the_service_is_throttled(self, slow: DaiEmulator, context: Any) -> None:
        slow.inject(Fault(CREATE, status=429, times=2))
        name = execute(context)
        assert slow.states() == {name: "SUCCEEDED"}
        assert (count(slow, CREATE), count(slow, LIST)) == (3, 0)

    def test_a_time_limit_during_the_start_cancels_what_was_started(
        self, slow: DaiEmulator, context: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What has started is found and cancelled, and the failure is the time limit's."""
        from airflow_dai_provider.hooks.dai import DaiHook

        create = DaiHook.create_creative

        def interrupted(hook: DaiHook, *args: Any) -> Any:
            create(hook, *args)
            raise AirflowTaskTimeout("Timeout, PID: 1")

        monkeypatch.setattr(DaiHook, "create_creative", interrupted)
        with pytest.raises(AirflowTaskTimeout):
            execute(context)
        assert slow.cancel_requested(the(slow)) == 1

    @pytest.mark.skipif(not HAS_TASK_STATE_STORE, reason="before Airflow 3.3 a time limit cancels")
    @pytest.mark.parametrize("flags", [{}, {"cancel_on_kill": False, "cancel_on_failure": False}], ids=str)
    def test_a_retry_reattaches_to_what_a_time_limit_has_left_running(
        self, slow: DaiEmulator, context: Any, ti: Ti, monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool]
    ) -> None:
        ti.max_tries = 1
        with monkeypatch.context() as patches:
            interrupt_create(patches)
            with pytest.raises(AirflowTaskTimeout):
                execute(context, **flags)
        ti.try_number = 2
        execute(context, **flags)
        assert slow.states() == {the(slow): "SUCCEEDED"}
        assert count(slow, CREATE) == 1


class TestInterruptedInDoubt:
    """After an interruption that Airflow retries, a second ingest would be started."""

    def test_a_time_limit_during_the_start_fails_for_good_without_a_list(
        self, slow: DaiEmulator, context: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slow.inject(Fault(LIST, rpc_status="UNIMPLEMENTED"))
        interrupt_create(monkeypatch)
        with pytest.raises(IngestMayHaveStartedError, match="interrupted: Timeout, PID: 1"):
            execute(context)

    @pytest.mark.parametrize("error", [AirflowTaskTimeout("Timeout, PID: 1"), RuntimeError("Timeout, PID: 1")])
    def test_an_interruption_of_the_search_fails_for_good(
        self, slow: DaiEmulator, context: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        slow.inject(Fault(CREATE, drop="after"))
        slow.inject(Fault(LIST, status=503, times=None))

        def sleep(seconds: float) -> None:
            clock.sleep(seconds)
            if seconds == 5.0:
                raise error

        monkeypatch.setattr(DaiCreateCreativeOperator, "_sleep", staticmethod(sleep))
        with pytest.raises(IngestMayHaveStartedError, match="media.example.com/ad.mp4.*: .*Timeout, PID: 1"):
            execute(context)
        assert count(slow, CREATE) == 1

    def test_a_failing_xcom_push_does_not_hide_the_time_limit(
        self, slow: DaiEmulator, context: Any, ti: Ti, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        interrupt_create(monkeypatch)
        monkeypatch.setattr(type(ti), "xcom_push", fail)
        with pytest.raises(AirflowTaskTimeout):
            execute(context)
        assert slow.cancel_requested(the(slow)) == 1
