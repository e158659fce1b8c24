"""The differences between the versions of Airflow that ``airflow.providers.common.compat`` does not cover."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any

from airflow import __version__ as airflow_version

from airflow_dai_provider import metadata_database

_AIRFLOW = tuple(map(int, airflow_version.split(".")[:2]))

#: Whether Airflow calls ``on_kill`` of a trigger; before, it only cancels the coroutine.
TRIGGERS_HAVE_ON_KILL = _AIRFLOW >= (3, 3)
#: The message with which Airflow cancels the coroutine of a trigger when it calls ``on_kill``.
USER_ACTION = "__airflow_user_action__"
#: Whether Airflow can kill the process of a task that has deferred, when the process is slow to exit.
KILLS_DEFERRED_PROCESS = _AIRFLOW < (3, 0)
#: Whether the callback of a DAG is given the run as it was when it ended; before, the callback reads it again.
CALLBACK_HAS_RUN_AS_IT_ENDED = _AIRFLOW >= (3, 0)
#: Whether a task can save something for its next try, in the task state store; and for other tasks, in an asset's.
HAS_TASK_STATE_STORE = HAS_ASSET_STATE_STORE = _AIRFLOW >= (3, 3)
#: Whether a task can read the metadata database.
TASKS_READ_DATABASE = _AIRFLOW < (3, 0)


def first_poke_time(sensor: Any, context: Any) -> datetime | None:
    """Return when a sensor in reschedule mode first poked, even if before a clear or a retry; None during that poke.

    The sensor base itself counts the sensor's timeout from this time.
    """
    ti = context["ti"]
    if _AIRFLOW >= (3, 0):
        first: datetime | None = ti.get_first_reschedule_date(context)
        return first
    from airflow.sensors import base  # type: ignore[attr-defined]

    first_try = (ti.max_tries or 0) - (sensor.retries or 0) + 1
    date: datetime | None = base._orig_start_date(
        dag_id=ti.dag_id, task_id=ti.task_id, run_id=ti.run_id, map_index=ti.map_index, try_number=first_try
    )
    return date


async def task_instance_state(ti: Any, started_key: str) -> str | None:
    """Return the state of a task instance, from the triggerer.

    :param ti: what Airflow has set as the trigger's ``task_instance``.
    :param started_key: the XCom whose ``try_number`` is that of the try that has started the ingest. Airflow tells the
        triggerer no try number.
    :return: the state; None for one without a state, and for one that is gone; before Airflow 3.3 also where it is a
        later try that is deferred, which waits for an ingest of its own.
    """
    if ti is None:
        raise LookupError("Airflow has told the trigger no task instance.")
    # Imported here, since operators ask this module too, and their DAG files are parsed often.
    from asgiref.sync import sync_to_async

    return await sync_to_async(_state, thread_sensitive=False)(ti, started_key)


def _state(ti: Any, started_key: str) -> str | None:
    try:
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
    except ImportError:
        return _state_in_database(ti)
    states = RuntimeTaskInstance.get_task_states(
        dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index
    )
    key = ti.task_id if ti.map_index is None or ti.map_index < 0 else f"{ti.task_id}_{ti.map_index}"
    state = states.get(ti.run_id, {}).get(key)
    if state is None or (state == "deferred" and not HAS_TASK_STATE_STORE and _of_later_try(ti, started_key)):
        return None
    return str(getattr(state, "value", state))


def _of_later_try(ti: Any, started_key: str) -> bool:
    """Return whether another try than this one has started the ingest that the task waits for."""
    index = -1 if ti.map_index is None else ti.map_index
    started = run_xcom(ti.dag_id, ti.run_id, ti.task_id, index, started_key)
    return isinstance(started, Mapping) and started.get("try_number") not in (None, ti.try_number)


def _state_in_database(ti: Any) -> str | None:
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        found = session.get(TaskInstance, (ti.dag_id, ti.task_id, ti.run_id, ti.map_index))
        return found.state if found and found.try_number == ti.try_number else None


def is_resumed(ti: Any) -> bool:
    """Return whether the process of a task instance resumes it after a deferral."""
    of_airflow_3 = getattr(ti, "_ti_context_from_server", None)
    return bool(getattr(of_airflow_3, "next_method", None) or getattr(ti, "next_method", None))


def run_task_states(dag_id: str, run_id: str, task_ids: list[str] | None = None) -> dict[str, Any]:
    """Return the states of a run's task instances; in the triggerer of Airflow 3, from a thread.

    :param task_ids: only those of these tasks.
    :return: the states, by task id; of a mapped one by ``<task id>_<map index>``.
    """
    return task_states(dag_id, [run_id], task_ids).get(run_id, {})


def task_states(dag_id: str, run_ids: list[str], task_ids: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return by run the states of task instances, as :func:`run_task_states` does for one run.

    Map index 3 of a task ``a`` and a task ``a_3`` are named alike: ask for one task at a time.
    """
    if TASKS_READ_DATABASE:
        return metadata_database.task_states(dag_id, run_ids, task_ids)
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    states: dict[str, dict[str, Any]] = RuntimeTaskInstance.get_task_states(
        dag_id=dag_id, task_ids=task_ids, run_ids=run_ids
    )
    return states


