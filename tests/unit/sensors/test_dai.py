"""DaiOperationSensor, against a real HTTP server, and where it matters on the real metadata database."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
)
from google.api_core.exceptions import GoogleAPICallError

from airflow_dai_provider.api.operation import OperationState
from airflow_dai_provider.api.polling import MAX_OUTAGE, NOT_FOUND_GRACE
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.operators.dai import DaiCancelOperationOperator
from airflow_dai_provider.sensors.dai import DaiOperationSensor
from tests.support.airflow_versions import AirflowRescheduleException
from tests.support.clock import Clock
from tests.support.emulators import MakeEmulator, methods
from tests.support.log import Log
from tests.support.task_instance import Ti

GET = "operations.get"
NAME = "operations/my-ingest"
ENDS: dict[str, dict[str, Any]] = {
    "CANCELLED": {},
    "SUCCEEDED": {"seconds": 0},
    "FAILED": {"seconds": 0, "outcome": "DOWNLOAD_ERROR", "code": 403},
}


def finish(state: str, otherwise: str = "") -> str:
    """Return a pattern of the words for a final state; a failure needs no more."""
    return rf"\({NAME}\) failed: DOWNLOAD_ERROR 403 " if state == "FAILED" else f"{NAME} is {state}{otherwise}"


# Errors that a sensor must neither wait out nor skip with soft_fail: the next response will be the same.
PERMANENT = {
    "UNIMPLEMENTED": "does not support the method, and a retry cannot help",
    "PERMISSION_DENIED": "allow-listed",
    "UNAUTHENTICATED": "refused the credentials",
    "INVALID_ARGUMENT": "",
    "NOT_FOUND": "missing_ok=True",
}
MODES = pytest.mark.parametrize("mode", ["poke", "reschedule"])
#: The polls, in seconds, after which NOT_FOUND is believed.
GRACE_POLLS = [*range(int(NOT_FOUND_GRACE)), NOT_FOUND_GRACE]


def end(emulator: DaiEmulator, state: str, name: str = NAME) -> None:
    """Have an ingest that has finished in a state."""
    from airflow_dai_provider.hooks.dai import DaiHook

    emulator.start_ingest(name, **ENDS[state])
    if state == "CANCELLED":
        with DaiHook() as hook:
            hook.cancel_operation(name)
    emulator.forget_requests()


@pytest.fixture
def execute(ti: Ti, metadata_database: None) -> Callable[..., Any]:
    """Execute the sensor; in reschedule mode Airflow 2 asks the metadata database when it began."""

    def run(operation_name: Any = NAME, **options: Any) -> Any:
        # The timeout only ends a sensor that would otherwise block the tests forever.
        quick = {"poke_interval": 30 if options.get("timeout") == 3600 else 0.001, "timeout": 20}
        sensor = DaiOperationSensor(task_id="wait", operation_name=operation_name, **{**quick, **options})
        return sensor.execute({"ti": ti})

    return run


def polls(log: Log) -> list[str]:
    return [line for line in log.ours if re.search(r"operations/\S+ (is (RUNNING|SUCCEEDED|CANCELLED)|failed: )", line)]


class TestFinalState:
    @MODES
    @pytest.mark.parametrize("state", ENDS)
    @pytest.mark.parametrize("expected", ["the default", None, *ENDS], ids=str)
    def test_a_final_state_is_accepted_or_fails_the_task(
        self, emulator: DaiEmulator, execute: Any, mode: str, state: str, expected: Any
    ) -> None:
        end(emulator, state)
        options = {} if expected == "the default" else {"expected_states": expected}
        accepted = ("CANCELLED", "SUCCEEDED") if expected == "the default" else expected or tuple(ENDS)
        if state in accepted:
            result = execute(mode=mode, **options)
            assert (result["name"], result["state"], result["done"]) == (NAME, state, True)
        else:
            with pytest.raises(AirflowFailException, match=finish(state, ".* accepts only")):
                execute(mode=mode, **options)
        assert len(emulator.requests) == 1

    def test_a_failed_ingest_fails_the_task_with_its_reason(
        self, emulator: DaiEmulator, execute: Any, log: Log
    ) -> None:
        end(emulator, "FAILED")
        reason = f"({NAME}) failed: DOWNLOAD_ERROR 403 (error 9: The media file could not be downloaded)."
        with pytest.raises(AirflowFailException, match=re.escape(reason)):
            execute()
        assert any(reason in line for line in log.ours)

    @pytest.mark.parametrize("state", ENDS)
    def test_the_result_is_plain_json_without_secrets(
        self, emulator: DaiEmulator, execute: Any, log: Log, state: str
    ) -> None:
        url = "https://user:secret@media.example/ad.mp4?X-Goog-Signature=secret#secret"
        finished = {"cancel_seconds": 0} if state == "CANCELLED" else ENDS[state]
        emulator.start_ingest(NAME, creative_url=url, **finished)
        if state == "CANCELLED":
            DaiCancelOperationOperator(task_id="cancel", operation_name=NAME).execute({})
        result = execute(expected_states=None)
        assert json.loads(json.dumps(result)) == result
        assert type(result["state"]) is str
        assert set(result) == {
            "name",
            "state",
            "done",
            "error_code",
            "error_message",
            "creative_name",
            "ingest",
            "response",
            "metadata",
        }
        assert result["ingest"]["creative_url"] == "https://media.example/ad.mp4"
        assert "secret" not in json.dumps(result)
        assert "secret" not in " ".join(log.ours)

    def test_done_with_neither_error_nor_response_is_a_success(self, emulator: DaiEmulator, execute: Any) -> None:
        emulator.inject(Fault(status=200, body=json.dumps({"name": NAME, "done": True, "metadata": None}).encode()))
        assert execute(expected_states="SUCCEEDED")["state"] == "SUCCEEDED"

    @pytest.mark.parametrize(
        "answer",
        [b"{}", b"[]", b"not json", b'{"name": "operations/my-ingest", "done": true, "error": {}, "response": {}}'],
        ids=["no-name", "no-object", "no-json", "both-results"],
    )
    def test_a_response_without_an_operation_fails_the_task(
        self, emulator: DaiEmulator, execute: Any, answer: bytes
    ) -> None:
        emulator.inject(Fault(status=200, body=answer, times=None))
        with pytest.raises(AirflowException, match=f"{GET} of {NAME}") as raised:
            execute(timeout=1)
        assert not isinstance(raised.value, AirflowFailException)


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> datetime:
    """Let the clocks of the sensor base stand still: a poll takes no time there, also on a busy machine."""
    base: Any = sys.modules[BaseSensorOperator.__module__]
    monotonic, moment = time.monotonic(), datetime.now(UTC)
    clocks = SimpleNamespace(monotonic=lambda: monotonic, sleep=lambda seconds: time.sleep(seconds))
    monkeypatch.setattr(base, "time", clocks)
    monkeypatch.setattr(base, "timezone", SimpleNamespace(utcnow=lambda: moment))
    return moment


class TestWait:
    def test_all_polls_use_one_connection_and_log_a_line_each(
        self, emulator: DaiEmulator, execute: Any, no_sleep: Clock, log: Log
    ) -> None:
        emulator.start_ingest(NAME, seconds=18.5)
        assert execute(poke_interval=1)["state"] == "SUCCEEDED"
        assert methods(emulator) == [GET] * 20
        assert emulator.connections == 1
        assert len(polls(log)) == 20
        assert no_sleep.slept == [1] * 19

    @pytest.mark.usefixtures("no_sleep", "still")
    def test_the_log_line_of_a_poll(self, emulator: DaiEmulator, execute: Any, log: Log) -> None:
        emulator.start_ingest(NAME, seconds=7)
        execute(poke_interval=7)
        assert polls(log) == [
            f"{NAME} is RUNNING (ingest PROCESSING); 0 s elapsed, next poll in 7.0 s",
            f"{NAME} is SUCCEEDED (ingest SUCCESS).",
        ]

    @pytest.mark.usefixtures("no_sleep", "still")
    def test_the_log_line_of_an_operation_without_metadata(self, emulator: DaiEmulator, execute: Any, log: Log) -> None:
        emulator.inject(Fault(status=200, body=json.dumps({"name": NAME, "metadata": None}).encode()))
        emulator.start_ingest(NAME, seconds=0)
        execute(poke_interval=7)
        assert polls(log)[0] == f"{NAME} is RUNNING; 0 s elapsed, next poll in 7.0 s"

    def test_a_short_poke_interval_is_slept_as_it_is(
        self, emulator: DaiEmulator, execute: Any, no_sleep: Clock
    ) -> None:
        emulator.start_ingest(NAME, seconds=10)
        no_sleep.step = 1
        assert execute()["state"] == "SUCCEEDED"
        assert len(emulator.requests) > 2
        assert no_sleep.slept == [0.001] * (len(emulator.requests) - 1)

    def test_the_interval_of_the_backoff_is_the_one_logged(
        self, emulator: DaiEmulator, execute: Any, no_sleep: Clock, log: Log
    ) -> None:
        emulator.start_ingest(NAME, seconds=200)
        execute(poke_interval=2, exponential_backoff=True, max_wait=30, timeout=3600)
        logged = [re.findall(r"next poll in ([0-9.]+) s", line) for line in polls(log)[:-1]]
        assert logged == [[f"{seconds:.1f}"] for seconds in no_sleep.slept]
        assert len(set(no_sleep.slept)) > 3
        assert max(no_sleep.slept) == 30

    @pytest.mark.parametrize("backoff", [False, True], ids=["constant", "backoff"])
    def test_the_logged_interval_is_the_rescheduled_one(
        self, emulator: DaiEmulator, execute: Any, log: Log, still: datetime, backoff: bool
    ) -> None:
        emulator.start_ingest(NAME)
        with pytest.raises(AirflowRescheduleException) as raised:
            execute(mode="reschedule", poke_interval=90, exponential_backoff=backoff, timeout=3600)
        (poll,) = polls(log)
        (interval,) = re.findall(r"is RUNNING \(ingest PROCESSING\); 0 s elapsed, next poll in ([0-9.]+) s", poll)
        assert backoff or interval == "90.0"
        planned = (raised.value.reschedule_date - still).total_seconds()
        assert planned == pytest.approx(float(interval), abs=0.06)
        assert len(emulator.requests) == 1

    @pytest.mark.parametrize(
        "how",
        [{}, {"mode": "reschedule"}, {"expected_states": "FAILED"}, {"soft_fail": True}, {"timeout": 0}],
        ids=["ends", "reschedules", "unexpected", "skips", "times-out"],
    )
    @pytest.mark.usefixtures("metadata_database")
    def test_the_hook_is_always_closed(self, emulator: DaiEmulator, ti: Ti, how: dict[str, Any]) -> None:
        emulator.start_ingest(NAME, seconds=1e9 if "mode" in how or "timeout" in how else 0)
        sensor = DaiOperationSensor(task_id="wait", operation_name=NAME, **how)
        hook = sensor.hook
        session = hook.get_conn()
        closed = []
        session.close = lambda: closed.append(True)
        with suppress(AirflowException, AirflowRescheduleException):
            sensor.execute({"ti": ti})
        assert closed == [True]
        assert "hook" not in vars(sensor)

    def test_a_transient_error_is_retried(self, emulator: DaiEmulator, execute: Any) -> None:
        emulator.start_ingest(NAME, seconds=0)
        emulator.inject(Fault(status=503, times=2))
        assert execute()["state"] == "SUCCEEDED"
        assert len(emulator.requests) == 3

    @MODES
    def test_an_outage_fails_the_task_and_leaves_it_its_retries(
        self, emulator: DaiEmulator, execute: Any, mode: str
    ) -> None:
        emulator.start_ingest(NAME)
        emulator.inject(Fault(status=503, times=None))
        words = f"{GET} of {NAME} returned 503 .* {NAME} may still run"
        with pytest.raises(AirflowException, match=words) as raised:
            execute(mode=mode, timeout=3600)
        assert not isinstance(raised.value, AirflowFailException | AirflowSkipException)
        assert emulator.requests[-1].time - emulator.requests[0].time == MAX_OUTAGE


class TestTimeout:
    @MODES
    def test_a_timeout_says_what_may_still_run(self, emulator: DaiEmulator, execute: Any, mode: str) -> None:
        emulator.start_ingest(NAME)
        with pytest.raises(AirflowSensorTimeout, match=f"{NAME} may still run"):
            execute(mode=mode, timeout=0)
        assert emulator.state(NAME) == "RUNNING"
        assert methods(emulator) == [GET]

    def test_a_timeout_with_soft_fail_skips_and_says_what_may_still_run(
        self, emulator: DaiEmulator, execute: Any
    ) -> None:
        emulator.start_ingest(NAME)
        with pytest.raises(AirflowSkipException, match=f"timed out.*{NAME} may still run"):
            execute(timeout=0, soft_fail=True)

    def test_the_last_poll_is_logged(self, emulator: DaiEmulator, execute: Any, log: Log) -> None:
        emulator.start_ingest(NAME)
        with pytest.raises(AirflowSensorTimeout):
            execute(timeout=0)
        (poll,) = polls(log)
        assert poll.startswith(f"{NAME} is RUNNING (ingest PROCESSING)")

    def test_a_finished_operation_is_no_timeout(self, emulator: DaiEmulator, execute: Any) -> None:
        end(emulator, "CANCELLED")
        assert execute(timeout=0)["state"] == "CANCELLED"


class TestPermanentError:
    @MODES
    @pytest.mark.parametrize(
        "option", [{}, {"soft_fail": True}, {"silent_fail": True}], ids=["plain", "soft_fail", "silent_fail"]
    )
    @pytest.mark.parametrize("rpc_status", PERMANENT)
    def test_a_permanent_error_fails_the_task_at_once(
        self, emulator: DaiEmulator, execute: Any, mode: str, option: dict[str, Any], rpc_status: str
    ) -> None:
        emulator.start_ingest(NAME)
        emulator.inject(Fault(rpc_status=rpc_status, times=None))
        words = rf"{GET} of {NAME} returned \d+ {rpc_status}.*{PERMANENT[rpc_status]}"
        with pytest.raises(AirflowFailException, match=words) as raised:
            execute(mode=mode, **option)
        assert len(emulator.requests) == (1 if rpc_status != "NOT_FOUND" else len(GRACE_POLLS))
        assert isinstance(raised.value.__cause__, GoogleAPICallError)

    @MODES
    @pytest.mark.parametrize("soft_fail", [False, True], ids=["plain", "soft_fail"])
    @pytest.mark.parametrize(
        "name", [None, "", "None", {"name": NAME}, [NAME, None], 5, "operations/../x", "x"], ids=repr
    )
    def test_an_invalid_name_fails_without_a_request(
        self, emulator: DaiEmulator, execute: Any, mode: str, soft_fail: bool, name: Any
    ) -> None:
        with pytest.raises(AirflowFailException, match="Invalid operation name"):
            execute(name, mode=mode, soft_fail=soft_fail, missing_ok=True)
        assert emulator.requests == []

    @pytest.mark.parametrize("soft_fail", [False, True], ids=["plain", "soft_fail"])
    @pytest.mark.parametrize("states", ["RUNNING", [], "", "cancelled", 5], ids=repr)
    def test_invalid_expected_states_fail_without_a_request(
        self, emulator: DaiEmulator, execute: Any, states: Any, soft_fail: bool
    ) -> None:
        end(emulator, "SUCCEEDED")
        with pytest.raises(AirflowFailException, match="Invalid expected_states"):
            execute(expected_states=states, soft_fail=soft_fail)
        assert emulator.requests == []

    def test_a_wrong_address_fails_the_task_in_spite_of_missing_ok(self, emulator: DaiEmulator, execute: Any) -> None:
        emulator.inject(Fault(status=404, body=b"<html>no</html>", content_type="text/html", times=None))
        with pytest.raises(AirflowFailException, match="is the endpoint right"):
            execute(missing_ok=True)


class TestOptions:
    @MODES
    @pytest.mark.usefixtures("emulator")
    def test_missing_ok_returns_none(self, execute: Any, log: Log, mode: str) -> None:
        assert execute(mode=mode, missing_ok=True, expected_states="SUCCEEDED") is None
        (line,) = log.lines("missing_ok is set")
        assert NAME in line

    @MODES
    @pytest.mark.parametrize(("state", "expected"), [("FAILED", None), ("SUCCEEDED", "CANCELLED")])
    def test_soft_fail_skips_an_unexpected_final_state(
        self, emulator: DaiEmulator, execute: Any, log: Log, mode: str, state: str, expected: str | None
    ) -> None:
        end(emulator, state)
        options = {"expected_states": expected} if expected else {}
        with pytest.raises(AirflowSkipException):
            execute(mode=mode, soft_fail=True, **options)
        assert re.search(finish(state), polls(log)[-1])

    def test_soft_fail_leaves_an_outage_to_the_retries(self, emulator: DaiEmulator, execute: Any) -> None:
        emulator.inject(Fault(status=503, times=None))
        with pytest.raises(AirflowException) as raised:
            execute(soft_fail=True, timeout=3600)
        assert not isinstance(raised.value, AirflowFailException | AirflowSkipException)

    @pytest.mark.parametrize("rpc_status", [*PERMANENT, "UNAVAILABLE"])
    def test_never_fail_skips_any_error(self, emulator: DaiEmulator, execute: Any, rpc_status: str) -> None:
        emulator.inject(Fault(rpc_status=rpc_status, times=None))
        with pytest.raises(AirflowSkipException):
            execute(never_fail=True, timeout=3600)

    @pytest.mark.usefixtures("no_sleep")
    def test_silent_fail_waits_through_an_outage(self, emulator: DaiEmulator, execute: Any) -> None:
        emulator.start_ingest(NAME, seconds=0)
        emulator.inject(Fault(status=503, times=13))  # more than two polls, with five retries each
        assert execute(silent_fail=True, poke_interval=1)["state"] == "SUCCEEDED"

    def test_silent_fail_does_not_hide_an_unexpected_final_state(self, emulator: DaiEmulator, execute: Any) -> None:
        end(emulator, "FAILED")
        with pytest.raises(AirflowFailException, match="failed: DOWNLOAD_ERROR"):
            execute(silent_fail=True)


class TestKill:
    """What happens when the task is killed in the worker, between two polls."""

    @pytest.fixture
    def kill(self, ti: Ti, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
        """Execute a sensor that is killed, twice, while it sleeps for the first time."""

        def run(**options: Any) -> Any:
            sensor = DaiOperationSensor(
                task_id="wait", operation_name=NAME, poke_interval=5, **{"expected_states": None, **options}
            )

            def killed(seconds: float) -> None:
                clock.sleep(seconds)
                sensor.on_kill()
                sensor.on_kill()

            monkeypatch.setattr(time, "sleep", killed)
            return sensor.execute({"ti": ti})

        return run

    def test_a_kill_cancels_once_with_cancel_on_kill(self, make_emulator: MakeEmulator, kill: Any, log: Log) -> None:
        emulator = make_emulator(ingest_seconds=8)
        emulator.start_ingest(NAME)
        assert kill(cancel_on_kill=True)["state"] == "CANCELLED"
        assert emulator.cancel_requested(NAME) == 1
        assert f"Requested the cancellation of {NAME}: its task was killed." in log.ours

    def test_a_kill_leaves_the_operation_running_without_cancel_on_kill(
        self, make_emulator: MakeEmulator, kill: Any
    ) -> None:
        emulator = make_emulator(ingest_seconds=8)
        emulator.start_ingest(NAME)
        assert kill()["state"] == "SUCCEEDED"
        assert emulator.cancel_requested(NAME) == 0

    def test_a_kill_after_the_poke_cancels_nothing(self, emulator: DaiEmulator, ti: Ti) -> None:
        """Airflow kills a task whose callbacks take too long, long after its own work is done."""
        emulator.start_ingest(NAME, seconds=100)
        sensor = DaiOperationSensor(
            task_id="wait", operation_name=NAME, cancel_on_kill=True, mode="reschedule", poke_interval=60
        )
        with pytest.raises(AirflowRescheduleException):
            sensor.execute({"ti": ti})
        sensor.on_kill()
        assert emulator.cancel_requested(NAME) == 0

    def test_a_kill_during_the_first_poll_cancels(self, emulator: DaiEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
        """A poll can take a minute when the service is unavailable."""
        name = emulator.start_ingest()
        emulator.inject(Fault(method="operations.get", status=503))
        sensor = DaiOperationSensor(task_id="wait", operation_name=name, cancel_on_kill=True)
        monkeypatch.setattr(DaiHook, "_sleep", staticmethod(lambda _: sensor.on_kill()))
        sensor.poke({})
        assert emulator.cancel_requested(name) == 1

    def test_a_kill_during_the_connection_look_up_cancels(
        self, emulator: DaiEmulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Airflow tells it once, and ends the process seconds later."""
        name = emulator.start_ingest()
        sensor = DaiOperationSensor(task_id="wait", operation_name=name, cancel_on_kill=True)
        look_up = DaiHook.__init__

        def killed_meanwhile(*args: Any, **kwargs: Any) -> None:
            sensor.on_kill()
            look_up(*args, **kwargs)

        monkeypatch.setattr(DaiHook, "__init__", killed_meanwhile)
        sensor.poke({})
        assert emulator.cancel_requested(name) == 1


