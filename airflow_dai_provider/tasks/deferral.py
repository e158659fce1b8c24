"""Deferral: how a wait goes to the triggerer, and how it comes back to the task.

The trigger reports with the payload of its event, which is one of
``{"status": "finished", "operation": Operation.to_dict()}``, ``{"status": "timeout", "message": str}`` and
``{"status": "error", "code": str | None, "message": str}``, where the code is the rpc code of the service's error.
Each also has ``operation_name``, the operation that the trigger waits for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from airflow.providers.common.compat.sdk import AirflowException, AirflowTaskTimeout

from airflow_dai_provider.api.errors import Code
from airflow_dai_provider.api.operation import InvalidOperationError, Operation
from airflow_dai_provider.api.polling import NOT_FOUND_GRACE, WaitTimeoutError
from airflow_dai_provider.api.redaction import short_repr
from airflow_dai_provider.api.storable import MAX_MESSAGE, storable, storable_text
from airflow_dai_provider.tasks.failures import describe_error, rpc_code_of, sentences, task_error

if TYPE_CHECKING:
    from airflow_dai_provider.hooks.dai import DaiHook

#: Seconds after its deadline at which Airflow itself ends a deferral, if its trigger runs in no triggerer.
BACKSTOP = 60.0

#: The error with which Airflow resumes a task whose deferral has timed out: Airflow 3 the first, Airflow 2 the second.
TRIGGER_TIMEOUTS = frozenset({"Trigger timeout", "Trigger/execution timeout"})

#: The reason when Airflow ends a deferral: a trigger that runs would have ended by itself before.
NO_TRIGGERER = "No triggerer has run the trigger to its end: is one running, and has it room for another trigger?"

#: The method with which Airflow resumes a task whose deferral has failed without an event.
FAILED_DEFERRAL = "__fail__"


class WaitingTask(Protocol):
    """What the operators and the sensor have in common."""

    gcp_conn_id: str
    impersonation_chain: str | Sequence[str] | None
    api_endpoint: str | None
    execution_timeout: timedelta | None

    @property
    def timeout(self) -> float:
        """Seconds to wait at most."""

    @property
    def log(self) -> Any:
        """The logger of the task."""

    def defer(self, *, trigger: Any, method_name: str, kwargs: Any, timeout: Any) -> NoReturn:
        """Hand over to the triggerer."""


def defer_wait(
    task: WaitingTask,
    hook: DaiHook,
    make_trigger: Callable[..., Any],
    operation_name: str,
    *,
    resume_with: dict[str, Any] | None = None,
    responded: bool = True,
    **trigger_arguments: Any,
) -> NoReturn:
    """Defer a task until an operation has finished; ``execute_complete(context, event)`` of the task is called then.

    The deadline is the sooner of the task's ``timeout`` and its ``execution_timeout``, which Airflow 3 does not enforce
    on a deferred task.

    :param hook: the hook of the task. The trigger polls at the same endpoint, also when that of the connection is
        changed meanwhile: at another endpoint, another operation can have this name.
    :param make_trigger: the class ``DaiOperationTrigger``, which the caller imports, since triggers build on tasks.
    :param resume_with: further arguments for ``execute_complete``.
    :param responded: whether the API has responded to this task.
    :param trigger_arguments: arguments of the trigger, besides those that are attributes of the task.
    """
    limit = min(task.timeout, _execution_timeout(task))
    trigger = make_trigger(
        operation_name,
        started=time.time(),
        timeout=limit,
        responded=responded,
        gcp_conn_id=task.gcp_conn_id,
        impersonation_chain=task.impersonation_chain,
        api_endpoint=hook.fixed_endpoint,
        **trigger_arguments,
    )
    task.log.info("Waiting for %s in the triggerer.", operation_name)
    task.defer(
        trigger=trigger,
        method_name="execute_complete",
        kwargs=resume_with,
        timeout=timedelta(seconds=limit + BACKSTOP),
    )
    raise AssertionError("defer() returns only by raising")


def operation_event(operation_name: str, operation: Operation) -> dict[str, Any]:
    """Return the payload for an operation that has finished."""
    return {"operation_name": operation_name, "status": "finished", "operation": operation.to_dict()}


def error_event(operation_name: str, error: Exception) -> dict[str, Any]:
    """Return the payload for a wait that has failed.

    :param operation_name: as the user gave it, so perhaps invalid.
    """
    event = {"operation_name": storable(operation_name), "message": storable_text(describe_error(error), MAX_MESSAGE)}
    if isinstance(error, WaitTimeoutError):
        return event | {"status": "timeout"}
    return event | {"status": "error", "code": rpc_code_of(error)}


def read_event(event: object, operation_name: str | None, consequence: str = "") -> Operation:
    """Return the finished operation that an event reports.

    :param event: what Airflow passes to the resumed task.
    :param operation_name: the operation that the task waits for. On SQLite, Airflow can give a new trigger the number
        of a deleted one, and then passes the event of the one to the task of the other.
    :param consequence: a sentence for the message that says what an error leaves behind.
    :raises WaitTimeoutError: when the wait has timed out.
    :raises AirflowFailException: for a permanent error.
    :raises AirflowException: for any other error, and when the event is not one of DaiOperationTrigger.
    """
    match event:
        case {"operation_name": str(other)} if operation_name not in (None, other):
            words = f"Airflow has passed the event of {other} to this task, which waits for {operation_name}"
            raise AirflowException(sentences(words, consequence))
        case {"status": "finished", "operation": dict(data)}:
            try:
                operation = Operation.from_dict(data)
            except InvalidOperationError as error:
                raise AirflowException(f"The trigger has fired an event that cannot be read: {error}") from error
            if not operation.done:
                raise AirflowException(f"The trigger has fired an event that cannot be read: {operation}.")
            return operation
        case {"status": "timeout", "message": str(message)}:
            raise WaitTimeoutError(message)
        case {"status": "error", "code": str() | None as code, "message": str(message)}:
            raise task_error(Code(code) if code in set(Code) else Code.UNKNOWN, message, consequence)
    raise AirflowException(
        sentences(f"Expected the event of DaiOperationTrigger, got {short_repr(event)}", consequence)
    )


@contextmanager
def resumption(
    task: WaitingTask,
    next_method: str,
    next_kwargs: dict[str, Any] | None,
    operation_name: str | Callable[[], str | None] | None = None,
    *,
    consequence: str = "",
    timeout_error: type[AirflowException] = AirflowException,
) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Fail a resumed task in the way in which the same failure would end a wait in the worker.

    A wait times out in one of two places: in the trigger, which fires an event, or in Airflow, which ends a deferral
    whose trigger runs in no triggerer and resumes the task with ``FAILED_DEFERRAL``. The operation can have finished
    long before that, so it is polled once more; what that finds takes the place of the missing event.

    :param next_method: as ``resume_execution`` takes it, like ``next_kwargs``.
    :param operation_name: the operation that the task waits for, or a function that finds it when it is needed.
    :param consequence: a sentence for the message that says what this leaves behind.
    :param timeout_error: raised when ``timeout`` of the task was the limit.
    :return: yields the method and the arguments to resume with.
    :raises AirflowTaskTimeout: when ``execution_timeout`` of the task was the limit.
    :raises AirflowException: when the deferral has failed for another reason.
    """
    ended_by_airflow = next_method == FAILED_DEFERRAL and (next_kwargs or {}).get("error") in TRIGGER_TIMEOUTS
    last_poll = ""
    if ended_by_airflow:
        event, last_poll = _poll_once_more(task, operation_name)
        if event:
            next_method, next_kwargs = "execute_complete", {"event": event}
    try:
        yield next_method, next_kwargs
    except WaitTimeoutError as error:
        raise _timed_out(task, timeout_error, str(error), consequence) from error
    except AirflowException as error:
        if next_method != FAILED_DEFERRAL:
            raise
        message = f"The wait in the triggerer has failed: {error}"
        if ended_by_airflow:
            if _execution_timeout(task) >= task.timeout:
                message = sentences(NO_TRIGGERER, message)
            raise _timed_out(task, timeout_error, message, last_poll, consequence) from error
        raise AirflowException(sentences(message, consequence)) from error


