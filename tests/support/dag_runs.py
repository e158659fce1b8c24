"""Runs of a DAG on a real metadata database."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.clock import Clock

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import DAG


@pytest.fixture
def airflow_2() -> bool:
    from tests.support.airflow_versions import IS_AIRFLOW_2

    return IS_AIRFLOW_2


@pytest.fixture(scope="session")
def metadata_database() -> None:
    """Make the metadata database, once, when the first test asks for it."""
    migrated = subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"], capture_output=True, text=True, check=False
    )
    assert migrated.returncode == 0, migrated.stderr[-2000:]


@contextmanager
def damaged_xcom(run: Run, task_id: str, key: str, map_index: int = -1) -> Iterator[None]:
    """Replace the value of an XCom by one that cannot be read, for some time."""
    from airflow.utils.session import create_session

    from tests.support.airflow_versions import IS_AIRFLOW_2, first

    model = first("airflow.models.xcom:XComModel", "airflow.models.xcom:XCom")
    place = {"dag_id": run.dag_id, "run_id": run.run_id, "task_id": task_id, "key": key, "map_index": map_index}
    value: Any = b"{" if IS_AIRFLOW_2 else {"__classname__": "no.such.Class", "__version__": 1, "__data__": 1}
    with create_session() as session:
        (before,) = session.query(model.value).filter_by(**place).one()
        session.query(model).filter_by(**place).update({"value": value})
    yield
    with create_session() as session:
        session.query(model).filter_by(**place).update({"value": before})


#: So often ``dag.test()`` looks what it can do next.
MOST_LOOKS = 5000


class StillWaitingError(BaseException):
    """A run has nothing to do before time passes; raised to see it as it is then."""


@dataclass
class Run:
    """A run as the metadata database has it."""

    dag_id: str
    run_id: str

    @property
    def state(self) -> str:
        from airflow.models import DagRun

        return str(DagRun.find(dag_id=self.dag_id, run_id=self.run_id)[0].get_state())

    @property
    def tasks(self) -> dict[str, str]:
        """Return the state of each task instance, by ``task_id`` or ``task_id[map_index]``."""
        return {key: str(ti.state) for key, ti in self._task_instances().items()}

    def tries(self, key: str) -> int:
        return int(self._task_instances()[key].try_number)

    def xcom(self, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        from airflow.models import xcom
        from airflow.utils.session import create_session

        from tests.support.airflow_versions import IS_AIRFLOW_2

        where = {"dag_id": self.dag_id, "run_id": self.run_id, "task_id": task_id, "map_index": map_index, "key": key}
        with create_session() as session:
            if IS_AIRFLOW_2:
                return xcom.XCom.get_one(**where, session=session)
            found = session.query(xcom.XComModel).filter_by(**where).one_or_none()
            return None if found is None else xcom.XComModel.deserialize_value(found)

    def labels(self, task_id: str) -> list[str | None]:
        """Return what the grid shows of a mapped task, by map index."""
        return [ti.rendered_map_index for ti in self._task_instances().values() if ti.task_id == task_id]

    def _task_instances(self) -> dict[str, Any]:
        from airflow.models import DagRun
        from airflow.utils.session import create_session

        with create_session() as session:
            run = DagRun.find(dag_id=self.dag_id, run_id=self.run_id, session=session)[0]
            instances = run.get_task_instances(session=session)
        return {
            ti.task_id if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]": ti
            for ti in sorted(instances, key=lambda ti: (ti.task_id, ti.map_index))
        }


RunDag = Callable[..., Run]


@pytest.fixture
def run_dag(metadata_database: None, no_sleep: Clock, monkeypatch: pytest.MonkeyPatch) -> RunDag:
    """Run a DAG with ``dag.test()`` on the real metadata database, without sleeping.

    :param stop_when_waiting: leave the run as it is when nothing can be done before time passes, such as a retry
        delay.
    """

    def stop(_: float) -> None:
        raise StillWaitingError

    def run(dag: DAG, conf: dict[str, Any] | None = None, *, stop_when_waiting: bool = False) -> Run:
        from airflow.models import DagRun

        from tests.support.airflow_versions import register

        register(dag)
        looks, look = itertools.count(), DagRun.update_state

        def counted(dag_run: DagRun, *args: Any, **kwargs: Any) -> Any:
            # Airflow 2 goes on without a pause when a task can neither run nor fail.
            assert next(looks) < MOST_LOOKS, "This would go on forever."
            return look(dag_run, *args, **kwargs)

        with monkeypatch.context() as patches, suppress(StillWaitingError):
            patches.setattr(DagRun, "update_state", counted)
            if stop_when_waiting:
                patches.setattr(time, "sleep", stop)
            dag.test(run_conf=conf)
        last = max(DagRun.find(dag_id=dag.dag_id), key=lambda dag_run: dag_run.id)
        return Run(dag.dag_id, last.run_id)

    return run