def has_run(dag_id: str, run_id: str) -> bool:
    """Return whether a run exists; reading its state would fail alike for a deleted run and in an outage of Airflow."""
    if TASKS_READ_DATABASE:
        return metadata_database.has_run(dag_id, run_id)
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    return RuntimeTaskInstance.get_dr_count(dag_id=dag_id, run_ids=[run_id]) > 0


def run_state(dag_id: str, run_id: str) -> str:
    """Return the state of a run that exists."""
    if TASKS_READ_DATABASE:
        return metadata_database.run_state(dag_id, run_id)
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    state: Any = RuntimeTaskInstance.get_dagrun_state(dag_id=dag_id, run_id=run_id)
    # An enumeration under dag.test(), a text in a worker.
    return str(getattr(state, "value", state))


def asset_store(name: str) -> Any:
    """Return the state store of an asset, which every task can read and write.

    Not the one of the context, which only has the assets among a task's inlets and outlets: a mapped task's context is
    built before its constructor runs, and an inactive asset ends an unmapped task before ``execute``.
    """
    from airflow.sdk.execution_time.context import AssetStateStoreAccessor

    return AssetStateStoreAccessor(name=name)


def is_unknown_asset(error: Exception, name: str) -> bool:
    """Return whether the state store of an asset has failed because Airflow does not know the asset.

    The API server also returns 404 when it does not know the task instance; only the message tells the two apart.

    :param error: from the supervisor of the task; under ``dag.test()`` from the client of the API server.
    :param name: of the asset.
    """
    match getattr(error, "detail", None), getattr(getattr(error, "error", None), "detail", None):
        case ({"reason": "not_found", "message": str(message)}, _) | (
            _,
            {"detail": {"detail": {"reason": "not_found", "message": str(message)}}},
        ):
            return name in message
    return False


def is_outage(error: Exception) -> bool:
    """Return whether a read from Airflow 3 has failed because of its API server, and not because of what was read.

    :param error: see :func:`is_unknown_asset`. Any other comes from the code that restores a value: a backend of the
        user's, whose object can be gone, or a class that does not load. Of an XCom of another team, the API server
        responds that it is forbidden, and will do so again.
    """
    if TASKS_READ_DATABASE:
        return False
    from airflow.sdk.exceptions import AirflowRuntimeError
    from httpx import HTTPError

    return isinstance(error, AirflowRuntimeError | HTTPError) and _status_of(error) != HTTPStatus.FORBIDDEN


def _status_of(error: Exception) -> int | None:
    """Return the HTTP status with which the API server has responded, None where it has not."""
    detail = getattr(getattr(error, "error", None), "detail", None)
    if isinstance(detail, Mapping):
        return detail.get("status_code")
    return getattr(getattr(error, "response", None), "status_code", None)


def run_xcom(dag_id: str, run_id: str, task_id: str, map_index: int, key: str) -> Any:
    """Return one XCom of a run, or None; in the triggerer of Airflow 3, from a thread."""
    from airflow.sdk.execution_time.xcom import XCom

    return XCom.get_one(dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index, key=key)


def gets_xcoms() -> bool:
    """Return whether requests for XComs get a response here; the dag processor of Airflow 3.0 waits for it forever."""
    try:
        from airflow.sdk.execution_time import task_runner
    except ImportError:
        return True
    decoder = getattr(getattr(task_runner, "SUPERVISOR_COMMS", None), "body_decoder", None)
    if decoder is None:
        return True
    try:
        decoder.validate_python({"type": "XComResult", "key": "", "value": None})
    except ValueError:
        return False
    return True


def lacks_supervisor(error: ImportError) -> bool:
    """Return whether an XCom could not be read because there is no process to ask, and not because of its value."""
    return error.name == "airflow.sdk.execution_time.task_runner"
