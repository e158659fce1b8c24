"""
Which operations the tasks of a run have pushed: how an ingest is handed from the task that starts it to a guard.

A task hands over an ingest in the XCom ``operation_name`` (beside it, in ``operation_try_number``, the number of the
try that started it, and in ``operation_pushed_at``, by its name, when that was), or by returning the name.

Where several tasks are asked, an exception among the names stands for what could not be read of one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, Context

from airflow_dai_provider.api.names import InvalidNameError, check_operation_name
from airflow_dai_provider.tasks.xcom import XCOM_OPERATION_NAME, XCOM_PUSHED_AT, XCOM_RETURN_VALUE, XCOM_TRY_NUMBER

#: Seconds by which the clock of a worker may be ahead of Airflow's.
CLOCK_SKEW = 2.0


def push_operation(ti: Any, name: str, now: float) -> None:
    """
    Hand over an ingest, the name first.

    :param now: seconds of the epoch.
    """
    ti.xcom_push(XCOM_OPERATION_NAME, name)
    ti.xcom_push(XCOM_TRY_NUMBER, ti.try_number)
    ti.xcom_push(XCOM_PUSHED_AT, {name: now})


class NoXComsError(AirflowException):
    """XComs cannot be read at all in this process."""


def is_dag_callback(context: Context) -> bool:
    """Whether this is the context of a DAG's callback: Airflow puts the reason of the run's end there only."""
    return "reason" in context


def is_deadline(context: Context) -> bool:
    """Whether this is the context of a Deadline alert's callback: it has the run as a dict, and no task instance."""
    return "deadline" in context and context.get("ti") is None