def _poll_once_more(
    task: WaitingTask, operation_name: str | Callable[[], str | None] | None
) -> tuple[dict[str, Any] | None, str]:
    """Poll the operation of a deferral that Airflow has ended.

    :return: the event that the trigger would have fired, if the wait is over; otherwise a sentence on the poll.
    """
    # Imported here, since DAG files are parsed often and few of their tasks resume so.
    from airflow_dai_provider.hooks.dai import DaiHook

    name: str | None = None
    try:
        name = operation_name() if callable(operation_name) else operation_name
        if name is None:
            return None, ""
        with DaiHook(task.gcp_conn_id, task.impersonation_chain, task.api_endpoint) as hook:
            # More than the time that it takes to believe NOT_FOUND; other failed polls are made again in it too.
            operation = hook.poll(hook.make_wait(name, timeout=2 * NOT_FOUND_GRACE, responded=True))
    except Exception as error:
        if name and rpc_code_of(error) is Code.NOT_FOUND:
            return error_event(name, error), ""
        return None, f"The last poll failed: {describe_error(error)}"
    if operation.done:
        return operation_event(name, operation), ""
    return None, f"The last poll found: {operation}"


def _timed_out(task: WaitingTask, timeout_error: type[AirflowException], *words: str) -> BaseException:
    """Return the error of the limit that was reached."""
    if _execution_timeout(task) < task.timeout:
        return AirflowTaskTimeout(sentences(*words, "The execution_timeout of the task has passed"))
    return timeout_error(sentences(*words))


def _execution_timeout(task: WaitingTask) -> float:
    limit = task.execution_timeout
    return limit.total_seconds() if limit else float("inf")
