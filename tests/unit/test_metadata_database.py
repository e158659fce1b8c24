"""The metadata database, read by this process: XComs and states of real runs, and the state store of an asset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider import metadata_database
from airflow_dai_provider.ingest.ownership import ASSET
from airflow_dai_provider.tasks.xcom import XCOM_STARTED, push_operations
from airflow_dai_provider.version_compat import HAS_ASSET_STATE_STORE
from tests.support.airflow_versions import first
from tests.support.dag_runs import Run, RunDag, damaged_xcom
from tests.support.task_instance import Ti


@pytest.fixture
def run(run_dag: RunDag) -> Run:
    """Give a run of three map indexes, each of which has pushed an operation, and of a task that has failed."""
    with DAG("pushes") as dag:

        @task
        def pushes(number: int, ti: Ti = None) -> None:
            push_operations(ti, {f"operations/{number}": 0.0}, many=False)

        @task
        def fails() -> None:
            raise RuntimeError("as it is meant to")

        pushes.expand(number=[0, 1, 2])
        fails()
    return run_dag(dag)


def pushed(run: Run, **times: Any) -> dict[int, Any]:
    since = times.pop("since", datetime.now(UTC) - timedelta(minutes=10))
    times.setdefault("on_unreadable", pytest.fail)
    return {
        index: (*names, value["pushed_at"])
        for dag_id, run_id, *names, index, value in metadata_database.xcoms(XCOM_STARTED, since, **times)
        if (dag_id, run_id) == (run.dag_id, run.run_id)
    }


def test_the_xcoms_of_all_tasks_are_read_past_one_that_cannot_be(run: Run) -> None:
    unreadable: list[tuple[str, datetime]] = []
    with damaged_xcom(run, "pushes", XCOM_STARTED, 1):
        readable = pushed(run, on_unreadable=lambda *one: unreadable.append(one))
        with pytest.raises((ValueError, ImportError, TypeError)):
            metadata_database.run_xcom("pushes", run.run_id, "pushes", 1, XCOM_STARTED)
    assert readable == {index: ("pushes", {f"operations/{index}": 0.0}) for index in (0, 2)}
    told = f"Cannot read the XCom {XCOM_STARTED} of task pushes of run {run.run_id} of DAG pushes: "
    assert [text[: len(told)] for text, _ in unreadable] == [told]
    assert timedelta() < datetime.now(UTC) - unreadable[0][1] < timedelta(minutes=10)


def test_an_xcom_backend_may_use_the_database_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection can be there, and the session of a thread is one."""
    from airflow.settings import Session
    from airflow.utils.session import create_session
    from sqlalchemy import text

    backend = first("airflow.sdk.execution_time.xcom:XCom", "airflow.models.xcom:XCom")
    deserialize = backend.deserialize_value

    def look_up(row: Any) -> Any:
        assert not Session().in_transaction()
        with create_session() as session:
            session.execute(text("SELECT 1"))
        return deserialize(row)

    monkeypatch.setattr(backend, "deserialize_value", staticmethod(look_up))
    for rows in (1, 2, 3, 500):
        monkeypatch.setattr(metadata_database, "_ROWS", rows)
        assert sorted(pushed(run)) == [0, 1, 2]
    assert metadata_database.run_xcom("pushes", run.run_id, "pushes", 2, XCOM_STARTED)


def test_only_the_xcoms_of_a_time_are_read(run: Run) -> None:
    now = datetime.now(UTC)
    assert len(pushed(run, before=now + timedelta(minutes=1))) == 3
    assert pushed(run, since=now + timedelta(minutes=1)) == {}
    assert pushed(run, before=now - timedelta(minutes=5)) == {}


def test_the_states_of_tasks_and_runs(run: Run) -> None:
    states = metadata_database.task_states("pushes", [run.run_id, "no_such_run"])
    assert states == {run.run_id: {"fails": "failed", **{f"pushes_{index}": "success" for index in range(3)}}}
    assert metadata_database.task_states("pushes", [run.run_id], ["fails"]) == {run.run_id: {"fails": "failed"}}
    assert metadata_database.has_run("pushes", run.run_id)
    assert not metadata_database.has_run("pushes", "no_such_run")
    assert metadata_database.run_state("pushes", run.run_id) == "failed"


def test_one_xcom_of_a_run(run: Run) -> None:
    started = metadata_database.run_xcom("pushes", run.run_id, "pushes", 2, XCOM_STARTED)
    assert started["pushed_at"] == {"operations/2": 0.0}
    assert metadata_database.run_xcom("pushes", run.run_id, "pushes", 7, XCOM_STARTED) is None


def test_connections_are_found_as_airflow_finds_them(metadata_database_connection: str) -> None:
    from airflow.providers.common.compat.sdk import BaseHook

    assert BaseHook.get_connection(metadata_database_connection).extra_dejson == {"num_retries": 2}


@pytest.fixture
def metadata_database_connection(metadata_database: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Give the id of a connection that only the database has, to a process that finds it there."""
    from airflow.models import Connection
    from airflow.utils.session import create_session

    from airflow_dai_provider.metadata_database import find_connections

    monkeypatch.setitem(os.environ, "_AIRFLOW_PROCESS_CONTEXT", "client")
    find_connections()
    conn_id = "only_in_database"
    with create_session() as session:
        session.add(Connection(conn_id=conn_id, conn_type="google_cloud_platform", extra='{"num_retries": 2}'))
    yield conn_id
    with create_session() as session:
        session.query(Connection).filter_by(conn_id=conn_id).delete()


class TestAssetStore:
    @pytest.mark.usefixtures("metadata_database")
    def test_there_is_none_for_an_unknown_asset(self) -> None:
        assert metadata_database.find_asset_store("no such asset") is None

    @pytest.mark.skipif(not HAS_ASSET_STATE_STORE, reason="Only Airflow 3.3 and later have a state store of assets")
    @pytest.mark.usefixtures("asset")
    def test_it_keeps_values(self) -> None:
        store = metadata_database.find_asset_store(ASSET)
        assert store is not None
        store.set("owner-a", {"a": [1]})
        store.set("owner-a", {"a": [2]})
        store.set("other", 3)
        assert (store.get("owner-a"), store.get("owner-b")) == ({"a": [2]}, None)
        assert store.values("owner-") == [{"a": [2]}]
        store.set("owner-b", {"__airflow_state_ref__": "s3://bucket/key"})
        for read in (store.get, store.values):
            with pytest.raises(LookupError, match=r"in the \[workers\] state_store_backend, which only tasks read"):
                read("owner-b")
        store.delete("owner-b")
        store.delete("owner-a")
        assert (store.get("owner-a"), store.values("owner-"), store.get("other")) == (None, [], 3)
