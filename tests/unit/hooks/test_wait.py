"""DaiHook.wait_for_operation."""

from __future__ import annotations

from typing import Any

import pytest
from google.api_core import exceptions

from airflow_dai_provider.api.operation import OperationState
from airflow_dai_provider.api.polling import MAX_OUTAGE, NOT_FOUND_GRACE, WaitTimeoutError
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from tests.support.clock import Clock
from tests.support.hooks import CANCELLED, FAILED, SUCCEEDED
from tests.support.log import Log
from tests.support.payloads import NAME


def looks(emulator: DaiEmulator) -> list[float]:
    """Return when the service was looked at, in seconds from the first look."""
    times = [request.time for request in emulator.requests if request.method == "operations.get"]
    return [round(time - times[0], 3) for time in times]


@pytest.mark.parametrize(
    ("plan", "state"),
    [({}, SUCCEEDED), ({"outcome": "INVALID_MEDIA"}, FAILED), ({"cancel_seconds": 20}, CANCELLED)],
    ids=["completed", "failed", "cancelled"],
)
def test_wait_returns_the_final_state(
    hook: DaiHook, emulator: DaiEmulator, log: Log, plan: dict[str, Any], state: OperationState
) -> None:
    name = emulator.start_ingest(seconds=100 if "cancel_seconds" in plan else 20, **plan)
    if "cancel_seconds" in plan:
        hook.cancel_operation(name)

    ended = hook.wait_for_operation(name, poll_interval=30)

    assert ended.state is state
    assert looks(emulator) == [0, 1, 2.5, 4.75, 8.125, 13.188, 20.781]
    logged = log.lines("next poll")
    assert len(logged) == len(looks(emulator)) - 1
    assert logged[0] == f"{name} is RUNNING (ingest PROCESSING); 0 s elapsed, next poll in 1.0 s"
    assert logged[3] == f"{name} is RUNNING (ingest PROCESSING); 5 s elapsed, next poll in 3.4 s"


def test_wait_polls_a_finished_operation_once(
    hook: DaiHook, emulator: DaiEmulator, slept: list[float], log: Log
) -> None:
    name = emulator.start_ingest(seconds=0)

    assert hook.wait_for_operation(name, timeout=1).state is SUCCEEDED
    assert len(emulator.requests) == 1
    assert slept == []
    assert log.lines("next poll") == []


def test_wait_polls_once_per_interval_in_the_end(hook: DaiHook, emulator: DaiEmulator, slept: list[float]) -> None:
    name = emulator.start_ingest(seconds=100)

    hook.wait_for_operation(name, poll_interval=5)

    assert slept[:4] == [1.0, 1.5, 2.25, 3.375]
    assert set(slept[4:]) == {5.0}
    assert emulator.connections == 1


def test_jitter_shortens_a_wait_by_a_fifth_at_most(hook: DaiHook, emulator: DaiEmulator, slept: list[float]) -> None:
    hook._random = lambda: 1.0
    name = emulator.start_ingest(seconds=60)

    hook.wait_for_operation(name, poll_interval=5)

    assert slept[0] == 0.8
    assert slept[-1] == 4.0


def test_wait_times_out(hook: DaiHook, emulator: DaiEmulator, slept: list[float]) -> None:
    name = emulator.start_ingest(seconds=100)

    with pytest.raises(WaitTimeoutError, match=f"{name} has not finished within 60 s.*RUNNING"):
        hook.wait_for_operation(name, timeout=60, poll_interval=30)

    assert sum(slept) == pytest.approx(60)
    assert looks(emulator)[-1] == 60
    assert emulator.state(name) == "RUNNING"
    assert emulator.cancel_requested(name) == 0


