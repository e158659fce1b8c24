"""
Which operations the tasks of a run have pushed: how an ingest is handed from the task that starts it to a guard.

A task hands over an ingest in the XCom ``operation_name`` (beside it, in ``operation_try_number``, the number of the
try that started it), or by returning the name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, Context

from airflow_dai_provider.names import InvalidNameError, check_operation_name

XCOM_OPERATION_NAME = "operation_name"
XCOM_TRY_NUMBER = "operation_try_number"
XCOM_RETURN_VALUE = "return_value"


def is_dag_callback(context: Context) -> bool:
    """Whether this is the context of a DAG's callback: Airflow puts the reason of the run's end there only."""
    return "reason" in context


def names_pushed_by_task_instance(context: Context, log: Any) -> list[object]:
    """
    Return what the context's own task instance, with its own map index, has pushed in the context's own try.

    A callback can come late, when the next try has already pushed its ingest; that one is left alone.
    """
    ti = _task_instance(context)
    names = _names(context, ti.task_id, ti.map_index)
    pushed_by = _pull(context, ti.task_id, XCOM_TRY_NUMBER, ti.map_index)
    if names and pushed_by and pushed_by[0] != ti.try_number:
        log.info(
            "Leaving %s alone: try %s has started it, and this callback belongs to try %s.",
            ", ".join(map(str, names)),
            pushed_by[0],
            ti.try_number,
        )
        return []
    return names


def names_pushed_by_tasks(context: Context, task_ids: Iterable[str], log: Any) -> list[object]:
    """
    Return what these tasks have pushed.

    A DAG's callback, and that of a task that is not mapped, reaches every map index of theirs. That of a mapped task
    reaches its own map index, or a task that is not mapped, but never a sibling's.
    """
    ti = _task_instance(context)
    names: list[object] = []
    for task_id in task_ids:
        if not is_dag_callback(context) and task_id == ti.task_id:
            names += names_pushed_by_task_instance(context, log)
        elif is_dag_callback(context) or ti.map_index < 0:
            names += _names(context, task_id, None)
        else:
            names += _names(context, task_id, ti.map_index) or _names(context, task_id, -1)
    return names


def names_pushed_by_run(context: Context, log: Any) -> list[object]:
    """Return what any task of the run has pushed, with every map index."""
    return names_pushed_by_tasks(context, context["dag"].task_ids, log)


def _task_instance(context: Context) -> Any:
    ti = context.get("ti")
    if ti is None:
        raise AirflowException(
            "Airflow has passed no task instance to this callback, so the XComs of the run cannot be read. "
            "Give the notifier operation_name."
        )
    return ti


def _names(context: Context, task_id: str, map_index: int | None) -> list[object]:
    """Return what the XCom ``operation_name`` holds, else the returned strings that are names of operations."""
    pushed = [
        name
        for value in _pull(context, task_id, XCOM_OPERATION_NAME, map_index)
        for name in (value if isinstance(value, list | tuple) else [value])
    ]
    return pushed or [value for value in _pull(context, task_id, XCOM_RETURN_VALUE, map_index) if _is_name(value)]


def _pull(context: Context, task_id: str, key: str, map_index: int | None) -> list[Any]:
    """Return the values that a task has pushed under a key; None as the map index means every one."""
    ti = _task_instance(context)
    try:
        if map_index is None:
            # A list of task ids without map indexes gives every map index, on Airflow 2 and 3 alike.
            values = ti.xcom_pull(task_ids=[task_id], key=key)
        else:
            values = [ti.xcom_pull(task_ids=task_id, key=key, map_indexes=map_index)]
    except ImportError as error:
        raise AirflowException(
            "XComs cannot be read here: dag.test() of Airflow 3 runs the callbacks of a DAG without what a task uses "
            "to reach Airflow. On a running Airflow this works; for dag.test() give the notifier operation_name."
        ) from error
    return [value for value in values or [] if value is not None]


def _is_name(value: object) -> bool:
    try:
        check_operation_name(value)
    except InvalidNameError:
        return False
    return True
