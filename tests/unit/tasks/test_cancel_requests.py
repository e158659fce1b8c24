"""Requesting the cancellation of one operation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.api_core import exceptions as api

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.tasks.cancel_requests import request_cancellation
from tests.support.clock import Clock
from tests.support.emulators import MakeEmulator, methods
from tests.support.log import Log

LOGGER = logging.getLogger("airflow_dai_provider.test_cancellation")
LOGGER.setLevel(logging.INFO)
GET, CANCEL = "operations.get", "operations.cancel"


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


@pytest.mark.parametrize("rpc_status", ["FAILED_PRECONDITION", "NOT_FOUND"])
def test_refused_although_it_runs(emulator: DaiEmulator, hook: Any, log: Log, rpc_status: str) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(method=CANCEL, rpc_status=rpc_status))
    with pytest.raises(ServiceError, match=f"{CANCEL} of {name} returned .* {rpc_status}") as caught:
        request_cancellation(hook(), name, LOGGER)
    # Never NOT_FOUND, which callers may take for an operation that does not run.
    assert caught.value.rpc_code is Code.FAILED_PRECONDITION
    assert methods(emulator) == [CANCEL, GET]
    assert log.ours == []


def test_unknown(emulator: DaiEmulator, hook: Any, log: Log) -> None:
    with pytest.raises(api.NotFound, match="operations/never"):
        request_cancellation(hook(), "operations/never", LOGGER)
    assert log.ours == []


@pytest.mark.parametrize(
    ("rpc_status", "error"),
    [
        ("UNIMPLEMENTED", api.MethodNotImplemented),
        ("PERMISSION_DENIED", api.PermissionDenied),
        ("INVALID_ARGUMENT", api.InvalidArgument),
    ],
)
def test_after_another_refusal_nothing_is_polled(
    emulator: DaiEmulator, hook: Any, log: Log, rpc_status: str, error: type[Exception]
) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(method=CANCEL, rpc_status=rpc_status))
    with pytest.raises(error):
        request_cancellation(hook(), name, LOGGER)
    assert methods(emulator) == [CANCEL]
    assert log.ours == []


def test_refused_and_then_away(make_emulator: MakeEmulator, hook: Any) -> None:
    emulator = make_emulator(finished_cancel="failed_precondition")
    name = emulator.start_ingest(seconds=0)
    emulator.inject(Fault(method=GET, status=503, times=None))
    with pytest.raises(api.ServiceUnavailable, match=GET):
        request_cancellation(hook(), name, LOGGER)
