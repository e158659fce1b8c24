"""
What a wait in the triggerer reports to its task: the payload of the trigger's event.

It is one of ``{"status": "ended", "operation": Operation.to_dict()}``, ``{"status": "timeout", "message": str}`` and
``{"status": "error", "code": str | None, "message": str}``, where the code is that of the service's error; each with
the ``operation_name`` that the trigger waits for.
"""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import AirflowException

from airflow_dai_provider.api.errors import Code
from airflow_dai_provider.api.operation import InvalidOperationError, Operation
from airflow_dai_provider.api.polling import WaitTimeoutError
from airflow_dai_provider.api.redaction import short_repr
from airflow_dai_provider.tasks.failures import describe_error, error_code, task_error


def operation_event(operation_name: str, operation: Operation) -> dict[str, Any]:
    """Return the payload for an operation that has ended."""
    return {"operation_name": operation_name, "status": "ended", "operation": operation.to_dict()}


def error_event(operation_name: str, error: Exception) -> dict[str, Any]:
    """Return the payload for a wait that has broken off."""
    event = {"operation_name": operation_name}
    if isinstance(error, WaitTimeoutError):
        return event | {"status": "timeout", "message": str(error)}
    return event | {"status": "error", "code": error_code(error), "message": describe_error(error)}


def read_event(event: object, operation_name: str | None, consequence: str = "") -> Operation:
    """
    Return the operation that an event reports.

    :param event: what Airflow hands to the resumed task.
    :param operation_name: what the task waits for. On SQLite, Airflow gives a trigger the number of one that it has
        just deleted, and the event of the one to the task of the other.
    :param consequence: a sentence for the message that says what an error leaves behind.
    :raises WaitTimeoutError: when the wait has timed out.
    :raises AirflowFailException: for an error that a retry cannot heal.
    :raises AirflowException: for any other error, and when the event is none of ours.
    """
    match event:
        case {"operation_name": str(other)} if operation_name not in (None, other):
            raise AirflowException(
                f"Airflow has passed the event of {other} to this task, which waits for {operation_name}. "
                f"{consequence}".strip()
            )
        case {"status": "ended", "operation": dict(data)}:
            try:
                return Operation.from_dict(data)
            except InvalidOperationError as error:
                raise AirflowException(f"The trigger has fired an event that cannot be read: {error}") from error
        case {"status": "timeout", "message": str(message)}:
            raise WaitTimeoutError(message)
        case {"status": "error", "code": str() | None as code, "message": str(message)}:
            raise task_error(Code(code) if code in set(Code) else Code.UNKNOWN, message, consequence)
    raise AirflowException(f"Expected the event of DaiOperationTrigger, got {short_repr(event)}. {consequence}".strip())
