"""The event of a trigger: how a wait in the triggerer reports to the task, and how the task reads it.

The payload is one of ``{"status": "finished", "operation": Operation.to_dict()}``,
``{"status": "finished", "operations": packed {"finished": [Operation.to_dict()], "errors": {name: [code, message]},
"seen_after": {name of a cancelled one: seconds of the wait}}}`` for a list, ``{"status": "timeout", "message": str}``
and ``{"status": "error", "code": str | None, "message": str}``, where a code is the rpc code of the service's error.
Each also has ``operation_name``, the operation that the trigger waits for; of a list, their number and a digest. A wait
for a list that has begun and then failed has ``operations`` too, with ``"running": [Operation.to_dict()]``, what the
last polls found of the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from airflow.providers.common.compat.sdk import AirflowException

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.many_wait import ManyWait, some_of
from airflow_dai_provider.api.operation import InvalidOperationError, Operation, OperationState
from airflow_dai_provider.api.operation_list import errors_from_json, errors_to_json, from_dicts, to_dicts
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


class ManyResult(NamedTuple):
    """What a wait for a list has found, by name."""

    finished: dict[str, Operation]
    #: Of those that cannot be polled.
    errors: dict[str, ServiceError]
    #: What the last poll has found of those that have not finished.
    running: dict[str, Operation]
    #: The error with which the wait has ended before each operation had finished, or could not be polled.
    ended: WaitTimeoutError | ServiceError | None
    #: The seconds of the wait after which each cancelled operation was seen.
    seen_after: Mapping[str, float] = MappingProxyType({})


def many_event(names: list[str], many: ManyWait, ended: Exception | None = None) -> dict[str, Any]:
    """Return the payload for a list of operations.

    :param ended: why the wait has ended before each of them had finished, or could not be polled.
    """
    seen = {
        name: seconds
        for name, seconds in many.seen_after.items()
        if many.finished[name].state is OperationState.CANCELLED
    }
    result = {
        "finished": to_dicts(list(many.finished.values())),
        "errors": errors_to_json(many.failed),
        "seen_after": seen,
    }
    if ended is None:
        return {"operation_name": wait_id(names), "status": "finished", "operations": pack(result)}
    result["running"] = to_dicts(list(many.running.values()))
    return error_event(names, ended) | {"operations": pack(result)}


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

    :param consequence: a sentence for the message on what may still run; replaced where the event narrows that down.
    :raises WaitTimeoutError: when the wait has timed out.
    :raises AirflowException: as :func:`read_event`.
    """
    result = read_many_result(event, names, consequence)
    check_ended(result, names, consequence)
    return result.finished, result.errors


def check_ended(result: ManyResult, names: list[str], consequence: str = "") -> None:
    """Raise the error with which a wait has ended too early, if it has."""
    if result.ended:
        left = [name for name in names if name not in result.finished]
        _raise(result.ended, f"{some_of(left)} may still run" if consequence else "")


def read_many_result(event: object, names: list[str], consequence: str = "") -> ManyResult:
    """Return what an event reports for a list, also of a wait that has failed after it had begun.

    :param consequence: a sentence for the message, where the event does not tell what may still run.
    :raises WaitTimeoutError: when the wait has timed out, and the event does not tell what has finished.
    :raises AirflowException: likewise, and when the event is not one of DaiOperationTrigger.
    """
    ended = _ended(event) if isinstance(event, dict) and event.get("operation_name") == wait_id(names) else None
    if isinstance(event, dict) and ended and isinstance(event.get("operations"), str):
        packed = event["operations"]
    else:
        ended, packed = None, _finished(event, names, consequence, "operations", str)
    try:
        result = unpack(packed)
        finished, running = (
            {one.name: one for one in from_dicts(result.get(key, ())) if one} for key in ("finished", "running")
        )
        errors, seen_after = errors_from_json(result["errors"]), dict(result.get("seen_after", ()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise AirflowException(f"The trigger has fired an event that cannot be read: {error}") from error
    if unfinished := [operation for operation in finished.values() if not operation.done]:
        raise AirflowException(f"The trigger has fired an event that cannot be read: {some_of(unfinished)}.")
    missing = [name for name in names if name not in finished and name not in errors]
    if missing and not ended:
        raise AirflowException(f"The trigger has fired an event without {some_of(missing)}.")
    return ManyResult(finished, errors, running, ended, seen_after)


def _ended(event: object) -> WaitTimeoutError | ServiceError | None:
    """Return the error of an event of a wait that has failed."""
    match event:
        case {"status": "timeout", "message": str(message)}:
            return WaitTimeoutError(message)
        case {"status": "error", "code": str() | None as code, "message": str(message)}:
            return ServiceError(message, Code(code) if code in set(Code) else Code.UNKNOWN)
    return None


def _raise(error: WaitTimeoutError | ServiceError, consequence: str) -> NoReturn:
    if isinstance(error, WaitTimeoutError):
        raise WaitTimeoutError(sentences(error, consequence) if consequence else str(error))
    raise task_error(error.rpc_code, str(error), consequence)


def _finished(event: object, names: str | list[str] | None, consequence: str, key: str, kind: type[Any]) -> Any:
    """Return the value of a key of an event, if it is the event of a wait that has finished.

    On SQLite, Airflow can give a new trigger the number of a deleted one, and then passes the event of the one to the
    task of the other.
    """
    match event:
        case {"operation_name": str(other)} if names is not None and other != wait_id(names):
            words = f"Airflow has passed the event of {other} to this task, which waits for {wait_id(names)}"
            raise AirflowException(sentences(words, consequence))
        case {"status": "finished", **rest} if isinstance(rest.get(key), kind):
            return rest[key]
    if ended := _ended(event):
        _raise(ended, consequence)
    raise AirflowException(
        sentences(f"Expected the event of DaiOperationTrigger, got {short_repr(event)}", consequence)
    )
