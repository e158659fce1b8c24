"""A service that is away is borne equally long by every class that waits, in each mode, and told in few lines."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    BaseSensorOperator,
    TaskDeferred,
)

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.operators.dai import (
    DaiCancelOperationOperator,
    DaiCancelStrayOperationsOperator,
    DaiCreateCreativeOperator,
)
from airflow_dai_provider.sensors.dai import DaiOperationSensor
from tests.support.airflow_versions import AirflowRescheduleException
from tests.support.clock import Clock
from tests.support.emulators import MakeEmulator
from tests.support.event_loop import fire
from tests.support.log import Log
from tests.support.payloads import creative
from tests.support.task_instance import Store, Ti

NAME = "operations/my-ingest"
#: Seconds that an ingest runs, or goes on after its cancellation: longer than any outage here.
RUNS = 1000
GOOD = {"content_type": "application/json"}
GET = "operations.get"

pytestmark = pytest.mark.usefixtures("_time")


@pytest.fixture
def _time(monkeypatch: pytest.MonkeyPatch, few_authorities: None, fake_time: Clock, records: Store) -> None:
    """Let tasks, hooks, triggers and Airflow's sensor base live on the test's clock."""
    base = sys.modules[BaseSensorOperator.__module__]
    monkeypatch.setattr(base, "time", SimpleNamespace(sleep=fake_time.sleep, monotonic=fake_time))
    monkeypatch.setattr(base, "timezone", SimpleNamespace(utcnow=lambda: datetime.fromtimestamp(fake_time.now, UTC)))
    monkeypatch.setattr(DaiCancelStrayOperationsOperator, "_clock", staticmethod(fake_time))


@pytest.fixture
def context(ti: Ti, clock: Clock, monkeypatch: pytest.MonkeyPatch, airflow_2: bool) -> dict[str, Any]:
    """Give a context whose task began now; from its second poke on, a sensor in reschedule mode is told so."""
    began = datetime.fromtimestamp(clock.now, UTC)

    def first_poke(*_: Any, **__: Any) -> datetime | None:
        return began if clock.now > began.timestamp() else None

    if airflow_2:
        monkeypatch.setattr(sys.modules[BaseSensorOperator.__module__], "_orig_start_date", first_poke)
    monkeypatch.setattr(Ti, "get_first_reschedule_date", first_poke)
    return {"ti": ti, "task_state_store": Store()}


def to_the_end(make: Callable[[], Any], context: Any, clock: Clock) -> Any:
    """Run a task to its end: over its reschedules, and through the triggerer."""
    while True:
        try:
            return make().execute(context)
        except AirflowRescheduleException as later:
            clock.now = later.reschedule_date.timestamp()
        except TaskDeferred as deferred:
            event = {**(deferred.kwargs or {}), "event": fire(deferred)}
            return make().resume_execution(deferred.method_name, event, context)


def sensor(**options: Any) -> Callable[[], Any]:
    return lambda: DaiOperationSensor(**{"task_id": "wait", "operation_name": NAME, "poke_interval": 30, **options})


def cancel(**options: Any) -> Callable[[], Any]:
    return lambda: DaiCancelOperationOperator(
        **{"task_id": "cancel", "operation_name": NAME, "wait_for_completion": True, **options}
    )


def create(**options: Any) -> Callable[[], Any]:
    return lambda: DaiCreateCreativeOperator(**{"task_id": "ingest", "creative": creative(), **options})


def sweep() -> Any:
    return DaiCancelStrayOperationsOperator(task_id="sweep", older_than=60, wait_for_completion=True)


WAITS: dict[str, Callable[[], Any]] = {
    "sensor, poke": sensor(),
    "sensor, reschedule": sensor(mode="reschedule"),
    "sensor, deferrable": sensor(deferrable=True),
    "cancel, in the worker": cancel(),
    "cancel, deferrable": cancel(deferrable=True),
    "create, in the worker": create(),
    "create, deferrable": create(deferrable=True),
    "sweep": sweep,
    "sensor with a list, poke": sensor(operation_name=[NAME]),
    "sensor with a list, reschedule": sensor(operation_name=[NAME], mode="reschedule"),
    "sensor with a list, deferrable": sensor(operation_name=[NAME], deferrable=True),
    "cancel with a list, in the worker": cancel(operation_name=[NAME]),
    "cancel with a list, deferrable": cancel(operation_name=[NAME], deferrable=True),
    "create with a list, in the worker": create(creative=[creative()]),
    "create with a list, deferrable": create(creative=[creative()], deferrable=True),
}
#: What is away, as faults.
AWAY: dict[str, dict[str, Any]] = {
    "connection refused": {"drop": "before", "reset": True},
    "503": {"status": 503},
    "a front end's 502": {"status": 502},
    "a front end's 403": {"status": 403, "html": True},
    "a front end's 200": {"status": 200, "html": True},
}
all_waits = pytest.mark.parametrize("make", WAITS.values(), ids=WAITS)


@pytest.fixture
def service(make_emulator: MakeEmulator, clock: Clock) -> DaiEmulator:
    """Give the service, with an ingest of two minutes ago."""
    service = make_emulator(ingest_seconds=RUNS, cancel_seconds=RUNS)
    service.start_ingest(NAME)
    clock.advance(120)
    return service


def go_away(service: DaiEmulator, good_polls: int, **fault: Any) -> None:
    """Let polls fail after some that are good."""
    if good_polls:
        service.inject(Fault(GET, times=good_polls, **GOOD))  # type: ignore[arg-type]
    service.inject(Fault(GET, **fault))


@all_waits
@pytest.mark.parametrize("what", AWAY)
def test_an_outage_of_290_s_is_borne(
    service: DaiEmulator, context: Any, clock: Clock, log: Log, make: Callable[[], Any], what: str
) -> None:
    go_away(service, 1, lasts=290, **AWAY[what])
    to_the_end(make, context, clock)
    assert set(service.states().values()) == {"SUCCEEDED"}, "The wait has lasted until the ingest finished."
    assert service.faults_waiting == []
    assert log.errors == []
    # A sensor with a list does not say when the service responds again.
    assert (1 if of(make, "sensor with a list") else 2) <= len(lines_of_the_outage(log)) <= 10


@all_waits
@pytest.mark.parametrize("what", AWAY)
def test_an_outage_of_310_s_is_not_borne(
    service: DaiEmulator, context: Any, clock: Clock, log: Log, make: Callable[[], Any], what: str
) -> None:
    go_away(service, 1, lasts=310, **AWAY[what])
    with pytest.raises(AirflowException) as raised:
        to_the_end(make, context, clock)
    assert not isinstance(raised.value, AirflowFailException), "a retry can help"
    if not of(make, "create"):  # these cancel it, or leave it
        assert f"{NAME} may still run" in str(raised.value) or "stray operations may still run" in str(raised.value)
    failed = [request.time for request in service.requests if request.fault not in (None, Fault(GET, **GOOD).kind)]  # type: ignore[arg-type]
    assert failed[-1] - failed[0] == pytest.approx(300)
    assert 1 <= len(lines_of_the_outage(log)) <= 10


def of(make: Callable[[], Any], beginning: str) -> bool:
    return any(make is one for name, one in WAITS.items() if name.startswith(beginning))


def lines_of_the_outage(log: Log) -> list[str]:
    """Return the lines on what has failed, and on what is good again."""
    words = ("returned 50", "returned 403", "returned HTTP 200", "got no response", "responded again")
    return [line for line in log.ours if any(word in line for word in words)]


@all_waits
@pytest.mark.parametrize("good_polls", [0, 1])
def test_not_found_for_nine_seconds_is_borne(
    service: DaiEmulator, context: Any, clock: Clock, log: Log, make: Callable[[], Any], good_polls: int
) -> None:
    go_away(service, good_polls, lasts=9, rpc_status="NOT_FOUND")
    to_the_end(make, context, clock)
    assert service.faults_waiting == []
    assert log.errors == []


@all_waits
@pytest.mark.parametrize("good_polls", [0, 1])
def test_not_found_for_eleven_seconds_is_believed(
    service: DaiEmulator, context: Any, clock: Clock, make: Callable[[], Any], good_polls: int
) -> None:
    go_away(service, good_polls, lasts=11, rpc_status="NOT_FOUND")
    with pytest.raises(AirflowException, match="NOT_FOUND"):
        to_the_end(make, context, clock)
    missing = [request.time for request in service.requests if request.status == 404]
    assert missing[-1] - missing[0] >= 10 - 1e-6