def names_pushed_by_task_instance(context: Context, log: Any) -> list[object]:
    """
    Return what the context's own task instance, with its own map index, has pushed in the context's own try.

    A callback can come late, when the next try has already pushed its ingest; that one is left alone.
    """
    ti = _task_instance(context)
    names = _names(ti, ti.task_id, ti.map_index)
    pushed_by = _pull(ti, ti.task_id, XCOM_TRY_NUMBER, ti.map_index)
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

    A DAG's callback can come late, when the run was cleared and its tasks have started new ingests: what was pushed
    after the end of the run is left alone.
    """
    ti = _task_instance(context)
    ended = _end_of_run(context)
    known = getattr(context.get("dag"), "task_ids", None)

    def names_of(task_id: str) -> list[object]:
        if known is not None and task_id not in known:
            raise AirflowException(f"the DAG {ti.dag_id} has no such task, but {', '.join(sorted(known))}.")
        if not is_dag_callback(context) and task_id == ti.task_id:
            return names_pushed_by_task_instance(context, log)
        if is_dag_callback(context):
            return _pushed_until(ended, ti, task_id, _names(ti, task_id, None), log)
        if ti.map_index < 0:
            return _names(ti, task_id, None)
        return _names(ti, task_id, ti.map_index) or _names(ti, task_id, -1)

    return [name for task_id in task_ids for name in _or_error(task_id, names_of, task_id)]


def names_pushed_by_run(context: Context, log: Any) -> list[object]:
    """Return what any task of the run has pushed, with every map index."""
    return names_pushed_by_tasks(context, context["dag"].task_ids, log)


def names_pushed_by_deadline(context: Context, task_ids: Iterable[str] | None) -> list[object]:
    """
    Return what these tasks of the run have pushed, or what all have, with every map index.

    The triggerer answers single XComs only, and this waits for its answers: call it in a thread.
    """
    run = run_of_deadline(context)
    if run is None:
        raise AirflowException("Airflow has passed no run to this callback. Give the notifier operation_name.")

    def names_of(task_id: str) -> list[object]:
        if not (instances := run.instances_of(task_id)):
            raise AirflowException(f"{run} has no such task.")
        return [name for one in instances for name in _or_error(task_id, _names, run, *one)]

    if task_ids is not None:
        return [name for task_id in task_ids for name in _or_error(task_id, names_of, task_id)]
    return [name for one in run.instances() for name in _or_error(one[0], _names, run, *one)]


def run_of_deadline(context: Context) -> Run | None:
    """Return the run whose deadline has passed, which Airflow passes as a dict."""
    dag_run: object = context.get("dag_run")
    return Run(str(dag_run["dag_id"]), str(dag_run["dag_run_id"])) if isinstance(dag_run, Mapping) else None


@dataclass(frozen=True)
class Run:
    """A run as the triggerer knows it, which answers for XComs as a task instance does."""

    dag_id: str
    run_id: str

    def __str__(self) -> str:
        return f"the run {self.run_id} of {self.dag_id}"

    def xcom_pull(self, task_ids: str, key: str, map_indexes: int) -> Any:
        """Return the XCom of one task instance, or None."""
        # Imported here, as below, since DAG files are parsed often and few callbacks are a Deadline's.
        from airflow_dai_provider.version_compat import run_xcom

        return run_xcom(self.dag_id, self.run_id, task_ids, map_indexes, key)

    def instances_of(self, task_id: str) -> list[tuple[str, int]]:
        """Return the task id with each of its map indexes, or with -1."""
        keys = self._keys([task_id])
        return [(task_id, index) for index in sorted(-1 if key == task_id else _split(key)[1] for key in keys)]

    def instances(self) -> list[tuple[str, int]]:
        """
        Return every task id with its map indexes, or with -1.

        Airflow calls map index 3 of ``a`` and a task named ``a_3`` alike, so it is asked for either. One that does not
        exist does no harm: it has pushed nothing.
        """
        keys = self._keys(None)
        mapped = sorted({task_id for task_id, _ in map(_split, keys) if task_id})
        found = {(key, -1) for key in self._keys(keys)} | set(map(_split, self._keys(mapped)))
        return sorted((task_id, index) for task_id, index in found if task_id)

    def _keys(self, task_ids: list[str] | None) -> list[str]:
        """Return the keys of these tasks, or of all, as Airflow makes them of a task id and a map index."""
        from airflow_dai_provider.version_compat import run_task_states

        return list(run_task_states(self.dag_id, self.run_id, task_ids))


def _split(key: str) -> tuple[str, int]:
    """Read a key as task id and map index; without the task id where it names a task that is not mapped."""
    task_id, _, index = key.rpartition("_")
    return (task_id, int(index)) if index.isdecimal() else ("", -1)


def _end_of_run(context: Context) -> float:
    """Return when the run has ended, or, where Airflow 2 tells that of a cleared one no more, when it was cleared."""
    dag_run = context.get("dag_run")
    end = getattr(dag_run, "end_date", None) or getattr(dag_run, "queued_at", None)
    return end.timestamp() + CLOCK_SKEW if end else float("inf")


def _pushed_until(ended: float, ti: Any, task_id: str, names: list[object], log: Any) -> list[object]:
    """Return the names that were not pushed later than that."""
    times: dict[object, float] = {}
    for pushed_at in _pull(ti, task_id, XCOM_PUSHED_AT, None) if names else ():
        times |= pushed_at if isinstance(pushed_at, dict) else {}
    late = [name for name in names if isinstance(name, str) and times.get(name, 0.0) > ended]
    for name in late:
        # Nothing tells this apart from a task that was starting its ingest when a time limit ended the run.
        log.warning(
            "Leaving %s alone: %s has started it after the end of the run, so probably after it was cleared.",
            name,
            task_id,
        )
    return [name for name in names if name not in late]


def _task_instance(context: Context) -> Any:
    ti = context.get("ti")
    if ti is None:
        raise AirflowException(
            "Airflow has passed no task instance to this callback, so the XComs of the run cannot be read. "
            "Give the notifier operation_name."
        )
    return ti


def _or_error(task_id: str, read: Callable[..., list[object]], *args: Any) -> list[object]:
    """Return what is read of a task, or the error, which must not spare the ingests of the others."""
    try:
        return read(*args)
    except NoXComsError:
        raise
    except Exception as error:
        return [AirflowException(f"What {task_id} has pushed cannot be read: {error}")]


def _names(ti: Any, task_id: str, map_index: int | None) -> list[object]:
    """Return what the XCom ``operation_name`` holds, else the returned strings that are names of operations."""
    pushed = [
        name
        for value in _pull(ti, task_id, XCOM_OPERATION_NAME, map_index)
        for name in (value if isinstance(value, list | tuple) else [value])
    ]
    if pushed:
        return pushed
    try:
        returned = _pull(ti, task_id, XCOM_RETURN_VALUE, map_index)
    except ImportError:
        # An object whose class Airflow does not restore here, so no name.
        return []
    return [value for value in returned if _is_name(value)]


def _pull(ti: Any, task_id: str, key: str, map_index: int | None) -> list[Any]:
    """Return the values that a task has pushed under a key; None as the map index means every one."""
    from airflow_dai_provider.version_compat import gets_xcoms

    if not gets_xcoms():
        raise NoXComsError(
            "XComs cannot be read here: the dag processor of Airflow 3.0 does not answer for them. Give the notifier "
            "operation_name without an XCom in it, guard the ingest with a teardown, or use Airflow 3.1 or later."
        )
    try:
        if map_index is None:
            # A list of task ids without map indexes gives every map index, on Airflow 2 and 3 alike.
            values = ti.xcom_pull(task_ids=[task_id], key=key)
        else:
            values = [ti.xcom_pull(task_ids=task_id, key=key, map_indexes=map_index)]
        return [value for value in values or [] if value is not None]
    except ImportError as error:
        from airflow_dai_provider.version_compat import without_supervisor

        if not without_supervisor(error):
            raise
        raise NoXComsError(
            "XComs cannot be read here: dag.test() of Airflow 3 runs the callbacks of a DAG without what a task uses "
            "to reach Airflow. On a running Airflow this works; for dag.test() give the notifier operation_name."
        ) from error


def _is_name(value: object) -> bool:
    try:
        check_operation_name(value)
    except InvalidNameError:
        return False
    return True
