"""Callbacks: the kind of a callback, and the operations that it reaches.

A function that reads from several tasks returns ``(names, problems)``: what they have started, and a sentence for each
task that could not be read. A problem with one task does not keep the ingests of the others from being cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, TypeVar

from airflow.providers.common.compat.sdk import AirflowException, Context

from airflow_dai_provider.tasks.failures import describe_error
from airflow_dai_provider.tasks.xcom import (
    XCOM_STARTED,
    Endpoints,
    NoXComsError,
    clear_number_of,
    pull,
    pull_operations,
    pull_started,
)
from airflow_dai_provider.version_compat import CALLBACK_HAS_RUN_AS_IT_ENDED

#: Seconds by which the clock of a worker may be ahead of Airflow's.
CLOCK_SKEW = 2.0

T = TypeVar("T")
#: Names of operations, which are not checked yet, and problems.
Started = tuple[list[object], list[str]]
#: A task id and one of its map indexes; the index is -1 where the task is not mapped.
Instance = tuple[str, int]


class CallbackKind(Enum):
    """The kind of a callback; the value names the scope that it cancels without arguments."""

    TASK = "the task instance"
    DAG = "the run"
    DEADLINE = "the run whose deadline has passed"


def callback_kind(context: Context) -> CallbackKind:
    """Return the kind of callback to which a context belongs."""
    if "deadline" in context and context.get("ti") is None:
        # A Deadline alert has the run as a dict, and no task instance.
        return CallbackKind.DEADLINE
    # Airflow gives the reason of the run's end to a DAG's callback only.
    return CallbackKind.DAG if "reason" in context else CallbackKind.TASK


def operations_started(
    context: Context, task_ids: list[str] | None, log: Any, endpoints: Endpoints | None = None
) -> Started:
    """Return the operations that a callback reaches.

    A Deadline's callback, that of a DAG, and that of a task that is not mapped reach every map index of the given
    tasks. The callback of a mapped task reaches its own map index, or a task that is not mapped, but never a sibling's.

    :param task_ids: the tasks that have started them; by default the task instance itself, or all tasks of the run.
    :param endpoints: receives where the operations run, as far as the tasks have pushed it.
    """
    kind = callback_kind(context)
    if kind is CallbackKind.DEADLINE:
        return _started_by_deadline_run(context, task_ids, endpoints)
    if kind is CallbackKind.DAG or task_ids is not None:
        return _started_by_tasks(context, context["dag"].task_ids if task_ids is None else task_ids, log, endpoints)
    own = partial(operations_started_by_task_instance, context, log, endpoints)
    return _collect([(_task_instance(context).task_id, own)])


def operations_started_by_task_instance(context: Context, log: Any, endpoints: Endpoints | None = None) -> list[object]:
    """Return the operations that the context's task instance has started, in the context's own try.

    A callback can come late, when the next try has already started its ingest. Cancelling that one would harm a healthy
    task, so the try that has pushed the name has to be the try of the callback.
    """
    ti = _task_instance(context)
    names = pull_operations(ti, ti.task_id, ti.map_index, endpoints)
    pushed_by = pull(ti, ti.task_id, XCOM_STARTED, ti.map_index) if names else []
    numbers = [started.get("try_number") for started in pushed_by if isinstance(started, Mapping)]
    if numbers and numbers[0] not in (None, ti.try_number):
        log.info(
            "Leaving %s alone: try %s has started it, and this callback belongs to try %s.",
            ", ".join(map(str, names)),
            numbers[0],
            ti.try_number,
        )
        return []
    return names


def _started_by_tasks(context: Context, task_ids: Iterable[str], log: Any, endpoints: Endpoints | None) -> Started:
    ti = _task_instance(context)
    of_dag = callback_kind(context) is CallbackKind.DAG
    known = getattr(context.get("dag"), "task_ids", None)

    def started_by(task_id: str) -> list[object]:
        if known is not None and task_id not in known:
            raise AirflowException(f"the DAG {ti.dag_id} has no such task; its tasks are {', '.join(sorted(known))}.")
        if of_dag:
            return _without_late(pull_operations(ti, task_id, None, endpoints), context, task_id, log)
        if task_id == ti.task_id:
            return operations_started_by_task_instance(context, log, endpoints)
        if ti.map_index < 0:
            names = pull_operations(ti, task_id, None, endpoints)
        else:
            names = pull_operations(ti, task_id, ti.map_index, endpoints) or pull_operations(ti, task_id, -1, endpoints)
        return _without_later_runs(names, context, task_id, log)

    return _collect((task_id, partial(started_by, task_id)) for task_id in task_ids)


def _started_by_deadline_run(context: Context, task_ids: Iterable[str] | None, endpoints: Endpoints | None) -> Started:
    """Return what these tasks of the run have started, or what all have, with every map index.

    The triggerer responds to requests for single XComs only, and this waits for each response: call it in a thread.
    """
    run = run_of_deadline(context)
    if run is None:
        raise AirflowException("Airflow has passed no run to this callback. Give the notifier operation_name.")
    problems: list[str] = []
    if task_ids is None:
        instances = run.instances()
    else:
        instances, problems = _collect((task_id, partial(run.instances_of, task_id)) for task_id in task_ids)
    names, unreadable = _collect((one[0], partial(pull_operations, run, *one, endpoints)) for one in instances)
    return names, problems + unreadable


def run_of_deadline(context: Context) -> Run | None:
    """Return the run whose deadline has passed, which Airflow passes as a dict."""
    dag_run: object = context.get("dag_run")
    return Run(str(dag_run["dag_id"]), str(dag_run["dag_run_id"])) if isinstance(dag_run, Mapping) else None


@dataclass(frozen=True)
class Run:
    """A run in the triggerer; it pulls XComs as a task instance does."""

    dag_id: str
    run_id: str

    def __str__(self) -> str:
        return f"the run {self.run_id} of {self.dag_id}"

    def xcom_pull(self, task_ids: str, key: str, map_indexes: int) -> Any:
        """Return the XCom of one task instance, or None."""
        # Imported here, as below, since DAG files are parsed often and few callbacks are a Deadline's.
        from airflow_dai_provider.version_compat import run_xcom

        return run_xcom(self.dag_id, self.run_id, task_ids, map_indexes, key)

    def instances_of(self, task_id: str) -> list[Instance]:
        """Return the instances of a task.

        :raises AirflowException: when the run has no such task.
        """
        if not (keys := self._keys([task_id])):
            raise AirflowException(f"{self} has no such task.")
        return [(task_id, index) for index in sorted(-1 if key == task_id else _split(key)[1] for key in keys)]

    def instances(self) -> list[Instance]:
        """Return the instances of all tasks.

        Airflow gives map index 3 of ``a`` and a task named ``a_3`` the same key, so both are tried. The one that does
        not exist does no harm: it has pushed nothing.
        """
        keys = self._keys(None)
        mapped = sorted({task_id for task_id, _ in map(_split, keys) if task_id})
        found = {(key, -1) for key in self._keys(keys)} | set(map(_split, self._keys(mapped)))
        return sorted((task_id, index) for task_id, index in found if task_id)

    def _keys(self, task_ids: list[str] | None) -> list[str]:
        """Return the keys that Airflow makes of a task id and a map index, for these tasks or for all."""
        from airflow_dai_provider.version_compat import run_task_states

        return list(run_task_states(self.dag_id, self.run_id, task_ids))


def _split(key: str) -> Instance:
    """Read a key as task id and map index; the task id is empty where the key names a task that is not mapped."""
    task_id, _, index = key.rpartition("_")
    return (task_id, int(index)) if index.isdecimal() else ("", -1)


def _end_of_run(context: Context) -> float:
    """Return when the run has ended, in seconds since the epoch, by the fastest clock of a worker.

    A run that was cleared and is running again has no end on Airflow 2; there it is when the run was cleared.
    """
    dag_run = context.get("dag_run")
    end = getattr(dag_run, "end_date", None) or getattr(dag_run, "queued_at", None)
    return end.timestamp() + CLOCK_SKEW if end else float("inf")


def _without_late(names: list[object], context: Context, task_id: str, log: Any) -> list[object]:
    """Return the names that tasks have started before the run was cleared, for the callback of a DAG.

    A DAG's callback can come late, when the run was cleared and its tasks have started new ingests. Those are healthy,
    and must not be cancelled. An operation pushed before the run ended is the run's own, and so is one without a time.

    After the end, a task that was starting its ingest when ``dagrun_timeout`` ended the run looks the same as a task of
    the cleared run. Airflow counts how often a run is cleared, and Airflow 3 gives the callback the run as it was when
    it ended. So a name that was pushed under the same number is the run's own, at any time.

    Airflow 2 reads the run again for the callback, with the number after the clear. Nothing in the callback's process
    tells the two apart there: what was pushed after the end is left alone, with a warning, and the sweep cancels it.
    """
    ti = _task_instance(context)
    ended = _end_of_run(context)
    times = _by_name(ti, task_id, "pushed_at", names)
    late = [name for name in names if isinstance(name, str) and times.get(name, 0.0) > ended]
    if CALLBACK_HAS_RUN_AS_IT_ENDED and late and (cleared := clear_number_of(context)) is not None:
        numbers = _by_name(ti, task_id, "clear_number", late)
        late = [name for name in late if numbers.get(name, cleared + 1) > cleared]
    return _leave_alone(
        late, names, f"{task_id} has started it after the end of the run, so probably after it was cleared", log
    )


def _without_later_runs(names: list[object], context: Context, task_id: str, log: Any) -> list[object]:
    """Return the names that another task has started before the run was cleared, for the callback of a task.

    The callback of a lost task comes late, perhaps when the run was cleared and the other task has started a new
    ingest. Airflow counts how often a run is cleared. The context has the number of the time when the task began (in
    its worker), or when Airflow noticed that it is lost (Airflow 3). A name that was pushed under a higher number was
    started after a clear, which the task of the callback did not see.

    In the dag processor of Airflow 2 the number is read again, so nothing is left alone there. That cancels an ingest
    only where the run was cleared within the seconds between the loss of the task and its callback.
    """
    cleared = clear_number_of(context)
    if cleared is None:
        return names
    numbers = _by_name(_task_instance(context), task_id, "clear_number", names)
    later = [name for name in names if isinstance(name, str) and numbers.get(name, cleared) > cleared]
    return _leave_alone(later, names, f"{task_id} has started it after the run was cleared", log)


def _leave_alone(left: list[Any], names: list[object], why: str, log: Any) -> list[object]:
    for name in left:
        log.warning("Leaving %s alone: %s.", name, why)
    late = frozenset(left)
    return [name for name in names if not (isinstance(name, str) and name in late)]


def _by_name(ti: Any, task_id: str, field: str, names: list[Any]) -> dict[object, float]:
    """Return the numbers that a task has pushed with the names of its operations.

    :param field: of the XCom ``operation_started``.
    :raises AirflowException: when they cannot be read; the message names the operations.
    """
    try:
        values = pull_started(ti, task_id, None, field) if names else {}
    except NoXComsError:
        raise
    except Exception as error:
        started = ", ".join(map(str, names))
        raise AirflowException(f"{describe_error(error)}, so {started} may still run") from error
    return {name: numbers[-1] for name, numbers in values.items() if isinstance(numbers[-1], int | float)}


def _task_instance(context: Context) -> Any:
    ti = context.get("ti")
    if ti is None:
        raise AirflowException(
            "Airflow has passed no task instance to this callback, so the XComs of the run cannot be read. "
            "Give the notifier operation_name."
        )
    return ti


def _collect(reads: Iterable[tuple[str, Callable[[], list[T]]]]) -> tuple[list[T], list[str]]:
    """Return what all reads return, and a problem for each that fails.

    :param reads: functions, each with the id of the task that it reads from.
    :raises NoXComsError: where no task can be read.
    """
    results: list[T] = []
    problems: list[str] = []
    for task_id, read in reads:
        try:
            results += read()
        except NoXComsError:
            raise
        except Exception as error:
            # An exception of any other type is an error of Airflow, and not of the service.
            of_airflow = "" if isinstance(error, AirflowException) else "Airflow failed: "
            problems.append(f"Cannot read the operations started by {task_id}: {of_airflow}{describe_error(error)}")
    return results, problems
