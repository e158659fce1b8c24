"""Reads of the metadata database: task instances, runs, XComs, the state store of an asset, and connections.

A command line can read it on every version of Airflow, and a task on Airflow 2. A task of Airflow 3 asks the API server
instead, see :mod:`airflow_dai_provider.version_compat`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

#: How many rows are read at a time. The XCom of a list of 10,000 has half a megabyte.
_ROWS = 100
#: The key of a reference to a value that ``[workers] state_store_backend`` keeps.
_REFERENCE = "__airflow_state_ref__"


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
    """Return one XCom of a run, or None.

    :raises Exception: when its value cannot be read.
    """
    model, backend = _xcom_classes()
    place = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index, "key": key}
    return next((backend.deserialize_value(row) for row in _xcom_rows(model, **place)), None)


def xcoms(
    key: str, since: datetime, before: datetime | None = None, *, on_unreadable: Callable[[str, datetime], object]
) -> Iterator[tuple[str, str, str, int, Any]]:
    """Yield the XComs of all tasks with a key.

    :param since: the earliest time of one.
    :param before: the first time that is too late, or None.
    :param on_unreadable: called for each XCom whose value cannot be read, with a sentence on it and its time.
    :return: for each XCom, the DAG id, the run id, the task id, the map index and the value.
    """
    model, backend = _xcom_classes()
    times = [model.timestamp >= since] if before is None else [model.timestamp >= since, model.timestamp < before]
    for row in _xcom_rows(model, *times, key=key):
        try:
            value = backend.deserialize_value(row)
        except Exception as error:
            # Of code of a user, or of another version; it must not keep all others from being read.
            where = f"{row.task_id} of run {row.run_id} of DAG {row.dag_id}"
            on_unreadable(f"Cannot read the XCom {key} of task {where}: {type(error).__name__}", row.timestamp)
        else:
            yield row.dag_id, row.run_id, row.task_id, row.map_index, value


def _xcom_classes() -> tuple[Any, Any]:
    """Return the class of the rows, and the backend that reads their values; Airflow 2 has one class for both."""
    from airflow.models import xcom

    try:
        from airflow.sdk.execution_time.xcom import XCom as Backend
    except ImportError:
        Backend = xcom.XCom  # noqa: N806
    return getattr(xcom, "XComModel", None) or xcom.XCom, Backend


def _xcom_rows(model: Any, *conditions: Any, **equal: Any) -> Iterator[Any]:
    """Yield rows of XComs, while no session is open: a backend can open one in this thread, which is the same one."""
    from airflow.utils.session import create_session
    from sqlalchemy import tuple_

    place = (model.dag_run_id, model.task_id, model.map_index)
    # Not whole XComs, which deserialize their values while they are loaded, and raise there.
    columns = (*place, model.dag_id, model.run_id, model.value, model.timestamp)
    rows: list[Any] | None = None
    while rows is None or len(rows) == _ROWS:
        with create_session() as session:
            query = session.query(*columns).filter(*conditions).filter_by(**equal)
            if rows:
                query = query.filter(tuple_(*place) > tuple_(*rows[-1][: len(place)]))
            rows = query.order_by(*place).limit(_ROWS).all()
        yield from rows


class AssetStore:
    """The state store of an asset, as the API server of Airflow 3.3 and later keeps it.

    :param asset_id: see :func:`find_asset_store`.
    """

    def __init__(self, asset_id: int) -> None:
        from airflow.state import AssetScope, get_state_backend

        self._scope: Any = AssetScope(asset_id=asset_id)
        self._backend: Any = get_state_backend()

    def get(self, key: str) -> Any:
        """Return the value of a key, or None.

        :raises LookupError: when tasks keep it elsewhere.
        """
        found = self._backend.get(self._scope, key)
        return None if found is None else _read(found)

    def set(self, key: str, value: Any) -> None:
        """Replace the value of a key."""
        self._backend.set(self._scope, key, json.dumps(value))

    def delete(self, key: str) -> None:
        """Remove a key."""
        self._backend.delete(self._scope, key)

    def values(self, prefix: str) -> list[Any] | None:
        """Return the values of all keys with a prefix, in one read; None where Airflow keeps them elsewhere.

        :raises LookupError: when tasks keep a value elsewhere, so that only tasks can read it.
        """
        from airflow.models.asset_state_store import AssetStateStoreModel as Row
        from airflow.state.metastore import MetastoreBackend
        from airflow.utils.session import create_session

        if not isinstance(self._backend, MetastoreBackend):
            return None
        with create_session() as session:
            query = session.query(Row.value).filter(Row.asset_id == self._scope.asset_id, Row.key.startswith(prefix))
            return [_read(value) for (value,) in query.yield_per(_ROWS)]


def _read(stored: str) -> Any:
    """Return a value.

    :raises LookupError: when it is a mere reference, as tasks with a backend of their own leave it.
    """
    value = json.loads(stored)
    if isinstance(value, dict) and _REFERENCE in value:
        raise LookupError("the records of owners are in the [workers] state_store_backend, which only tasks read")
    return value


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
