"""Deferral: how a wait goes to the triggerer, and how it comes back to the task."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from airflow.providers.common.compat.sdk import AirflowException, AirflowTaskTimeout

from airflow_dai_provider.api.errors import Code
from airflow_dai_provider.api.many_wait import ManyWait
from airflow_dai_provider.api.polling import NOT_FOUND_GRACE, WaitTimeoutError
from airflow_dai_provider.api.storable import pack
from airflow_dai_provider.tasks.events import describe_names, error_event, many_event, operation_event
from airflow_dai_provider.tasks.failures import describe_error, rpc_code_of, sentences

if TYPE_CHECKING:
    from airflow_dai_provider.hooks.dai import DaiHook

#: The most characters that the compressed names of a list may have, of which MySQL's 64 KB have to hold the encrypted
#: form, a third longer, beside the other arguments of the trigger.
MAX_PACKED_NAMES = 44_000
#: The operation that a task waits for, or a list of them; None when it is not known.
Names = str | list[str] | None
#: Seconds after its deadline at which Airflow itself ends a deferral, if its trigger runs in no triggerer.
BACKSTOP = 60.0

#: The error with which Airflow resumes a task whose deferral has timed out: Airflow 3 the first, Airflow 2 the second.
TRIGGER_TIMEOUTS = frozenset({"Trigger timeout", "Trigger/execution timeout"})

#: The reason when Airflow ends a deferral: a running trigger would have finished by itself before that.
NO_TRIGGERER = "No triggerer ran the trigger to completion: is one running, with capacity for another trigger?"

#: The method with which Airflow resumes a task whose deferral has failed without an event.
FAILED_DEFERRAL = "__fail__"


class WaitingTask(Protocol):
    """The attributes of an operator or a sensor that a deferral needs."""

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
    operation_name: str | list[str],
    *,
    resume_with: dict[str, Any] | None = None,
    **trigger_arguments: Any,
) -> NoReturn:
    """Defer a task until an operation has finished, or each of a list.

    ``execute_complete(context, event)`` of the task is called then.

    The deadline is the sooner of the task's ``timeout`` and its ``execution_timeout``, which Airflow 3 does not enforce
    on a deferred task.

    :param hook: the hook of the task. The trigger polls at the same endpoint, also when that of the connection is
        changed meanwhile: at another endpoint, another operation can have this name.
    :param make_trigger: the class ``DaiOperationTrigger``, which the caller imports, since triggers build on tasks.
    :param resume_with: further arguments for ``execute_complete``.
    :param trigger_arguments: arguments of the trigger, besides those that are attributes of the task.
    """
    limit = min(task.timeout, _execution_timeout(task))
    trigger = make_trigger(
        operation_name,
        started=time.time(),
        timeout=limit,
        gcp_conn_id=task.gcp_conn_id,
        impersonation_chain=task.impersonation_chain,
        api_endpoint=hook.fixed_endpoint,
        **trigger_arguments,
    )
    task.log.info("Waiting for %s in the triggerer.", describe_names(operation_name))
    task.defer(
        trigger=trigger,
        method_name="execute_complete",
        kwargs=resume_with,
        timeout=timedelta(seconds=limit + BACKSTOP),
    )
    raise AssertionError("defer() returns only by raising")


def check_deferrable(names: Sequence[str]) -> None:
    """Check that the arguments of a trigger that waits for these operations can be stored on every database.

    :raises ValueError: when they are too many; before anything is sent.
    """
    if (size := len(pack(list(names)))) > MAX_PACKED_NAMES:
        raise ValueError(
            f"Invalid operation_name: the names of {len(names):,} operations take {size:,} characters when compressed, "
            f"but a deferred task can keep {MAX_PACKED_NAMES:,} (MySQL keeps 64 KB of the arguments of a trigger): set "
            f"deferrable=False, or split the list."
        )


@contextmanager
def resumption(
    task: WaitingTask,
    next_method: str,
    next_kwargs: dict[str, Any] | None,
    operation_name: Names | Callable[[], Names] = None,
    *,
    consequence: str = "",
    timeout_error: type[AirflowException] = AirflowException,
) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Fail a resumed task in the way in which the same failure would end a wait in the worker.

    A wait times out in one of two places: in the trigger, which fires an event, or in Airflow, which ends a deferral
    whose trigger runs in no triggerer and resumes the task with ``FAILED_DEFERRAL``. The operation can have finished
    long before that, so it is polled once more; what that finds takes the place of the missing event.

    :param next_method: as ``resume_execution`` takes it, like ``next_kwargs``.
    :param operation_name: the operation that the task waits for, or a list, or a function that finds them when they
        are needed.
    :param consequence: a sentence for the message on what may still run when a deferral has failed without an event;
        the error of an event has its own.
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
        raise _timed_out(task, timeout_error, str(error)) from error
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
    task: WaitingTask, operation_name: Names | Callable[[], Names]
) -> tuple[dict[str, Any] | None, str]:
    """Poll the operations of a deferral that Airflow has ended.

    :return: the event that the trigger would have fired, if the wait is over; otherwise a sentence on the poll.
    """
    # Imported here, since DAG files are parsed often and few of their tasks resume so.
    from airflow_dai_provider.hooks.dai import DaiHook

    names: Names = None
    # More than the time that it takes to believe NOT_FOUND; other failed polls are made again in it too.
    timeout = 2 * NOT_FOUND_GRACE
    try:
        names = operation_name() if callable(operation_name) else operation_name
        if names is None:
            return None, ""
        with DaiHook(task.gcp_conn_id, task.impersonation_chain, task.api_endpoint) as hook:
            if isinstance(names, list):
                return _poll_many_once_more(hook, names, timeout)
            operation = hook.poll(hook.make_wait(names, timeout=timeout, responded=True))
    except Exception as error:
        if names and rpc_code_of(error) is Code.NOT_FOUND:
            return error_event(names, error), ""
        return None, f"The last poll failed: {describe_error(error)}"
    if operation.done:
        return operation_event(operation.name, operation), ""
    return None, f"The last poll found: {operation}"


def _poll_many_once_more(hook: DaiHook, names: list[str], timeout: float) -> tuple[dict[str, Any] | None, str]:
    many = ManyWait(names, hook.make_wait(describe_names(names), timeout=timeout, responded=True))
    with hook.workers(len(names), wait=many.wait) as workers:
        hook.poll_many(workers, many)
    return (None, f"The last poll found: {many.progress}") if many.left else (many_event(names, many), "")


def _timed_out(task: WaitingTask, timeout_error: type[AirflowException], *words: str) -> BaseException:
    """Return the error of the limit that was reached."""
    if _execution_timeout(task) < task.timeout:
        return AirflowTaskTimeout(sentences(*words, "The execution_timeout of the task has passed"))
    return timeout_error(sentences(*words))


def _execution_timeout(task: WaitingTask) -> float:
    limit = task.execution_timeout
    return limit.total_seconds() if limit else float("inf")
