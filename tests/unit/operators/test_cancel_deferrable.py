"""The deferrable cancel: it requests, polls once, defers, and has the same result as in the worker."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
    TaskDeferred,
)

from airflow_dai_provider.api.polling import MAX_OUTAGE
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.operators.dai import XCOM_OPERATION, DaiCancelOperationOperator
from airflow_dai_provider.tasks import deferral
from airflow_dai_provider.tasks.failures import OperationNotFoundError, UnexpectedStateError
from tests.support.clock import Clock
from tests.support.emulators import MakeEmulator, methods
from tests.support.event_loop import fire
from tests.support.ingests import both
from tests.support.log import Log
from tests.support.task_instance import Ti

pytestmark = pytest.mark.usefixtures("few_authorities", "fake_time")

NAME = "operations/my-ingest"
TIMEOUT = 100.0


@pytest.fixture
def context(ti: Ti) -> dict[str, Any]:
    ti.task_id = "cancel"
    return {"ti": ti}


@pytest.fixture
def slow(make_emulator: MakeEmulator) -> DaiEmulator:
    """Give an emulator that takes 20 s to cancel."""
    emulator: DaiEmulator = make_emulator(cancel_seconds=20.0)
    return emulator


def make(**options: Any) -> DaiCancelOperationOperator:
    defaults = {"operation_name": NAME, "wait_for_completion": True, "timeout": TIMEOUT}
    return DaiCancelOperationOperator(task_id="cancel", **{**defaults, **options})


def execute(context: Any, *, deferrable: bool, **options: Any) -> Any:
    """Execute a task from its start to its end."""
    try:
        return make(deferrable=deferrable, **options).execute(context)
    except TaskDeferred as deferred:
        event = {**(deferred.kwargs or {}), "event": fire(deferred)}
        return make(deferrable=deferrable, **options).resume_execution(deferred.method_name, event, context)


# From start to finish, in the worker and in the triggerer


@both
@pytest.mark.parametrize("rpc_status", ["FAILED_PRECONDITION", "NOT_FOUND"])
def test_a_wait_goes_on_until_get_shows_what_a_refusal_has_said(
    slow: DaiEmulator, context: Any, rpc_status: str, deferrable: bool
) -> None:
    slow.start_ingest(NAME, seconds=60)
    slow.inject(Fault("operations.cancel", rpc_status=rpc_status, times=None))
    assert execute(context, deferrable=deferrable) == NAME
    operation = context["ti"].pushed["cancel", -1, "operation"]
    assert (operation["state"], operation["already_finished"]) == ("SUCCEEDED", None)


@both
@pytest.mark.parametrize(
    ("ingest", "expected_states", "state"),
    [
        ({}, None, "CANCELLED"),
        ({}, "CANCELLED", "CANCELLED"),
        ({"cancel": "ignored", "seconds": 30}, None, "SUCCEEDED"),
        ({"cancel": "ignored", "seconds": 30, "outcome": "INVALID_MEDIA"}, None, "FAILED"),
        ({"seconds": 0}, None, "SUCCEEDED"),
    ],
)
def test_it_waits_until_the_operation_has_finished(
    slow: DaiEmulator, context: Any, ti: Ti, deferrable: bool, ingest: Any, expected_states: Any, state: str
) -> None:
    slow.start_ingest(NAME, **ingest)
    assert execute(context, deferrable=deferrable, expected_states=expected_states) == NAME
    pushed = ti.pushed["cancel", -1, XCOM_OPERATION]
    assert (pushed["name"], pushed["state"]) == (NAME, state)
    assert json.loads(json.dumps(pushed)) == pushed
    assert slow.cancel_requested(NAME) == 1


@both
def test_an_unexpected_final_state_fails_the_task(slow: DaiEmulator, context: Any, ti: Ti, deferrable: bool) -> None:
    slow.start_ingest(NAME, seconds=30, cancel="ignored")
    with pytest.raises(UnexpectedStateError, match=f"{NAME} is SUCCEEDED.*accepts only CANCELLED"):
        execute(context, deferrable=deferrable, expected_states=["CANCELLED"])
    assert ti.pushed["cancel", -1, XCOM_OPERATION]["state"] == "SUCCEEDED"


@both
def test_a_timeout_fails_the_task_and_says_what_may_still_run(
    slow: DaiEmulator, context: Any, clock: Clock, deferrable: bool
) -> None:
    slow.start_ingest(NAME, cancel="ignored")
    began = clock.now
    with pytest.raises(AirflowException, match=f"has not finished within 100 s.*{NAME} may still run") as caught:
        execute(context, deferrable=deferrable)
    assert not isinstance(caught.value, AirflowFailException | AirflowSkipException)
    assert clock.now - began == pytest.approx(TIMEOUT)
    assert slow.cancel_requested(NAME) == 1


#: After the cancel and the first poll.
LATER = ({"method": "operations.cancel", "content_type": "application/json"},
         {"method": "operations.get", "content_type": "application/json"})  # fmt: skip


@both
@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ({"rpc_status": "UNIMPLEMENTED"}, AirflowFailException, "a retry cannot help"),
        ({"status": 403}, AirflowFailException, "allow-listed"),
        ({"status": 404}, OperationNotFoundError, "does not know it"),
        ({"status": 503}, AirflowException, "may still run"),
    ],
)
def test_an_error_fails_the_task_in_the_same_way(
    slow: DaiEmulator, context: Any, clock: Clock, deferrable: bool, later: bool, fault: Any, kind: Any, words: str
) -> None:
    slow.start_ingest(NAME)
    for good in LATER if later else ():
        slow.inject(Fault(**good))
    slow.inject(Fault(**fault, times=None))
    with pytest.raises(AirflowException, match=words) as caught:
        execute(context, deferrable=deferrable, timeout=9000)
    assert type(caught.value) is kind


@both
@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
def test_a_missing_operation_is_accepted_with_missing_ok(
    slow: DaiEmulator, context: Any, deferrable: bool, later: bool
) -> None:
    slow.start_ingest(NAME)
    for good in LATER if later else ():
        slow.inject(Fault(**good))
    slow.inject(Fault(status=404, times=None))
    assert execute(context, deferrable=deferrable, missing_ok=True) == NAME


# Deferring


def test_it_requests_polls_once_and_defers(slow: DaiEmulator, context: Any, clock: Clock, log: Log) -> None:
    slow.start_ingest(NAME)
    with pytest.raises(TaskDeferred) as deferred:
        make(deferrable=True).execute(context)
    assert methods(slow) == ["operations.cancel", "operations.get"]
    assert deferred.value.method_name == "execute_complete"
    assert deferred.value.timeout == timedelta(seconds=TIMEOUT + deferral.BACKSTOP)
    path, arguments = deferred.value.trigger.serialize()
    assert path == "airflow_dai_provider.triggers.dai.DaiOperationTrigger"
    assert arguments == {
        "operation_name": NAME,
        "poll_interval": 30.0,
        "started": clock.now,
        "timeout": TIMEOUT,
        "max_outage": MAX_OUTAGE,
        "cancel_on_kill": False,
        "expected_states": None,
        "gcp_conn_id": "google_cloud_default",
        "impersonation_chain": None,
        "api_endpoint": None,
    }
    assert [line for line in log.ours if f"Waiting for {NAME} in the triggerer" in line]


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"poll_interval": 7.5}, {"poll_interval": 7.5}),
        ({"timeout": 5000.0}, {"timeout": 5000.0}),
        ({"execution_timeout": timedelta(seconds=30)}, {"timeout": 30.0}),
        ({"execution_timeout": timedelta(seconds=3000)}, {"timeout": TIMEOUT}),
        ({"gcp_conn_id": "another"}, {"gcp_conn_id": "another"}),
        ({"impersonation_chain": ["a@p", "b@p"]}, {"impersonation_chain": ["a@p", "b@p"]}),
    ],
    ids=str,
)
def test_each_parameter_reaches_the_trigger(slow: DaiEmulator, context: Any, options: Any, arguments: Any) -> None:
    slow.start_ingest(NAME)
    with pytest.raises(TaskDeferred) as deferred:
        make(deferrable=True, **options).execute(context)
    _, given = deferred.value.trigger.serialize()
    assert given == {**given, **arguments}


def test_the_endpoint_reaches_the_trigger(slow: DaiEmulator, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True}}
    monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", json.dumps(connection))
    monkeypatch.delenv("DAI_EMULATOR_HOST")
    slow.start_ingest(NAME)
    with pytest.raises(TaskDeferred) as deferred:
        make(deferrable=True, api_endpoint=slow.endpoint).execute(context)
    assert deferred.value.trigger.api_endpoint == slow.endpoint


def test_a_task_that_does_not_wait_is_not_deferred(slow: DaiEmulator, context: Any) -> None:
    slow.start_ingest(NAME)
    assert make(deferrable=True, wait_for_completion=False).execute(context) == NAME


def test_a_finished_operation_is_not_deferred_for(emulator: DaiEmulator, context: Any) -> None:
    emulator.start_ingest(NAME)
    assert make(deferrable=True).execute(context) == NAME
    assert methods(emulator) == ["operations.cancel", "operations.get"]


@pytest.mark.parametrize("options", [{"timeout": -1}, {"poll_interval": 0}, {"expected_states": "RUNNING"}], ids=str)
def test_invalid_parameters_fail_without_a_request(slow: DaiEmulator, context: Any, options: Any) -> None:
    slow.start_ingest(NAME)
    with pytest.raises(AirflowFailException, match="Invalid"):
        make(deferrable=True, **options).execute(context)
    assert slow.requests == []


# Resuming


@pytest.mark.parametrize(
    "event",
    [
        None,
        {},
        [],
        {"status": "paused"},
        {"status": "success"},
        {"status": "finished", "operation": NAME},
        {"status": "finished"},
    ],
    ids=str,
)
def test_an_unreadable_event_fails_the_task(context: Any, event: Any) -> None:
    with pytest.raises(AirflowException, match=f"Expected the event of DaiOperationTrigger.* {NAME} may still run"):
        make().resume_execution("execute_complete", {"event": event}, context)


def test_a_missing_event_fails_the_task(context: Any) -> None:
    with pytest.raises(AirflowException, match="got None"):
        make().resume_execution("execute_complete", None, context)


@pytest.mark.parametrize("state", [{"state": "RUNNING"}, {"state": "GONE"}, {}], ids=str)
def test_an_event_of_an_unfinished_operation_fails_the_task(context: Any, state: dict[str, str]) -> None:
    event = {"status": "finished", "operation": {"name": NAME, **state}}
    with pytest.raises(AirflowException, match="The trigger has fired an event that cannot be read"):
        make().resume_execution("execute_complete", {"event": event}, context)


def test_an_execution_timeout_is_a_timeout_of_the_task(slow: DaiEmulator, context: Any, clock: Clock) -> None:
    slow.start_ingest(NAME, cancel="ignored")
    began = clock.now
    with pytest.raises(AirflowTaskTimeout, match="has not finished within 30 s.* execution_timeout of the task"):
        execute(context, deferrable=True, execution_timeout=timedelta(seconds=30))
    assert clock.now - began == pytest.approx(30)


@pytest.mark.parametrize("error", ["Trigger timeout", "Trigger/execution timeout"])
def test_a_deferral_that_airflow_times_out_at_the_execution_timeout_is_a_timeout_of_the_task(
    context: Any, error: str
) -> None:
    with pytest.raises(AirflowTaskTimeout, match=f"{NAME} may still run"):
        make(execution_timeout=timedelta(seconds=30)).resume_execution("__fail__", {"error": error}, context)


def test_a_failed_trigger_leaves_the_task_its_retries(context: Any) -> None:
    with pytest.raises(AirflowException, match="Trigger failure") as caught:
        make().resume_execution("__fail__", {"error": "Trigger failure", "traceback": ["a"]}, context)
    assert not isinstance(caught.value, AirflowFailException | AirflowSkipException)


@pytest.mark.parametrize("error", ["Trigger timeout", "Trigger/execution timeout"])
def test_a_deferral_that_airflow_times_out_says_what_may_still_run(context: Any, error: str) -> None:
    with pytest.raises(AirflowException, match=f"{NAME} may still run") as caught:
        make().resume_execution("__fail__", {"error": error}, context)
    assert not isinstance(caught.value, AirflowFailException | AirflowSkipException)
