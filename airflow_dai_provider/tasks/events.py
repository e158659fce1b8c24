"""The event of a trigger: how a wait in the triggerer reports to the task, and how the task reads it.

The payload is one of ``{"status": "finished", "operation": Operation.to_dict()}``,
``{"status": "finished", "operations": packed {"finished": [Operation.to_dict()], "errors": {name: [code, message]},
"seen_after": {name of a cancelled one: seconds of the wait}}}`` for a list, ``{"status": "timeout", "message": str}``
and ``{"status": "error", "code": str | None, "message": str}``, where a code is the rpc code of the service's error.
Each also has ``operation_name``, the operation that the trigger waits for; of a list, their number and a digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.many_wait import ManyWait, some_of
from airflow_dai_provider.api.operation import InvalidOperationError, Operation, OperationState
from airflow_dai_provider.api.operation_list import from_dicts, to_dicts
from airflow_dai_provider.api.polling import WaitTimeoutError
from airflow_dai_provider.api.redaction import short_repr
from airflow_dai_provider.api.storable import MAX_MESSAGE, pack, storable, storable_text, unpack
from airflow_dai_provider.tasks.failures import describe_error, rpc_code_of, sentences, task_error
from airflow_dai_provider.tasks.xcom import is_several

#: What a compressed list of names begins with.
PACKED = "packed:"


def describe_names(names: str | Sequence[str]) -> str:
    """Return what messages call one operation, or a list of them."""
    if isinstance(names, str):
        return names
    return f"{len(names):,} operations" if len(names) != 1 else names[0]


def pack_names(names: Any) -> Any:
    """Return the operations of a trigger as it is stored: a list as one compressed text."""
    return f"{PACKED}{pack(list(names))}" if is_several(names) else names


def unpack_names(names: Any) -> Any:
    """Return the operations of a trigger that :func:`pack_names` has stored: one name, or a list.

    :raises ValueError: for a text that begins like a compressed one, and is none.
    """
    if isinstance(names, str) and names.startswith(PACKED):
        return unpack(names.removeprefix(PACKED))
    return list(names) if is_several(names) else names


def wait_id(names: object) -> object:
    """Return what the event of a wait calls its operations: the name of one, and of a list their number and digest."""
    if not isinstance(names, list):
        return names
    digest = hashlib.sha256("\n".join(map(str, names)).encode("utf-8", "replace")).hexdigest()
    return f"{len(names)} operations, {digest[:16]}"


def many_event(names: list[str], many: ManyWait) -> dict[str, Any]:
    """Return the payload for a list of operations, each of which has finished or cannot be polled."""
    errors = {name: [error.rpc_code.value, str(error)] for name, error in many.failed.items()}
    seen = {
        name: seconds
        for name, seconds in many.seen_after.items()
        if many.finished[name].state is OperationState.CANCELLED
    }
    result = {"finished": to_dicts(list(many.finished.values())), "errors": errors, "seen_after": seen}
    return {"operation_name": wait_id(names), "status": "finished", "operations": pack(result)}


def operation_event(operation_name: str, operation: Operation) -> dict[str, Any]:
    """Return the payload for an operation that has finished."""
    return {"operation_name": operation_name, "status": "finished", "operation": operation.to_dict()}


def error_event(operation_name: str | list[str], error: Exception) -> dict[str, Any]:
    """Return the payload for a wait that has failed.

    :param operation_name: as the user gave it, so perhaps invalid.
    """
    event = {
        "operation_name": storable(wait_id(operation_name)),
        "message": storable_text(describe_error(error), MAX_MESSAGE),
    }
    if isinstance(error, WaitTimeoutError):
        return event | {"status": "timeout"}
    return event | {"status": "error", "code": rpc_code_of(error)}


def read_event(event: object, operation_name: str | None, consequence: str = "") -> Operation:
    """Return the finished operation that an event reports.

    :param event: what Airflow passes to the resumed task.
    :param operation_name: the operation that the task waits for.
    :param consequence: a sentence for the message that says what an error leaves behind.
    :raises WaitTimeoutError: when the wait has timed out.
    :raises AirflowFailException: for a permanent error.
    :raises AirflowException: for any other error, and when the event is not one of DaiOperationTrigger.
    """
    data = _finished(event, operation_name, consequence, "operation", dict)
    try:
        operation = Operation.from_dict(data)
    except InvalidOperationError as error:
        raise AirflowException(f"The trigger has fired an event that cannot be read: {error}") from error
    if not operation.done:
        raise AirflowException(f"The trigger has fired an event that cannot be read: {operation}.")
    return operation


def read_many_event(
    event: object, names: list[str], consequence: str = ""
) -> tuple[dict[str, Operation], dict[str, ServiceError]]:
    """Return the operations that have finished, and the errors of the others, that an event reports for a list.

    :raises WaitTimeoutError: when the wait has timed out.
    :raises AirflowException: as :func:`read_event`.
    """
    packed = _finished(event, names, consequence, "operations", str)
    try:
        result = unpack(packed)
        finished = {one.name: one for one in from_dicts(result["finished"]) if one}
        errors = {name: ServiceError(text, Code(code)) for name, (code, text) in result["errors"].items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise AirflowException(f"The trigger has fired an event that cannot be read: {error}") from error
    if running := [operation for operation in finished.values() if not operation.done]:
        raise AirflowException(f"The trigger has fired an event that cannot be read: {some_of(running)}.")
    if missing := [name for name in names if name not in finished and name not in errors]:
        raise AirflowException(f"The trigger has fired an event without {some_of(missing)}.")
    return finished, errors


def read_seen_after(event: object) -> dict[str, float]:
    """Return the seconds of the wait after which each cancelled operation was seen; call it after the other reader."""
    try:
        return dict(unpack(event["operations"])["seen_after"])  # type: ignore[index]
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}


def _finished(event: object, names: str | list[str] | None, consequence: str, key: str, kind: type[Any]) -> Any:
    """Return what an event holds under a key, when it is one of a wait that is over.

    On SQLite, Airflow can give a new trigger the number of a deleted one, and then passes the event of the one to the
    task of the other.
    """
    match event:
        case {"operation_name": str(other)} if names is not None and other != wait_id(names):
            words = f"Airflow has passed the event of {other} to this task, which waits for {wait_id(names)}"
            raise AirflowException(sentences(words, consequence))
        case {"status": "finished", **rest} if isinstance(rest.get(key), kind):
            return rest[key]
        case {"status": "timeout", "message": str(message)}:
            raise WaitTimeoutError(message)
        case {"status": "error", "code": str() | None as code, "message": str(message)}:
            raise task_error(Code(code) if code in set(Code) else Code.UNKNOWN, message, consequence)
    raise AirflowException(
        sentences(f"Expected the event of DaiOperationTrigger, got {short_repr(event)}", consequence)
    )
