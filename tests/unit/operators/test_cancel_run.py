"""DaiCancelOperationOperator on the real metadata database, by ``dag.test()``."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.operators.dai import DaiCancelOperationOperator
from airflow_dai_provider.sensors.dai import DaiOperationSensor
from tests.support.connections import define_connection
from tests.support.dag_runs import RunDag
from tests.support.emulators import MakeEmulator, count

CANCEL = "operations.cancel"
NAME = "operations/my-ingest"


class TestRun:
    @staticmethod
    def dag(dag_id: str, **options: Any) -> Any:
        with DAG(dag_id, schedule=None) as dag:
            DaiCancelOperationOperator(task_id="cancel", **{"operation_name": NAME, **options})
        return dag

    def test_the_name_from_another_task_is_used_and_returned(self, emulator: DaiEmulator, run_dag: RunDag) -> None:
        emulator.start_ingest(NAME, cancel_seconds=7)
        with DAG("operator_chain", schedule=None, params={"operation": NAME}) as dag:

            @task
            def start(params: dict) -> str:
                return str(params["operation"])

            DaiCancelOperationOperator(task_id="cancel", operation_name=start(), wait_for_completion=True)
        run = run_dag(dag)
        assert run.state == "success"
        assert run.xcom("cancel") == NAME
        assert run.xcom("cancel", "operation")["state"] == "CANCELLED"

    @pytest.mark.parametrize("given", ["{{ params.nothing }}", "{{ ti.xcom_pull(task_ids='cancel') }}"])
    def test_a_name_that_no_task_pushed_spends_no_retry(
        self, emulator: DaiEmulator, run_dag: RunDag, given: str
    ) -> None:
        with DAG("operator_no_name", schedule=None, params={"nothing": ""}) as dag:
            DaiCancelOperationOperator(task_id="cancel", operation_name=given, retries=3)
        run = run_dag(dag)
        assert run.tasks == {"cancel": "failed"}
        assert run.tries("cancel") == 1
        assert emulator.requests == []

    def test_each_map_index_cancels_its_own_operation(self, emulator: DaiEmulator, run_dag: RunDag) -> None:
        names = [emulator.start_ingest(f"operations/ad-{number}") for number in range(3)]
        with DAG("operator_mapped", schedule=None) as dag:
            DaiCancelOperationOperator.partial(task_id="cancel", retries=3).expand(
                operation_name=[*names, "operations/never"]
            )
        run = run_dag(dag)
        assert run.tasks == {**{f"cancel[{index}]": "success" for index in range(3)}, "cancel[3]": "failed"}
        assert [run.xcom("cancel", map_index=index) for index in range(3)] == names
        assert set(emulator.states().values()) == {"CANCELLED"}
        assert run.tries("cancel[3]") == 1

    @pytest.mark.parametrize("native", [False, True], ids=["text", "native"])
    @pytest.mark.parametrize("given", ["the output", "a template"])
    def test_the_output_of_a_mapped_task_is_a_list(
        self, emulator: DaiEmulator, run_dag: RunDag, given: str, native: bool
    ) -> None:
        names = [emulator.start_ingest(f"operations/ad-{number}") for number in range(3)]
        with DAG(
            f"operator_of_mapped_{given[-4:]}_{native}", schedule=None, render_template_as_native_obj=native
        ) as dag:

            @task
            def start(name: str) -> str:
                return name

            started = start.expand(name=names)
            template = "{{ ti.xcom_pull(task_ids='start') | list }}"
            operations: Any = started if given == "the output" else template
            cancel = DaiCancelOperationOperator(
                task_id="cancel", operation_name=operations, wait_for_completion=True, poll_interval=0.1
            )
            wait = DaiOperationSensor(task_id="wait", operation_name=cancel.output)
            started >> cancel >> wait
        run = run_dag(dag)
        assert run.state == "success"
        assert run.xcom("cancel") == names
        assert [one["name"] for one in run.xcom("cancel", "operation")] == names
        assert [one["state"] for one in run.xcom("wait")] == ["CANCELLED"] * 3

    def test_unimplemented_spends_no_retry(self, emulator: DaiEmulator, run_dag: RunDag) -> None:
        emulator.start_ingest(NAME)
        emulator.unimplement(CANCEL)
        run = run_dag(self.dag("operator_unimplemented", retries=3))
        assert run.tasks == {"cancel": "failed"}
        assert run.tries("cancel") == 1
        assert count(emulator, CANCEL) == 1
        assert emulator.state(NAME) == "RUNNING"

    def test_two_transient_errors_spend_no_retry(self, emulator: DaiEmulator, run_dag: RunDag) -> None:
        emulator.start_ingest(NAME)
        emulator.inject(Fault(method=CANCEL, status=503, times=2))
        run = run_dag(self.dag("operator_transient", retries=3))
        assert run.tasks == {"cancel": "success"}
        assert run.tries("cancel") == 1
        assert count(emulator, CANCEL) == 3

    def test_a_service_that_stays_down_leaves_the_task_to_its_retries(
        self, emulator: DaiEmulator, run_dag: RunDag
    ) -> None:
        emulator.start_ingest(NAME)
        emulator.inject(Fault(method=CANCEL, status=503, times=None))
        dag = self.dag("operator_down", retries=3, retry_delay=timedelta(hours=1))
        run = run_dag(dag, stop_when_waiting=True)
        assert run.tasks == {"cancel": "up_for_retry"}
        assert run.state == "running"
        assert run.tries("cancel") == 1
        assert count(emulator, CANCEL) == 6  # once, and the five retries that are the default

    def test_a_retry_ends_an_outage(self, emulator: DaiEmulator, run_dag: RunDag) -> None:
        emulator.start_ingest(NAME)
        emulator.inject(Fault(method=CANCEL, status=503, times=7))
        run = run_dag(self.dag("operator_recovers", retries=3, retry_delay=timedelta(0)))
        assert run.tasks == {"cancel": "success"}
        assert run.tries("cancel") == 2
        assert emulator.state(NAME) == "CANCELLED"

    def test_the_connection_sets_the_endpoint_and_the_retries(
        self, emulator: DaiEmulator, run_dag: RunDag, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("DAI_EMULATOR_HOST")
        extra = {"is_anonymous": True, "num_retries": 2, "dai_api_endpoint": emulator.endpoint}
        define_connection(monkeypatch, "dai", **extra)
        emulator.start_ingest(NAME)
        emulator.inject(Fault(method=CANCEL, status=503, times=None))
        run = run_dag(self.dag("operator_connection", gcp_conn_id="dai", retries=1, retry_delay=timedelta(0)))
        assert run.tasks == {"cancel": "failed"}
        assert run.tries("cancel") == 2
        assert count(emulator, CANCEL) == 2 * 3

    def test_an_argument_overrides_the_emulator_of_the_environment(
        self, make_emulator: MakeEmulator, run_dag: RunDag, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        meant, other = make_emulator(), make_emulator()
        define_connection(monkeypatch, "dai", is_anonymous=True)
        meant.start_ingest(NAME)
        run = run_dag(self.dag("operator_endpoint", gcp_conn_id="dai", api_endpoint=meant.endpoint))
        assert run.state == "success"
        assert meant.state(NAME) == "CANCELLED"
        assert other.requests == []
