"""Handing a wait over to the triggerer: what the operators and the sensor share."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any, NoReturn

from airflow.providers.common.compat.sdk import AirflowTaskTimeout, BaseOperator

#: Seconds after its deadline at which Airflow itself ends a wait whose trigger has not fired, being in no triggerer.
BACKSTOP = 60.0

#: What Airflow says to a task whose deferral has timed out: 3 the first, 2 the second.
TRIGGER_TIMEOUTS = frozenset({"Trigger timeout", "Trigger/execution timeout"})

#: The method to resume with when Airflow itself has ended a deferral.
FAILED_DEFERRAL = "__fail__"


def defer_wait(
    task: BaseOperator,
    operation_name: str,
    *,
    timeout: float,
    resume_with: dict[str, Any] | None = None,
    **trigger_arguments: Any,
) -> NoReturn:
    """
    Defer a task until an operation has ended; ``execute_complete(context, event)`` of the task is called then.

    The deadline is the sooner of ``timeout`` and the task's ``execution_timeout``, which Airflow 3 does not enforce on
    a deferred task.

    :param timeout: seconds from now.
    :param resume_with: further arguments for ``execute_complete``.
    :param trigger_arguments: as ``DaiOperationTrigger`` takes them.
    """
    # Imported here, since DAG files are parsed often and few of their tasks defer.
    from airflow_dai_provider.triggers.dai import DaiOperationTrigger

    limit = min(timeout, _execution_timeout(task))
    trigger = DaiOperationTrigger(operation_name, started=time.time(), timeout=limit, **trigger_arguments)
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


def raise_task_timeout(task: BaseOperator, timeout: float, message: str) -> None:
    """Raise AirflowTaskTimeout when it was the task's ``execution_timeout`` that has bounded the wait."""
    if _execution_timeout(task) < timeout:
        raise AirflowTaskTimeout(f"{message} The execution_timeout of the task has passed.")


def _execution_timeout(task: BaseOperator) -> float:
    limit = task.execution_timeout
    return limit.total_seconds() if limit else float("inf")