class TestParameters:
    def test_the_constructor_assigns_templates_unseen(self) -> None:
        given: dict[str, Any] = {name: object() for name in DaiOperationSensor.template_fields}
        sensor = DaiOperationSensor(task_id="wait", **given)
        assert {name: getattr(sensor, name) for name in given} == given

    def test_defaults(self) -> None:
        sensor = DaiOperationSensor(task_id="wait", operation_name=NAME)
        assert tuple(sensor.expected_states) == ("CANCELLED", "SUCCEEDED")
        assert sensor.missing_ok is False
        assert sensor.gcp_conn_id == "google_cloud_default"
        assert sensor.impersonation_chain is None
        assert sensor.api_endpoint is None

    def test_templates_are_rendered(self) -> None:
        sensor = DaiOperationSensor(
            task_id="wait",
            operation_name="operations/{{ word }}",
            expected_states=["{{ word | upper }}", OperationState.FAILED],
            gcp_conn_id="{{ word }}_conn",
            impersonation_chain=["{{ word }}@example.com"],
            api_endpoint="{{ word }}.example.com",
        )
        sensor.render_template_fields({"word": "cancelled"})
        assert {name: getattr(sensor, name) for name in sensor.template_fields} == {
            "operation_name": "operations/cancelled",
            "expected_states": ["CANCELLED", "FAILED"],
            "gcp_conn_id": "cancelled_conn",
            "impersonation_chain": ["cancelled@example.com"],
            "api_endpoint": "cancelled.example.com",
        }
