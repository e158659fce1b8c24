"""A wait goes to the triggerer and comes back: its deadline, its event, its timeout, the default of ``deferrable``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowTaskTimeout,
    TaskDeferred,
)

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.names import InvalidNameError
from airflow_dai_provider.api.operation import Operation, OperationState
from airflow_dai_provider.api.polling import WaitTimeoutError
from airflow_dai_provider.api.retry import PERMANENT
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.operators.dai import DaiCancelOperationOperator
from airflow_dai_provider.sensors.dai import DaiOperationSensor
from airflow_dai_provider.tasks.deferral import (
    BACKSTOP,
    FAILED_DEFERRAL,
    TRIGGER_TIMEOUTS,
    check_deferrable,
    defer_wait,
    resumption,
)
from airflow_dai_provider.tasks.events import error_event, operation_event, read_event
from airflow_dai_provider.tasks.failures import OperationNotFoundError
from airflow_dai_provider.triggers.dai import DaiOperationTrigger
from tests.support.connections import define_connection


def make_task(**arguments: Any) -> DaiCancelOperationOperator:
    return DaiCancelOperationOperator(task_id="wait", operation_name="operations/a", api_endpoint="a.test", **arguments)


def test_the_trigger_keeps_the_endpoint_at_which_the_task_has_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """At that of a connection that is changed meanwhile, another operation can have the name."""
    define_connection(monkeypatch, is_anonymous=True, dai_api_endpoint="https://first.test")
    hook = DaiHook()
    assert hook.endpoint.url == "https://first.test"
    with pytest.raises(TaskDeferred) as deferred:
        defer_wait(
            DaiCancelOperationOperator(task_id="x", operation_name="operations/a"), hook, DaiOperationTrigger, "x"
        )
    define_connection(monkeypatch, is_anonymous=True, dai_api_endpoint="https://second.test")
    _, arguments = deferred.value.trigger.serialize()
    later = DaiHook(arguments["gcp_conn_id"], arguments["impersonation_chain"], arguments["api_endpoint"])
    assert later.endpoint.url == "https://first.test"


@pytest.mark.parametrize(
    ("execution_timeout", "timeout", "limit"),
    [
        (None, 100.0, 100.0),
        (timedelta(seconds=40), 100.0, 40.0),
        (timedelta(hours=2), 100.0, 100.0),
        (timedelta(seconds=100), 100.0, 100.0),
        (timedelta(0), 100.0, 100.0),
    ],
    ids=str,
)
def test_the_sooner_deadline_counts(execution_timeout: timedelta | None, timeout: float, limit: float) -> None:
    before = time.time()
    task = make_task(execution_timeout=execution_timeout, timeout=timeout)
    with pytest.raises(TaskDeferred) as deferred:
        defer_wait(task, DaiHook(api_endpoint="a.test"), DaiOperationTrigger, "operations/a", poll_interval=7.0)

    trigger = deferred.value.trigger
    assert isinstance(trigger, DaiOperationTrigger)
    assert (trigger.operation_name, trigger.poll_interval, trigger.timeout) == ("operations/a", 7.0, limit)
    assert (trigger.gcp_conn_id, trigger.api_endpoint) == ("google_cloud_default", "a.test")
    assert before <= trigger.started <= time.time()
    assert deferred.value.method_name == "execute_complete"
    assert deferred.value.timeout == timedelta(seconds=limit + BACKSTOP)


def test_airflow_times_out_later_than_the_trigger() -> None:
    assert BACKSTOP > 30, "The trigger's event should win, although a triggerer can be slow."


# Its event

NAME = "operations/a/b"
FINISHED = {
    "succeeded": {"name": NAME, "done": True, "response": {"name": "creatives/gv-1"}},
    "nothing": {"name": NAME, "done": True},
    "failed": {"name": NAME, "done": True, "error": {"code": 3, "message": "no such video", "details": []}},
    "cancelled": {"name": NAME, "done": True, "error": {"code": 1, "message": "cancelled"}},
    "metadata": {
        "name": NAME,
        "done": True,
        "metadata": {
            "@type": "type.googleapis.com/x",
            "creativeUrl": "https://media.example/é.mp4",
            "failureReason": "DOWNLOAD_ERROR",
        },
        "error": {"code": 9},
    },
}


def sent(event: dict[str, Any]) -> Any:
    """Return an event as it is after its way through the metadata database."""
    return json.loads(json.dumps(event, allow_nan=False))


@pytest.mark.parametrize("answer", FINISHED.values(), ids=FINISHED)
def test_a_finished_operation_is_read_as_it_was_sent(answer: dict[str, Any]) -> None:
    operation = Operation.from_api(answer)
    event = sent(operation_event(operation.name, operation))
    assert set(event) == {"operation_name", "status", "operation"}
    assert event["status"] == "finished"
    assert read_event(event, NAME) == operation
    assert read_event(event, NAME).state in set(OperationState) - {OperationState.RUNNING}


@pytest.mark.parametrize("error", [None, WaitTimeoutError("x"), ServiceError("x", Code.NOT_FOUND)])
def test_the_event_of_another_operation_is_refused(error: Exception | None) -> None:
    other = Operation.from_api({"name": "operations/other", "done": True, "response": {}})
    event = sent(error_event(other.name, error) if error else operation_event(other.name, other))
    words = f"has passed the event of operations/other to this task, which waits for {NAME}. It may still run."
    with pytest.raises(AirflowException, match=words) as caught:
        read_event(event, NAME, "It may still run.")
    assert not isinstance(caught.value, AirflowFailException)


def test_a_timeout_is_raised_as_a_timeout() -> None:
    event = sent(error_event(NAME, WaitTimeoutError("a has not finished within 5 s")))
    assert event == {"operation_name": NAME, "status": "timeout", "message": "a has not finished within 5 s"}
    with pytest.raises(WaitTimeoutError, match="^a has not finished within 5 s$"):
        read_event(event, NAME)
    with pytest.raises(WaitTimeoutError, match=r"^a has not finished within 5 s\. a may still run\.$"):
        read_event(event, NAME, "a may still run")


@pytest.mark.parametrize("code", Code)
def test_each_code_fails_the_task_as_in_the_worker(code: Code) -> None:
    event = sent(error_event(NAME, ServiceError(f"operations.get of {NAME} returned", code)))
    assert event == {
        "operation_name": NAME,
        "status": "error",
        "code": code.value,
        "message": f"operations.get of {NAME} returned",
    }
    with pytest.raises(AirflowException, match=f"operations.get of {NAME} returned") as caught:
        read_event(event, NAME, f"{NAME} may still run.")
    assert isinstance(caught.value, AirflowFailException) == (code in PERMANENT)
    assert isinstance(caught.value, OperationNotFoundError) == (code is Code.NOT_FOUND)
    assert (f"{NAME} may still run." in str(caught.value)) == (code is not Code.NOT_FOUND)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InvalidNameError("Invalid operation name"), "INVALID_ARGUMENT", "Invalid operation name"),
        (ValueError("Refusing to send credentials"), "INVALID_ARGUMENT", "Refusing to send credentials"),
        (AirflowException("The conn_id `a` isn't defined"), None, "The conn_id `a` isn't defined"),
        (KeyError("a"), None, "KeyError('a')"),
        (OSError("odd"), None, "OSError('odd')"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_error_without_a_code_of_the_service_fails_the_task(error: Exception, code: str | None, words: str) -> None:
    event = sent(error_event(NAME, error))
    assert (event["status"], event["code"]) == ("error", code)
    assert words in event["message"]
    with pytest.raises(AirflowException) as caught:
        read_event(event, NAME)
    assert isinstance(caught.value, AirflowFailException) == (code in PERMANENT)


@pytest.mark.parametrize("code", [None, "", "NEWLY_INVENTED", "unavailable"])
def test_an_unknown_code_leaves_the_task_its_retries(code: str | None) -> None:
    with pytest.raises(AirflowException, match="It broke") as caught:
        read_event({"status": "error", "code": code, "message": "It broke"}, NAME)
    assert not isinstance(caught.value, AirflowFailException)


OTHER_EVENTS = {
    "nothing": None,
    "empty": {},
    "word": "finished",
    "number": 7,
    "list": [{"status": "finished"}],
    "another provider's": {"status": "success", "job_id": "7"},
    "no status": {"operation": FINISHED["nothing"]},
    "no operation": {"status": "finished"},
    "operation of another type": {"status": "finished", "operation": "operations/a"},
    "no message": {"status": "timeout"},
    "message of another type": {"status": "timeout", "message": 7},
    "no code": {"status": "error", "message": "It broke"},
    "code of another type": {"status": "error", "code": 14, "message": "It broke"},
    "error without a message": {"status": "error", "code": "UNAVAILABLE"},
    "unknown status": {"status": "running", "operation": FINISHED["nothing"]},
}


@pytest.mark.parametrize("event", OTHER_EVENTS.values(), ids=OTHER_EVENTS)
def test_the_event_of_another_trigger_is_refused(event: Any) -> None:
    with pytest.raises(
        AirflowException, match="Expected the event of DaiOperationTrigger, got .* a may still run"
    ) as caught:
        read_event(event, NAME, "a may still run.")
    assert not isinstance(caught.value, AirflowFailException)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"name": NAME},
        {"name": NAME, "state": "GONE"},
        {"name": 7, "state": "SUCCEEDED"},
        {"name": NAME, "state": "RUNNING"},
    ],
    ids=str,
)
def test_an_operation_that_cannot_be_read_or_runs_is_refused(data: Any) -> None:
    with pytest.raises(AirflowException, match="an event that cannot be read"):
        read_event({"status": "finished", "operation": data}, NAME)


def test_a_refused_event_is_shortened_and_redacted() -> None:
    with pytest.raises(AirflowException) as caught:
        read_event({"status": "?", "operation": {"url": "https://a.b/c?sig=s1gn4ture"}, "more": "x" * 5000}, NAME)
    assert "s1gn4ture" not in str(caught.value)
    assert len(str(caught.value)) < 600


# Its timeout


def resume_after(error: Exception, task: Any, next_method: str = "execute_complete", **options: Any) -> None:
    """Resume a task whose ``resume_execution`` raises this."""
    with resumption(task, next_method, {"error": str(error)}, consequence="operations/a may still run", **options):
        raise error


#: How a wait times out: in the trigger, whose event tells what may still run, and in Airflow, which knows no more.
TIMEOUTS = [
    pytest.param(
        WaitTimeoutError("It took too long. operations/a may still run."),
        "execute_complete",
        "It took too long",
        id="trigger",
    ),
    *(pytest.param(AirflowException(words), FAILED_DEFERRAL, words, id=words) for words in sorted(TRIGGER_TIMEOUTS)),
]


@pytest.mark.parametrize(("error", "next_method", "what"), TIMEOUTS)
@pytest.mark.parametrize("kind", [AirflowException, AirflowSensorTimeout])
@pytest.mark.parametrize("execution_timeout", [None, timedelta(seconds=101), timedelta(seconds=100)], ids=str)
def test_a_timeout_of_the_task_raises_the_error_that_the_caller_names(
    error: Exception, next_method: str, what: str, kind: type[AirflowException], execution_timeout: timedelta | None
) -> None:
    task = make_task(execution_timeout=execution_timeout, timeout=100.0)
    with pytest.raises(kind, match=rf"{what}\. operations/a may still run\.$") as raised:
        resume_after(error, task, next_method, timeout_error=kind)
    assert type(raised.value) is kind
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(("error", "next_method", "what"), TIMEOUTS)
def test_a_shorter_execution_timeout_raises_airflow_s_own_error(error: Exception, next_method: str, what: str) -> None:
    task = make_task(execution_timeout=timedelta(seconds=99), timeout=100.0)
    words = rf"{what}\. operations/a may still run\. The execution_timeout of the task has passed\.$"
    with pytest.raises(AirflowTaskTimeout, match=words):
        resume_after(error, task, next_method, timeout_error=AirflowSensorTimeout)


def test_a_deferral_that_failed_otherwise_is_no_timeout() -> None:
    task = make_task(execution_timeout=timedelta(seconds=99), timeout=100.0)
    words = "The wait in the triggerer has failed: Trigger failure. operations/a may still run."
    with pytest.raises(AirflowException, match=f"^{words}$") as raised:
        resume_after(AirflowException("Trigger failure"), task, FAILED_DEFERRAL, timeout_error=AirflowSensorTimeout)
    assert type(raised.value) is AirflowException


@pytest.mark.parametrize("error", [AirflowFailException("Trigger timeout"), KeyError("a"), ServiceError("a")], ids=repr)
def test_other_errors_of_a_resumed_task_pass_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        resume_after(error, make_task(execution_timeout=timedelta(seconds=99), timeout=100.0))
    assert raised.value is error


def test_the_words_of_this_version_of_airflow_are_known(airflow_2: bool) -> None:
    assert words_of_airflow(airflow_2=airflow_2) in TRIGGER_TIMEOUTS


def words_of_airflow(*, airflow_2: bool) -> str:
    if airflow_2:
        import inspect

        from airflow.jobs import scheduler_job_runner

        words = "Trigger/execution timeout"
        assert words in inspect.getsource(scheduler_job_runner)
        return words
    from airflow.models.trigger import TriggerFailureReason

    return str(TriggerFailureReason.TRIGGER_TIMEOUT.value)


# The default of ``deferrable``


def test_the_default_comes_from_the_configuration() -> None:
    """In a process of its own: the default is read when the classes are made."""
    script = """
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.operators.dai import DaiCancelOperationOperator
from airflow_dai_provider.sensors.dai import DaiOperationSensor
for make in (DaiCancelOperationOperator, DaiOperationSensor):
    print(make(task_id="a", operation_name="operations/a").deferrable)
    print(make(task_id="b", operation_name="operations/a", deferrable=True).deferrable)
    print(make(task_id="c", operation_name="operations/a", deferrable=False).deferrable)
"""
    environment = {**os.environ, "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": "True"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.split() if line in ("True", "False")]
    assert lines == ["True", "True", "False"] * 2


def test_without_a_configuration_tasks_wait_in_the_worker() -> None:
    assert not DaiCancelOperationOperator(task_id="a", operation_name="operations/a").deferrable
    assert not DaiOperationSensor(task_id="b", operation_name="operations/a").deferrable


def test_ten_thousand_names_of_the_usual_form_can_be_deferred() -> None:
    """Names such as the emulator's; 32 random hexadecimal digits are more than MySQL can keep."""
    check_deferrable([f"operations/ingest-{number}" for number in range(10_000)])