def test_wait_timeout_error_is_a_timeout_error() -> None:
    assert issubclass(WaitTimeoutError, TimeoutError)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(method="operations.get", status=503, times=12), id="503"),
        pytest.param(Fault(method="operations.get", status=429, times=12), id="429"),
        pytest.param(Fault(method="operations.get", status=500, times=12), id="500"),
        pytest.param(Fault(method="operations.get", status=502, times=12), id="502"),
        pytest.param(Fault(method="operations.get", drop="before", times=12), id="dropped"),
        pytest.param(Fault(method="operations.get", truncate=9, times=12), id="cut off"),
        pytest.param(Fault(method="operations.get", status=200, body=b"<html>", times=12), id="html"),
    ],
)
def test_wait_continues_after_a_transient_error(hook: DaiHook, emulator: DaiEmulator, log: Log, fault: Fault) -> None:
    """Each failure is one poll; the log is told of the first, and of their number."""
    name = emulator.start_ingest(seconds=100)
    emulator.inject(fault)

    assert hook.wait_for_operation(name).state is SUCCEEDED

    logged = log.lines("Could not poll")
    assert len(logged) == 1
    assert logged[0].startswith(f"Could not poll {name}: operations.get of {name} ")
    assert "s elapsed, next poll in" in logged[0]
    assert log.lines("attempt") == []
    assert len(log.lines(f"The service responded again for {name} after ")) == 1


@pytest.mark.parametrize(
    ("rpc_status", "error"),
    [
        ("PERMISSION_DENIED", exceptions.PermissionDenied),
        ("UNIMPLEMENTED", exceptions.MethodNotImplemented),
        ("UNAUTHENTICATED", exceptions.Unauthenticated),
        ("FAILED_PRECONDITION", exceptions.FailedPrecondition),
        ("DATA_LOSS", exceptions.DataLoss),
    ],
)
def test_wait_ends_with_a_permanent_error(
    hook: DaiHook, emulator: DaiEmulator, slept: list[float], rpc_status: str, error: type[Exception]
) -> None:
    name = emulator.start_ingest(seconds=100)
    sleep = hook._sleep

    def fail_after_the_first_look(seconds: float) -> None:
        sleep(seconds)
        emulator.inject(Fault(method="operations.get", rpc_status=rpc_status))

    hook._sleep = fail_after_the_first_look
    with pytest.raises(error):
        hook.wait_for_operation(name)

    assert len(emulator.requests) == 2
    assert slept == [1.0]


@pytest.mark.parametrize("good_polls", [0, 1, 5])
def test_wait_believes_not_found_when_it_lasts(
    hook: DaiHook, emulator: DaiEmulator, clock: Clock, good_polls: int
) -> None:
    name = emulator.start_ingest(seconds=1000)
    if good_polls:
        emulator.inject(Fault(method="operations.get", content_type="application/json", times=good_polls))
    emulator.inject(Fault(method="operations.get", rpc_status="NOT_FOUND", times=None))
    with pytest.raises(exceptions.NotFound):
        hook.wait_for_operation(name, poll_interval=3600)
    missing = [request.time for request in emulator.requests if request.status == 404]
    assert missing[-1] - missing[0] == NOT_FOUND_GRACE


@pytest.mark.parametrize("good_polls", [0, 1])
def test_wait_takes_a_short_not_found_for_a_hiccup(hook: DaiHook, emulator: DaiEmulator, good_polls: int) -> None:
    name = emulator.start_ingest(seconds=20)
    if good_polls:
        emulator.inject(Fault(method="operations.get", content_type="application/json"))
    emulator.inject(Fault(method="operations.get", rpc_status="NOT_FOUND", times=3))
    assert hook.wait_for_operation(name).state is SUCCEEDED


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 429, 501, 302])
@pytest.mark.parametrize("how", ["by a poll", "by the request before"])
def test_wait_takes_a_page_of_a_front_end_for_an_outage_once_the_api_has_responded(
    hook: DaiHook, emulator: DaiEmulator, clock: Clock, status: int, how: str
) -> None:
    name = emulator.start_ingest(seconds=1000)
    if how == "by a poll":
        emulator.inject(Fault(method="operations.get", content_type="application/json"))
    else:
        hook.cancel_operation(name)
    emulator.inject(Fault(method="operations.get", status=status, body=b"<html>no</html>", times=None))
    with pytest.raises(exceptions.ServiceUnavailable if status != 429 else exceptions.GoogleAPICallError):
        hook.wait_for_operation(name)
    failed = [request.time for request in emulator.requests if request.status == status]
    assert failed[-1] - failed[0] == MAX_OUTAGE


