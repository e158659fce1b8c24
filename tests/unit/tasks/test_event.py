"""What a wait reports to its task: each end there and back, and what is no event of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from google.api_core import exceptions
from google.auth.exceptions import DefaultCredentialsError, RefreshError, TransportError

from airflow_dai_provider.api.errors import Code
from airflow_dai_provider.api.names import InvalidNameError
from airflow_dai_provider.api.operation import Operation, OperationState
from airflow_dai_provider.api.polling import WaitTimeoutError
from airflow_dai_provider.tasks.event import error_event, operation_event, read_event
from airflow_dai_provider.tasks.failures import PERMANENT, OperationNotFoundError

NAME = "operations/a/b"
ENDS = {
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
CLASSES = {
    Code.CANCELLED: exceptions.Cancelled,
    Code.UNKNOWN: exceptions.Unknown,
    Code.INVALID_ARGUMENT: exceptions.InvalidArgument,
    Code.DEADLINE_EXCEEDED: exceptions.DeadlineExceeded,
    Code.NOT_FOUND: exceptions.NotFound,
    Code.ALREADY_EXISTS: exceptions.AlreadyExists,
    Code.PERMISSION_DENIED: exceptions.PermissionDenied,
    Code.RESOURCE_EXHAUSTED: exceptions.ResourceExhausted,
    Code.FAILED_PRECONDITION: exceptions.FailedPrecondition,
    Code.ABORTED: exceptions.Aborted,
    Code.OUT_OF_RANGE: exceptions.OutOfRange,
    Code.UNIMPLEMENTED: exceptions.MethodNotImplemented,
    Code.INTERNAL: exceptions.InternalServerError,
    Code.UNAVAILABLE: exceptions.ServiceUnavailable,
    Code.DATA_LOSS: exceptions.DataLoss,
    Code.UNAUTHENTICATED: exceptions.Unauthenticated,
}


def sent(event: dict[str, Any]) -> Any:
    """Return an event as it is after its way through the metadata database."""
    return json.loads(json.dumps(event, allow_nan=False))


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_an_end_arrives_as_it_was(end: dict[str, Any]) -> None:
    operation = Operation.from_api(end)
    event = sent(operation_event(operation.name, operation))
    assert set(event) == {"operation_name", "status", "operation"}
    assert event["status"] == "ended"
    assert read_event(event, NAME) == operation
    assert read_event(event, NAME).state in set(OperationState) - {OperationState.RUNNING}


@pytest.mark.parametrize("error", [None, WaitTimeoutError("x"), CLASSES[Code.NOT_FOUND]("x")])
def test_that_of_another_operation_says_nothing_about_this_one(error: Exception | None) -> None:
    other = Operation.from_api({"name": "operations/other", "done": True, "response": {}})
    event = sent(error_event(other.name, error) if error else operation_event(other.name, other))
    words = f"has passed the event of operations/other to this task, which waits for {NAME}. It may still run."
    with pytest.raises(AirflowException, match=words) as caught:
        read_event(event, NAME, "It may still run.")
    assert not isinstance(caught.value, AirflowFailException)


def test_a_timeout_arrives_as_one() -> None:
    event = sent(error_event(NAME, WaitTimeoutError("a has not ended within 5 s")))
    assert event == {"operation_name": NAME, "status": "timeout", "message": "a has not ended within 5 s"}
    with pytest.raises(WaitTimeoutError, match="^a has not ended within 5 s$"):
        read_event(event, NAME)


@pytest.mark.parametrize("code", Code)
def test_each_code_ends_the_task_as_it_would_without_a_trigger(code: Code) -> None:
    event = sent(error_event(NAME, CLASSES[code](f"operations.get of {NAME} answered")))
    assert event == {
        "operation_name": NAME,
        "status": "error",
        "code": code.value,
        "message": f"operations.get of {NAME} answered",
    }
    with pytest.raises(AirflowException, match=f"operations.get of {NAME} answered") as caught:
        read_event(event, NAME, f"{NAME} may still run.")
    assert isinstance(caught.value, AirflowFailException) == (code in PERMANENT)
    assert isinstance(caught.value, OperationNotFoundError) == (code is Code.NOT_FOUND)
    assert (f"{NAME} may still run." in str(caught.value)) == (code is not Code.NOT_FOUND)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InvalidNameError("Invalid operation name"), "INVALID_ARGUMENT", "Invalid operation name"),
        (ValueError("Refusing to send credentials"), "INVALID_ARGUMENT", "Refusing to send credentials"),
        (DefaultCredentialsError("no key"), "UNAUTHENTICATED", "gives no usable credentials: no key"),
        (RefreshError("refused"), "UNAUTHENTICATED", "gives no usable credentials"),
        (TransportError("away"), "UNAVAILABLE", "away"),
        (FileNotFoundError(2, "No such file", "/nowhere/key.json"), "UNAUTHENTICATED", "/nowhere/key.json"),
        (AirflowException("The conn_id `a` isn't defined"), None, 'AirflowException("The conn_id `a`'),
        (KeyError("a"), None, "KeyError('a')"),
        (exceptions.GoogleAPICallError("odd"), "UNKNOWN", "odd"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_errors_of_other_kinds(error: Exception, code: str | None, words: str) -> None:
    event = sent(error_event(NAME, error))
    assert (event["status"], event["code"]) == ("error", code)
    assert words in event["message"]
    with pytest.raises(AirflowException) as caught:
        read_event(event, NAME)
    assert isinstance(caught.value, AirflowFailException) == (code in PERMANENT)


@pytest.mark.parametrize("code", [None, "", "NEWLY_INVENTED", "unavailable"])
def test_a_code_that_is_not_known_may_heal(code: str | None) -> None:
    with pytest.raises(AirflowException, match="It broke") as caught:
        read_event({"status": "error", "code": code, "message": "It broke"}, NAME)
    assert not isinstance(caught.value, AirflowFailException)


NO_EVENTS = {
    "nothing": None,
    "empty": {},
    "word": "ended",
    "number": 7,
    "list": [{"status": "ended"}],
    "another provider's": {"status": "success", "job_id": "7"},
    "no status": {"operation": ENDS["nothing"]},
    "no operation": {"status": "ended"},
    "operation of another type": {"status": "ended", "operation": "operations/a"},
    "no message": {"status": "timeout"},
    "message of another type": {"status": "timeout", "message": 7},
    "no code": {"status": "error", "message": "It broke"},
    "code of another type": {"status": "error", "code": 14, "message": "It broke"},
    "error without a message": {"status": "error", "code": "UNAVAILABLE"},
    "unknown status": {"status": "running", "operation": ENDS["nothing"]},
}


@pytest.mark.parametrize("event", NO_EVENTS.values(), ids=NO_EVENTS)
def test_what_is_no_event_of_ours_is_refused(event: Any) -> None:
    with pytest.raises(
        AirflowException, match="Expected the event of DaiOperationTrigger, got .* a may still run"
    ) as caught:
        read_event(event, NAME, "a may still run.")
    assert not isinstance(caught.value, AirflowFailException)


@pytest.mark.parametrize(
    "data", [{}, {"name": NAME}, {"name": NAME, "state": "GONE"}, {"name": 7, "state": "SUCCEEDED"}], ids=str
)
def test_an_operation_that_cannot_be_read_is_refused(data: Any) -> None:
    with pytest.raises(AirflowException, match="an event that cannot be read"):
        read_event({"status": "ended", "operation": data}, NAME)


def test_what_is_refused_is_not_shown_whole() -> None:
    with pytest.raises(AirflowException) as caught:
        read_event({"status": "?", "operation": {"url": "https://a.b/c?sig=s1gn4ture"}, "more": "x" * 5000}, NAME)
    assert "s1gn4ture" not in str(caught.value)
    assert len(str(caught.value)) < 600
