"""Waiting in the worker, or handing the wait over to the triggerer: what the operators and the sensor share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from airflow.providers.common.compat.sdk import AirflowTaskTimeout

if TYPE_CHECKING:
    from airflow_dai_provider.api.operation import Operation
    from airflow_dai_provider.hooks.dai import DaiHook

#: Seconds after its deadline at which Airflow itself ends a wait whose trigger has not fired, being in no triggerer.
BACKSTOP = 60.0

#: What Airflow says to a task whose deferral has timed out: 3 the first, 2 the second.
TRIGGER_TIMEOUTS = frozenset({"Trigger timeout", "Trigger/execution timeout"})

#: The method to resume with when Airflow itself has ended a deferral.
FAILED_DEFERRAL = "__fail__"


class WaitingTask(Protocol):
    """What the operators and the sensor have in common."""

    deferrable: bool
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


def wait_or_defer(
    task: WaitingTask,
    hook: DaiHook,
    operation_name: str,
    *,
    poll_interval: float,
    resume_with: dict[str, Any],
    **trigger_arguments: Any,
) -> Operation:
    """
    Wait until an operation has ended, for the task's ``timeout``; here, or in the triggerer if it is ``deferrable``.

    :param poll_interval: the most seconds between two looks.
    :param resume_with: further arguments for ``execute_complete``, when it is deferred.
    :param trigger_arguments: as :func:`defer_wait` takes them.
    :return: the operation, ended in whatever way.
    """
    if not task.deferrable:
        return hook.wait_for_operation(operation_name, timeout=task.timeout, poll_interval=poll_interval)
    return defer_wait(task, operation_name, poll_interval=poll_interval, resume_with=resume_with, **trigger_arguments)


def defer_wait(
    task: WaitingTask,
    operation_name: str,
    *,
    resume_with: dict[str, Any] | None = None,
    **trigger_arguments: Any,
) -> NoReturn:
    """
    Defer a task until an operation has ended; ``execute_complete(context, event)`` of the task is called then.

    The deadline is the sooner of the task's ``timeout`` and its ``execution_timeout``, which Airflow 3 does not enforce
    on a deferred task.

    :param resume_with: further arguments for ``execute_complete``.
    :param trigger_arguments: as ``DaiOperationTrigger`` takes them, besides those that the task has itself.
    """
    # Imported here, since DAG files are parsed often and few of their tasks defer.
    from airflow_dai_provider.triggers.dai import DaiOperationTrigger

    limit = min(task.timeout, _execution_timeout(task))
    trigger = DaiOperationTrigger(
        operation_name,
        started=time.time(),
        timeout=limit,
        gcp_conn_id=task.gcp_conn_id,
        impersonation_chain=task.impersonation_chain,
        api_endpoint=task.api_endpoint,
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


def ended_at_deadline(next_kwargs: dict[str, Any] | None) -> bool:
    """Whether Airflow itself has ended a deferral, because its trigger was in no triggerer at the deadline."""
    return (next_kwargs or {}).get("error") in TRIGGER_TIMEOUTS


def raise_task_timeout(task: WaitingTask, message: str) -> None:
    """Raise AirflowTaskTimeout when it was the task's ``execution_timeout`` that has bounded the wait."""
    if _execution_timeout(task) < task.timeout:
        raise AirflowTaskTimeout(f"{message} The execution_timeout of the task has passed.")


def _execution_timeout(task: WaitingTask) -> float:
    limit = task.execution_timeout
    return limit.total_seconds() if limit else float("inf")
