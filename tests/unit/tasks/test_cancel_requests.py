"""Requesting the cancellation of one operation."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.api_core import exceptions as api

from airflow_dai_provider.api.errors import ServiceError
from airflow_dai_provider.api.polling import NOT_FOUND_GRACE
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.tasks.cancel_requests import request_cancellation, request_cancellations
from tests.support.clock import Clock
from tests.support.emulators import MakeEmulator, count, methods
from tests.support.log import Log

LOGGER = logging.getLogger("airflow_dai_provider.test_cancellation")
LOGGER.setLevel(logging.INFO)
GET, CANCEL = "operations.get", "operations.cancel"
SAYS_FINISHED = ("FAILED_PRECONDITION", "NOT_FOUND")


@pytest.fixture
def hook(fake_time: Clock) -> Iterator[Callable[[], Any]]:
    from airflow_dai_provider.hooks.dai import DaiHook

    made: list[DaiHook] = []

    def make() -> DaiHook:
        made.append(DaiHook())
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_running_operation(emulator: DaiEmulator, hook: Any, log: Log) -> None:
    name = emulator.start_ingest("operations/a/b")
    assert request_cancellation(hook(), name, LOGGER) is None
    assert methods(emulator) == [CANCEL]
    assert emulator.state(name) == "CANCELLED"
    assert log.ours == ["Requested the cancellation of operations/a/b."]


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED", "CANCELLED"])
@pytest.mark.parametrize("refusal", ["failed_precondition", "not_found"])
def test_what_has_finished_is_polled_where_the_service_refuses(
    make_emulator: MakeEmulator, hook: Any, log: Log, refusal: str, state: str
) -> None:
    emulator = make_emulator(finished_cancel=refusal)
    outcome = "INVALID_MEDIA" if state == "FAILED" else "success"
    name = emulator.start_ingest(seconds=1e9 if state == "CANCELLED" else 0, outcome=outcome)
    if state == "CANCELLED":
        hook().cancel_operation(name)
        emulator.forget_requests()
    operation = request_cancellation(hook(), name, LOGGER)
    assert operation is not None
    assert operation.state == state
    assert methods(emulator) == [CANCEL, GET]
    (line,) = log.ours
    assert (f"({name}) failed: INVALID_MEDIA" if state == "FAILED" else f"{name} is {state}") in line
    assert "already finished, there is nothing to cancel" in line


def test_what_has_finished_where_the_service_does_not_mind(emulator: DaiEmulator, hook: Any, log: Log) -> None:
    name = emulator.start_ingest(seconds=0)
    assert request_cancellation(hook(), name, LOGGER) is None
    assert log.ours == [f"Requested the cancellation of {name}."]


#: Errors of a cancel after which get is asked; the last two have no response to read.
ERRORS: dict[str, dict[str, Any]] = {
    **{code: {"rpc_status": code} for code in (*SAYS_FINISHED, "INVALID_ARGUMENT", "OUT_OF_RANGE", "ALREADY_EXISTS")},
    **{code: {"rpc_status": code} for code in ("ABORTED", "UNKNOWN", "INTERNAL", "DEADLINE_EXCEEDED", "DATA_LOSS")},
    **{code: {"rpc_status": code} for code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED")},
    "a gateway": {"status": 502, "body": "<html>", "content_type": "text/html"},
    "a lost connection": {"drop": "before"},
}
every_error = pytest.mark.parametrize("fault", ERRORS.values(), ids=list(ERRORS))


def fail(emulator: DaiEmulator, method: str, **fault: Any) -> None:
    emulator.inject(Fault(method=method, **{"times": None, **fault}))


@every_error
def test_get_tells_after_every_other_error_how_it_has_finished(
    emulator: DaiEmulator, hook: Any, log: Log, fault: dict[str, Any]
) -> None:
    name = emulator.start_ingest(seconds=0)
    fail(emulator, CANCEL, **fault)
    operation = request_cancellation(hook(), name, LOGGER)
    assert operation is not None
    assert operation.state == "SUCCEEDED"
    assert methods(emulator)[-2:] == [CANCEL, GET]
    assert count(emulator, GET) == 1
    assert "already finished, there is nothing to cancel" in log.ours[-1]


@every_error
def test_the_error_is_raised_where_get_tells_that_it_runs(
    emulator: DaiEmulator, hook: Any, clock: Clock, fault: dict[str, Any]
) -> None:
    name = emulator.start_ingest()
    fail(emulator, CANCEL, **fault)
    began = clock()
    with pytest.raises(ServiceError, match=f"{CANCEL} of {name} ") as caught:
        request_cancellation(hook(), name, LOGGER)
    # Never NOT_FOUND, which callers may take for an operation that does not run.
    code = fault.get("rpc_status", "UNAVAILABLE")
    assert caught.value.rpc_code == ("ABORTED" if code in SAYS_FINISHED else code)
    assert (f"But {name} is RUNNING" in str(caught.value)) == (code in SAYS_FINISHED)
    refusals = (*SAYS_FINISHED, "INVALID_ARGUMENT", "OUT_OF_RANGE", "ALREADY_EXISTS")
    assert methods(emulator)[-1] == GET
    assert count(emulator, CANCEL) == 3 or code not in refusals
    assert clock() - began == pytest.approx(NOT_FOUND_GRACE) or code not in refusals


REFUSALS = ("FAILED_PRECONDITION", "NOT_FOUND", "INVALID_ARGUMENT")


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal_is_believed_when_get_has_caught_up(
    emulator: DaiEmulator, hook: Any, log: Log, refusal: str, waits: bool
) -> None:
    name = emulator.start_ingest(seconds=0)
    fail(emulator, CANCEL, rpc_status=refusal)
    behind = {"done": None, "response": None}
    emulator.inject(Fault(GET, merge=behind, times=4))
    operation = request_cancellation(hook(), name, LOGGER, waits=waits)
    assert operation is not None
    assert operation.state == "SUCCEEDED"
    assert "already finished, there is nothing to cancel" in log.ours[-1]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_is_refused_for_a_moment_is_cancelled(emulator: DaiEmulator, hook: Any, refusal: str) -> None:
    name = emulator.start_ingest()
    fail(emulator, CANCEL, rpc_status=refusal, times=2)
    assert request_cancellation(hook(), name, LOGGER) is None
    assert emulator.state(name) == "CANCELLED"


@pytest.mark.parametrize("refusal", SAYS_FINISHED)
def test_a_caller_that_waits_goes_on_with_what_runs(emulator: DaiEmulator, hook: Any, log: Log, refusal: str) -> None:
    name = emulator.start_ingest()
    fail(emulator, CANCEL, rpc_status=refusal)
    operation = request_cancellation(hook(), name, LOGGER, waits=True)
    assert operation is not None
    assert not operation.done
    (line,) = [line for line in log.ours if "Waiting until" in line]
    assert line.startswith(f"{CANCEL} of {name} returned ")
    assert f"But {name} is RUNNING" in line


@pytest.mark.parametrize("refusal", REFUSALS)
def test_of_many_a_refusal_is_believed_when_get_has_caught_up(
    emulator: DaiEmulator, hook: Any, clock: Clock, refusal: str
) -> None:
    late, stays = emulator.start_ingest(seconds=0), emulator.start_ingest()
    fail(emulator, CANCEL, rpc_status=refusal)
    emulator.inject(Fault(GET, name=late, merge={"done": None, "response": None}, times=2))

    def request(*, waits: bool) -> tuple[Any, Any]:
        with hook().workers(2) as workers:
            return request_cancellations(
                workers, [late, stays], waits=waits, clock=clock, sleep=clock.sleep, log=LOGGER
            )

    finished, errors = request(waits=False)
    assert {name: one.state for name, one in finished.items()} == {late: "SUCCEEDED"}
    assert {name: one.rpc_code for name, one in errors.items()} == {
        stays: refusal if refusal == "INVALID_ARGUMENT" else "ABORTED"
    }
    finished, errors = request(waits=True)
    assert list(finished) == [late]
    assert list(errors) == ([stays] if refusal == "INVALID_ARGUMENT" else [])


def test_an_operation_that_is_unknown_for_a_moment_is_cancelled(emulator: DaiEmulator, hook: Any) -> None:
    name = emulator.start_ingest()
    fail(emulator, CANCEL, rpc_status="NOT_FOUND", times=1)
    fail(emulator, GET, rpc_status="NOT_FOUND", times=1)
    assert request_cancellation(hook(), name, LOGGER) is None
    assert emulator.state(name) == "CANCELLED"


def test_unknown(emulator: DaiEmulator, hook: Any, log: Log) -> None:
    with pytest.raises(api.NotFound, match="operations/never"):
        request_cancellation(hook(), "operations/never", LOGGER)
    assert len(log.ours) == 1, "The first failed poll; NOT_FOUND is believed when it lasts."


@pytest.mark.parametrize("code", ["UNIMPLEMENTED", "PERMISSION_DENIED", "UNAUTHENTICATED"])
def test_without_access_nothing_is_polled(emulator: DaiEmulator, hook: Any, log: Log, code: str) -> None:
    name = emulator.start_ingest()
    fail(emulator, CANCEL, rpc_status=code)
    with pytest.raises(ServiceError) as caught:
        request_cancellation(hook(), name, LOGGER)
    assert caught.value.rpc_code == code
    assert methods(emulator) == [CANCEL]
    assert log.ours == []


def test_after_a_request_that_reached_no_server_nothing_is_polled(emulator: DaiEmulator, hook: Any) -> None:
    name, made = emulator.start_ingest(), hook()
    emulator.stop()
    with pytest.raises(api.ServiceUnavailable, match=CANCEL) as caught:
        request_cancellation(made, name, LOGGER)
    assert GET not in str(caught.value)


@pytest.mark.parametrize(
    ("refusal", "of_get", "raised"),
    [
        ("FAILED_PRECONDITION", "UNAVAILABLE", "UNAVAILABLE"),
        ("NOT_FOUND", "UNAVAILABLE", "UNAVAILABLE"),
        ("NOT_FOUND", "PERMISSION_DENIED", "PERMISSION_DENIED"),
        ("INVALID_ARGUMENT", "NOT_FOUND", "NOT_FOUND"),
        ("ABORTED", "UNAVAILABLE", "ABORTED"),
        ("ABORTED", "NOT_FOUND", "ABORTED"),
        ("UNAVAILABLE", "UNIMPLEMENTED", "UNAVAILABLE"),
    ],
)
def test_where_both_fail_the_message_has_both_and_a_transient_error_counts(
    emulator: DaiEmulator, hook: Any, refusal: str, of_get: str, raised: str
) -> None:
    name = emulator.start_ingest(seconds=0)
    fail(emulator, CANCEL, rpc_status=refusal)
    fail(emulator, GET, rpc_status=of_get)
    with pytest.raises(ServiceError) as caught:
        request_cancellation(hook(), name, LOGGER)
    assert caught.value.rpc_code == raised
    for method, code in ((CANCEL, refusal), (GET, of_get)):
        assert re.search(f"{method} of {name} returned [0-9]+ {code}", str(caught.value))


def test_a_killed_task_sends_no_retry_and_no_poll(emulator: DaiEmulator, hook: Any, clock: Clock) -> None:
    name, made = emulator.start_ingest(), hook()
    made.stopped = lambda: "the task was killed" if clock.slept else None
    fail(emulator, CANCEL, status=503)
    with pytest.raises(api.ServiceUnavailable, match="503 .*; it was not retried: the task was killed"):
        request_cancellation(made, name, LOGGER)
    with pytest.raises(api.Cancelled, match=f"{CANCEL} of {name} was not sent: the task was killed"):
        request_cancellation(made.sibling(), name, LOGGER)
    assert methods(emulator) == [CANCEL]
