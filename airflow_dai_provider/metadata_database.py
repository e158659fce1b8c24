"""Reads of the metadata database: task instances, runs, XComs, the state store of an asset, and connections.

A command line can read it on every version of Airflow, and a task on Airflow 2. A task of Airflow 3 asks the API server
instead, see :mod:`airflow_dai_provider.version_compat`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from datetime import datetime
from typing import Any

log = logging.getLogger(__name__)

#: How many rows are read at a time.
_ROWS = 500


def find_connections() -> None:
    """Let this process find the connections in the database, as Airflow's own ``airflow connections get`` does.

    Airflow 3 looks there in its own processes only, which it knows by this variable. Airflow 2 always does.
    """
    os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"


def task_states(dag_id: str, run_ids: list[str], task_ids: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return by run the states of task instances; of a mapped one by ``<task id>_<map index>``."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    # Not whole task instances, of which Airflow loads the runs too.
    columns = (TaskInstance.run_id, TaskInstance.task_id, TaskInstance.map_index, TaskInstance.state)
    states: dict[str, dict[str, Any]] = {}
    with create_session() as session:
        query = session.query(*columns).filter(TaskInstance.dag_id == dag_id, TaskInstance.run_id.in_(run_ids))
        if task_ids is not None:
            query = query.filter(TaskInstance.task_id.in_(task_ids))
        for run_id, task_id, map_index, state in query:
            states.setdefault(run_id, {})[task_id if map_index < 0 else f"{task_id}_{map_index}"] = state
    return states


def has_run(dag_id: str, run_id: str) -> bool:
    """Return whether a run exists."""
    from airflow.models import DagRun

    return bool(DagRun.find(dag_id=dag_id, run_id=run_id))


def run_state(dag_id: str, run_id: str) -> str:
    """Return the state of a run that exists."""
    from airflow.models import DagRun

    (run,) = DagRun.find(dag_id=dag_id, run_id=run_id)
    return str(run.get_state())


def run_xcom(dag_id: str, run_id: str, task_id: str, map_index: int, key: str) -> Any:
    """Return one XCom of a run, or None; one that cannot be read counts as None."""
    place: dict[str, Any] = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index}
    return next((value for *_, value in _xcoms(key, **place)), None)


def xcoms(key: str, since: datetime, before: datetime | None = None) -> Iterator[tuple[str, str, str, int, Any]]:
    """Yield the XComs of all tasks with a key.

    :param since: the earliest time of one.
    :param before: the first time that is too late, or None.
    :return: of each the DAG, the run, the task, the map index, and the value.
    """
    yield from _xcoms(key, since, before)


def _xcoms(
    key: str, since: datetime | None = None, before: datetime | None = None, **place: Any
) -> Iterator[tuple[str, str, str, int, Any]]:
    from airflow.models import xcom
    from airflow.utils.session import create_session

    # Airflow 3 has the rows in a class of their own, apart from the backend that reads their values.
    model = getattr(xcom, "XComModel", None) or xcom.XCom
    try:
        from airflow.sdk.execution_time.xcom import XCom as Backend
    except ImportError:
        Backend = xcom.XCom  # noqa: N806
    # Not whole XComs, which deserialize their values while they are loaded, and raise there.
    columns = (model.dag_id, model.run_id, model.task_id, model.map_index, model.value)
    with create_session() as session:
        query = session.query(*columns).filter(model.key == key).filter_by(**place)
        if since is not None:
            query = query.filter(model.timestamp >= since)
        if before is not None:
            query = query.filter(model.timestamp < before)
        for one in query.yield_per(_ROWS):
            try:
                value = Backend.deserialize_value(one)
            except Exception as error:
                # Of code of a user, or of another version; it must not keep all others from being read.
                where = f"{one.task_id} of run {one.run_id} of DAG {one.dag_id}"
                log.warning("Cannot read the XCom %s of task %s: %s", key, where, type(error).__name__)
            else:
                yield one.dag_id, one.run_id, one.task_id, one.map_index, value


class AssetStore:
    """The state store of an asset, as the API server of Airflow 3.3 and later keeps it.

    :param asset_id: see :func:`find_asset_store`.
    """

    def __init__(self, asset_id: int) -> None:
        from airflow.state import AssetScope, get_state_backend

        self._scope: Any = AssetScope(asset_id=asset_id)
        self._backend: Any = get_state_backend()

    def get(self, key: str) -> Any:
        """Return the value of a key, or None."""
        found = self._backend.get(self._scope, key)
        return None if found is None else json.loads(found)

    def set(self, key: str, value: Any) -> None:
        """Replace the value of a key."""
        self._backend.set(self._scope, key, json.dumps(value))

    def delete(self, key: str) -> None:
        """Remove a key."""
        self._backend.delete(self._scope, key)

    def values(self, prefix: str) -> list[Any] | None:
        """Return the values of all keys that begin so, in one read; None where Airflow keeps them elsewhere."""
        from airflow.models.asset_state_store import AssetStateStoreModel as Row
        from airflow.state.metastore import MetastoreBackend
        from airflow.utils.session import create_session

        if not isinstance(self._backend, MetastoreBackend):
            return None
        with create_session() as session:
            query = session.query(Row.value).filter(Row.asset_id == self._scope.asset_id, Row.key.startswith(prefix))
            return [json.loads(value) for (value,) in query.yield_per(_ROWS)]


def find_asset_store(name: str) -> AssetStore | None:
    """Return the state store of an asset; None where Airflow does not know the asset, or has no such stores."""
    try:
        from airflow.models.asset import AssetModel
        from airflow.state import get_state_backend  # noqa: F401 - before Airflow 3.3 there is none
    except ImportError:
        return None
    from airflow.utils.session import create_session

    with create_session() as session:
        found = session.query(AssetModel.id).filter(AssetModel.name == name, AssetModel.active.has()).first()
    return AssetStore(found[0]) if found else None
