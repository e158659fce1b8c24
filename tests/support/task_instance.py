"""Stand-ins for what a task has of Airflow in its context: its task instance, and its store across tries."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

TEMPLATE = "{{ dag_run.conf.x }}"
#: Fields of operators and sensors that Airflow renders.
TEMPLATED = frozenset(
    {
        *("operation_name", "expected_states", "creative", "dynamic_creative_info", "creative_name"),
        *("older_than", "orphaned_for", "url_prefix", "url_pattern", "spare"),
        *("gcp_conn_id", "impersonation_chain", "api_endpoint"),
    }
)


@dataclass
class Ti:
    """Stands in for the task instance of a context where a test calls ``execute`` or a callback by itself.

    It imitates the two ways in which this project reads XComs, as both versions of Airflow answer them:
    a list of task ids without map indexes gives the values of every map index, in their order (Airflow 2: a lazy
    sequence, empty where nothing was pushed; Airflow 3: a list, which holds None where nothing was pushed), and one
    task id with one map index gives the value or None. Anything else is an error here. What a sensor in reschedule
    mode asks for its start is "none yet".
    """

    task_id: str = "start_ingest"
    map_index: int = -1
    try_number: int = 1
    dag_id: str = "a_dag"
    run_id: str = "a_run"
    max_tries: int = 0
    pushed: dict[tuple[str, int, str], Any] = field(default_factory=dict)

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[self.task_id, self.map_index, key] = value

    def xcom_pull(self, task_ids: str | list[str], key: str, *, map_indexes: int | None = None) -> Any:
        from tests.support.airflow_versions import IS_AIRFLOW_2

        if isinstance(task_ids, str):
            assert isinstance(map_indexes, int), "What the versions of Airflow answer then differs."
            return self.pushed.get((task_ids, map_indexes, key))
        assert map_indexes is None
        (task_id,) = task_ids
        found = sorted(
            (index, value) for (task, index, its), value in self.pushed.items() if (task, its) == (task_id, key)
        )
        values = [value for _, value in found]
        return tuple(values) if IS_AIRFLOW_2 else values or [None]

    def get_first_reschedule_date(self, _: Any) -> None:
        return None

    def of_other_task(self, task_id: str, key: str, value: Any, map_index: int = -1) -> None:
        """Have another task of the run, or another map index, push something."""
        self.pushed[task_id, map_index, key] = value


def rendered(make: Callable[..., Any], **options: Any) -> Any:
    """Return a task whose template fields have rendered to these values, which the DAG file did not show.

    :param make: returns a task, from its parameters.
    """
    fields = {name for name, value in options.items() if name in TEMPLATED and value is not None}
    task = make(**options | dict.fromkeys(fields, TEMPLATE))
    for name in fields:
        setattr(task, name, options[name])
    return task


@pytest.fixture
def make_ti() -> type[Ti]:
    return Ti


@pytest.fixture
def ti() -> Ti:
    return Ti()


@dataclass
class Store:
    """Stand in for Airflow's task state store in a worker of 3.3; it outlives tries and clears."""

    kept: dict[str, Any] = field(default_factory=dict)
    broken: bool = False
    asked: list[str] = field(default_factory=list)

    def get(self, key: str) -> Any:
        self._check()
        return self.kept.get(key)

    def set(self, key: str, value: Any) -> None:
        self._check()
        self.kept[key] = json.loads(json.dumps(value))

    def delete(self, key: str) -> None:
        self._check()
        self.kept.pop(key, None)

    def _check(self) -> None:
        self.asked.append("once")
        if self.broken:
            raise RuntimeError("the API server is unavailable")


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Store:
    """Give the store that all tasks share, on every version."""
    kept = Store()
    for module in ("ingest.own_record", "sweep.owners"):
        monkeypatch.setattr(f"airflow_dai_provider.{module}.asset_store", lambda _: kept)
        monkeypatch.setattr(f"airflow_dai_provider.{module}.HAS_ASSET_STATE_STORE", True)
    return kept
