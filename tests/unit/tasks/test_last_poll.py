"""A deferral that Airflow ends, since no triggerer has run its trigger: the task polls once more before it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
)

from airflow_dai_provider.api.polling import NOT_FOUND_GRACE
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.operators.dai import DaiCancelOperationOperator, DaiCreateCreativeOperator
from airflow_dai_provider.sensors.dai import DaiOperationSensor
from tests.support.airflow_versions import DEFERRAL_TIMED_OUT
from tests.support.clock import Clock
from tests.support.emulators import methods
from tests.support.payloads import creative
from tests.support.task_instance import Ti

NAME = "operations/my-ingest"


@pytest.fixture(autouse=True)
def _time(fake_time: Clock) -> None:
    """Let tasks and hooks live on the test's clock."""


def cancel(**options: Any) -> DaiCancelOperationOperator:
    return DaiCancelOperationOperator(task_id="start_ingest", operation_name=NAME, wait_for_completion=True, **options)


def sensor(**options: Any) -> DaiOperationSensor:
    return DaiOperationSensor(task_id="start_ingest", operation_name=NAME, **options)


def create(**options: Any) -> DaiCreateCreativeOperator:
    return DaiCreateCreativeOperator(task_id="start_ingest", creative=creative(), **options)


Make = Callable[..., Any]
all_three = pytest.mark.parametrize("make", [cancel, sensor, create])


@pytest.fixture
def resume(ti: Ti) -> Callable[[Any], Any]:
    """Give a function that resumes a task as Airflow does after the deferral has timed out."""
    ti.xcom_push("operation_name", NAME)
    ti.xcom_push("operation_started", {"try_number": ti.try_number})

    def run(task: Any) -> Any:
        return task.resume_execution("__fail__", {"error": DEFERRAL_TIMED_OUT}, {"ti": ti})

    return run


@all_three
def test_a_finished_operation_ends_the_wait(emulator: DaiEmulator, resume: Any, make: Make) -> None:
    emulator.start_ingest(NAME, seconds=0)
    resumed = resume(make())
    assert (resumed["state"] if make is sensor else resumed) == ("SUCCEEDED" if make is sensor else NAME)
    assert [request.method for request in emulator.requests] == ["operations.get"]


@all_three
def test_a_failed_ingest_means_what_it_means_in_a_wait(emulator: DaiEmulator, resume: Any, make: Make) -> None:
    emulator.start_ingest(NAME, seconds=0, outcome="INVALID_MEDIA")
    if make is cancel:
        assert resume(make()) == NAME  # nothing runs, which is what it is for
    else:
        with pytest.raises(AirflowFailException, match="failed: INVALID_MEDIA"):
            resume(make())


@all_three
def test_a_running_operation_is_a_timeout_and_the_missing_triggerer_is_named(
    emulator: DaiEmulator, resume: Any, make: Make
) -> None:
    emulator.start_ingest(NAME)
    words = f"No triggerer ran the trigger to completion.* The last poll found: {NAME} is RUNNING"
    with pytest.raises(AirflowException, match=words) as raised:
        resume(make())
    assert not isinstance(raised.value, AirflowFailException)
    assert isinstance(raised.value, AirflowSensorTimeout) == (make is sensor)
    assert (f"{NAME} may still run." in str(raised.value)) == (make is not create)
    assert emulator.cancel_requested(NAME) == (1 if make is create else 0)


@all_three
@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 404}, {"status": 403, "html": True}], ids=str)
def test_a_short_fault_is_borne(emulator: DaiEmulator, resume: Any, make: Make, fault: Any) -> None:
    emulator.start_ingest(NAME, seconds=0)
    emulator.inject(Fault(times=3, **fault))
    resume(make())
    assert methods(emulator) == ["operations.get"] * 4


@all_three
def test_a_service_that_is_away_is_a_timeout(emulator: DaiEmulator, resume: Any, clock: Clock, make: Make) -> None:
    emulator.start_ingest(NAME)
    emulator.inject(Fault(method="operations.get", status=503, times=None))
    began = clock.now
    with pytest.raises(AirflowException, match="No triggerer .* The last poll failed: .*503") as raised:
        resume(make())
    assert not isinstance(raised.value, AirflowFailException)
    assert clock.now - began == 2 * NOT_FOUND_GRACE


@all_three
@pytest.mark.usefixtures("emulator")
def test_an_unknown_operation_is_one_as_in_a_wait(resume: Any, make: Make) -> None:
    with pytest.raises(AirflowFailException, match="does not know it"):
        resume(make())


@pytest.mark.parametrize(("make", "result"), [(cancel, NAME), (sensor, None)])
@pytest.mark.usefixtures("emulator")
def test_an_unknown_operation_is_accepted_with_missing_ok(resume: Any, make: Make, result: str | None) -> None:
    assert resume(make(missing_ok=True)) == result


def test_soft_fail_skips_a_timeout(emulator: DaiEmulator, resume: Any) -> None:
    emulator.start_ingest(NAME)
    with pytest.raises(AirflowSkipException, match=f"No triggerer .*{NAME} may still run"):
        resume(sensor(soft_fail=True))


@all_three
def test_a_trigger_that_has_failed_is_not_polled_for(emulator: DaiEmulator, ti: Ti, make: Make) -> None:
    with pytest.raises(AirflowException, match="Trigger failure"):
        make().resume_execution("__fail__", {"error": "Trigger failure"}, {"ti": ti})
    assert "operations.get" not in {request.method for request in emulator.requests}


def test_an_ingest_that_no_xcom_names_is_a_timeout(emulator: DaiEmulator, ti: Ti, resume: Any) -> None:
    ti.pushed.clear()
    with pytest.raises(AirflowException, match="No triggerer"):
        resume(create())
    assert emulator.requests == []
