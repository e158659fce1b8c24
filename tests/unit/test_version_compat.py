"""The differences between the versions of Airflow; states of task instances on a real metadata database."""

from __future__ import annotations

import asyncio
import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, BaseOperator, task
from airflow.triggers.base import BaseTrigger

from airflow_dai_provider.tasks.xcom import XCOM_STARTED, push_operations
from airflow_dai_provider.version_compat import (
    HAS_ASSET_STATE_STORE,
    HAS_TASK_STATE_STORE,
    TRIGGERS_HAVE_ON_KILL,
    asset_store,
    gets_xcoms,
    is_outage,
    is_unknown_asset,
    task_instance_state,
)
from tests.support.airflow_versions import HAS_SYNC_CALLBACKS, IS_AIRFLOW_2, VERSION, CallbackTrigger, deadline_names
from tests.support.dag_runs import RunDag
from tests.support.task_instance import Ti


def test_the_flags_follow_what_airflow_has() -> None:
    has_task_store, has_asset_store = (
        importlib.util.find_spec(f"airflow.models.{kind}_state_store") is not None for kind in ("task", "asset")
    )
    assert HAS_TASK_STATE_STORE is has_task_store
    assert HAS_ASSET_STATE_STORE is has_asset_store
    assert TRIGGERS_HAVE_ON_KILL is hasattr(BaseTrigger, "on_kill")


@pytest.mark.skipif(VERSION < (3,), reason="Airflow 2 reads the metadata database")
@pytest.mark.parametrize(("process", "gets"), [("worker", True), ("dag processor", VERSION >= (3, 1))])
def test_only_the_dag_processor_of_3_0_gets_no_xcoms(monkeypatch: pytest.MonkeyPatch, process: str, gets: bool) -> None:
    from airflow.dag_processing.processor import ToDagProcessor
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import ToTask
    from pydantic import TypeAdapter

    messages: Any = ToTask if process == "worker" else ToDagProcessor
    comms = SimpleNamespace(body_decoder=TypeAdapter(messages))
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", comms, raising=False)
    assert gets_xcoms() is gets


def test_no_test_is_skipped_that_this_airflow_could_run() -> None:
    assert (CallbackTrigger is not None) is bool(deadline_names()) is (VERSION >= (3, 1))
    assert HAS_SYNC_CALLBACKS is (VERSION >= (3, 2))
    assert HAS_TASK_STATE_STORE is HAS_ASSET_STATE_STORE is (VERSION >= (3, 3))
    assert IS_AIRFLOW_2 is (VERSION < (3,))
    assert hasattr(BaseOperator, "dry_run") is (VERSION != (3, 0))


@pytest.mark.skipif(VERSION < (3, 3), reason="Airflow before 3.3 has no state stores of assets")
class TestUnknownAsset:
    def test_the_store_of_an_asset_that_airflow_does_not_know(self, run_dag: RunDag) -> None:
        with DAG("unknown_asset") as dag:

            @task
            def write() -> list[bool]:
                try:
                    asset_store("no_such_asset").set("key", 1)
                except Exception as error:
                    return [is_unknown_asset(error, "no_such_asset"), is_unknown_asset(error, "another_asset")]
                return []

            write()
        assert run_dag(dag).xcom("write") == [True, False]

    @pytest.mark.parametrize("form", ["client", "supervisor"])
    @pytest.mark.parametrize(
        ("detail", "unknown"),
        [
            ({"reason": "not_found", "message": "Asset with name='an_asset' not found"}, True),
            ({"reason": "not_found", "message": "Task instance UUID('018f') not found"}, False),
            ("Not Found", False),
        ],
        ids=["asset", "task instance", "route"],
    )
    def test_only_its_own_404_tells_that(self, form: str, detail: Any, unknown: bool) -> None:
        assert is_unknown_asset(api_error(form, 404, detail), "an_asset") is unknown


def api_error(form: str, status: int, detail: Any = None) -> Exception:
    """Return the error of a response of the API server, as the client or the supervisor of a task passes it on."""
    import httpx
    from airflow.sdk.api.client import ServerResponseError
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time.comms import ErrorResponse

    request = httpx.Request("GET", "http://airflow.invalid/a/path")
    response = httpx.Response(status, json={"detail": detail or {"reason": "a_reason"}}, request=request)
    error = ServerResponseError.from_response(response)
    assert error
    if form == "client":
        return error
    told = {"status_code": status, "message": str(error), "detail": response.json()}
    return AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=told))