@pytest.mark.parametrize(("status", "error"), [(404, exceptions.MethodNotImplemented), (403, exceptions.Forbidden)])
def test_wait_takes_a_page_of_a_front_end_for_a_wrong_endpoint_before_the_api_has_responded(
    hook: DaiHook, emulator: DaiEmulator, slept: list[float], status: int, error: type[Exception]
) -> None:
    emulator.inject(Fault(method="operations.get", status=status, body=b"<html>no</html>", times=None))
    with pytest.raises(error):
        hook.wait_for_operation(NAME)
    assert slept == []


def test_wait_gives_up_after_a_long_outage(hook: DaiHook, emulator: DaiEmulator, clock: Clock) -> None:
    name = emulator.start_ingest(seconds=10_000)
    emulator.inject(Fault(method="operations.get", status=503, times=None))
    started = clock()

    with pytest.raises(exceptions.ServiceUnavailable):
        hook.wait_for_operation(name, poll_interval=30)
    assert clock() - started == MAX_OUTAGE


def test_an_outage_counts_from_its_own_beginning(hook: DaiHook, emulator: DaiEmulator, clock: Clock) -> None:
    """Four outages of a hundred seconds, each followed by a good look, are not one of four hundred."""
    name = emulator.start_ingest(seconds=2000)
    sleep = hook._sleep
    start = clock()

    def sometimes_away(seconds: float) -> None:
        sleep(seconds)
        if (clock() - start) % 400 > 200:
            emulator.inject(Fault(method="operations.get", status=503))

    hook._sleep = sometimes_away
    assert hook.wait_for_operation(name).state is SUCCEEDED


def test_a_timeout_message_names_the_error_of_the_last_poll(once: DaiHook, emulator: DaiEmulator) -> None:
    emulator.inject(Fault(method="operations.get", status=503, times=None))

    with pytest.raises(WaitTimeoutError, match=f"{NAME} has not finished within 10 s; the last poll failed: .*503"):
        once.wait_for_operation(NAME, timeout=10)


def test_wait_obeys_retry_after(once: DaiHook, emulator: DaiEmulator, slept: list[float]) -> None:
    name = emulator.start_ingest(seconds=100)
    emulator.inject(Fault(method="operations.get", status=503, headers={"Retry-After": "17"}))

    once.wait_for_operation(name)

    assert slept[0] == 17


def test_retry_after_does_not_outlast_the_wait(once: DaiHook, emulator: DaiEmulator, slept: list[float]) -> None:
    name = emulator.start_ingest(seconds=10_000)
    emulator.inject(Fault(method="operations.get", status=503, headers={"Retry-After": "3600"}, times=None))

    with pytest.raises(WaitTimeoutError, match=f"{name} has not finished within 60 s"):
        once.wait_for_operation(name, timeout=60)
    assert sum(slept) == pytest.approx(60)


def test_retries_do_not_outlast_the_wait(hook: DaiHook, emulator: DaiEmulator, clock: Clock) -> None:
    name = emulator.start_ingest(seconds=10_000)
    emulator.inject(Fault(method="operations.get", status=503, times=None))
    started = clock()

    with pytest.raises(WaitTimeoutError, match=f"{name} has not finished within 5 s"):
        hook.wait_for_operation(name, timeout=5)
    assert clock() - started <= 5


@pytest.mark.parametrize("arguments", [{"timeout": -1}, {"poll_interval": 0}, {"poll_interval": None}], ids=str)
def test_wait_refuses_an_invalid_duration(hook: DaiHook, emulator: DaiEmulator, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Invalid {next(iter(arguments))} "):
        hook.wait_for_operation(NAME, **arguments)
    assert emulator.requests == []