@pytest.mark.skipif(IS_AIRFLOW_2, reason="Airflow 2 has no API server for tasks")
class TestOutage:
    @pytest.mark.parametrize("form", ["client", "supervisor"])
    @pytest.mark.parametrize(("status", "outage"), [(403, False), (401, True), (500, True), (503, True)])
    def test_what_belongs_to_another_team_is_forbidden_and_no_outage(
        self, form: str, status: int, outage: bool
    ) -> None:
        assert is_outage(api_error(form, status)) is outage

    def test_no_response_is_an_outage_and_a_value_that_cannot_be_read_is_not(self) -> None:
        import httpx
        from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
        from airflow.sdk.execution_time.comms import ErrorResponse

        assert is_outage(httpx.ConnectError("refused"))
        assert is_outage(AirflowRuntimeError(ErrorResponse(error=ErrorType.GENERIC_ERROR, detail=None)))
        assert not is_outage(FileNotFoundError("s3://bucket/key"))


def test_a_trigger_without_a_task_instance_has_no_state() -> None:
    with pytest.raises(LookupError, match="no task instance"):
        asyncio.run(task_instance_state(None, XCOM_STARTED))


def test_a_trigger_reads_the_state_of_each_task_instance(run_dag: RunDag, airflow_2: bool) -> None:
    with DAG("states") as dag:

        @task
        def done() -> int:
            return 1

        @task
        def mapped(number: int, ti: Ti = None) -> int:
            push_operations(ti, {f"operations/{number}": 0.0}, many=False)
            return number

        @task
        def starts(ti: Ti = None) -> None:
            push_operations(ti, {"operations/a": 0.0}, many=False)

        @task
        def waits() -> None:
            """Push nothing, as a sensor does until it has finished."""

        @task(multiple_outputs=False)
        def read_states(dag_run: Any = None) -> dict[str, Any]:
            def state(task_id: str, map_index: int = -1, try_number: int = 1) -> str | None:
                # The attributes that a trigger has of its task instance.
                ti = SimpleNamespace(
                    dag_id="states", task_id=task_id, run_id=dag_run.run_id, map_index=map_index, try_number=try_number
                )
                return asyncio.run(task_instance_state(ti, XCOM_STARTED))

            states = {
                "done": state("done"),
                "mapped": state("mapped", 1),
                "never begun": state("later"),
                "no such task": state("gone"),
                "no such index": state("mapped", 7),
            }
            defer("starts", "waits", "mapped")
            return states | {
                "deferred": state("starts"),
                "deferred, mapped": state("mapped", 1),
                "deferred, nothing pushed": state("waits"),
                "a later try": state("starts", try_number=0),
                "a later try, mapped": state("mapped", 1, try_number=0),
                "a later try, nothing pushed": state("waits", try_number=0),
            }

        def defer(*task_ids: str) -> None:
            from airflow.models.taskinstance import TaskInstance
            from airflow.utils.session import create_session

            with create_session() as session:
                for ti in session.query(TaskInstance).filter_by(dag_id="states"):
                    ti.state = "deferred" if ti.task_id in task_ids else ti.state

        @task
        def later() -> None:
            """Start after the states were read."""

        [done(), mapped.expand(number=[1, 2]), starts(), waits()] >> read_states() >> later()

    # The run is left as it is: some of its tasks seem to be deferred forever.
    ran = run_dag(dag, stop_when_waiting=True)
    assert ran.xcom("read_states") == {
        "done": "success",
        "mapped": "success",
        "never begun": None,
        "no such task": None,
        "no such index": None,
        "deferred": "deferred",
        "deferred, mapped": "deferred",
        "deferred, nothing pushed": "deferred",
        # On Airflow 3.3 the next try reattaches to the same ingest, so only the state of the task counts.
        "a later try": "deferred" if HAS_TASK_STATE_STORE else None,
        "a later try, mapped": "deferred" if HAS_TASK_STATE_STORE else None,
        # Such a task waits for the ingest of another one, in every try. Airflow 2 knows the try number itself.
        "a later try, nothing pushed": None if airflow_2 else "deferred",
    }
