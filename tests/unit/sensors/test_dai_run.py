"""DaiOperationSensor on the real metadata database, by ``dag.test()``."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.operators.dai import DaiCancelOperationOperator
from airflow_dai_provider.sensors.dai import DaiOperationSensor
from tests.support.airflow_versions import VERSION
from tests.support.clock import Clock
from tests.support.dag_runs import RunDag
from tests.support.log import Log
from tests.unit.sensors.test_dai import ENDS, GRACE_POLLS, MODES, NAME, end


class TestRun:
    """On the real metadata database, by ``dag.test()``."""

    @staticmethod
    def dag(dag_id: str, **options: Any) -> Any:
        with DAG(dag_id, schedule=None) as dag:
            DaiOperationSensor(task_id="wait", **{"operation_name": NAME, "poke_interval": 0.001, **options})
        return dag

    @MODES
    def test_it_takes_the_output_of_the_cancel_operator(
        self, emulator: DaiEmulator, run_dag: RunDag, clock: Clock, mode: str
    ) -> None:
        if mode == "reschedule" and VERSION == (3, 0):
            pytest.skip("dag.test() of Airflow 3.0 breaks at the second poke of any sensor in this mode")
        emulator.start_ingest(NAME, cancel_seconds=60)
        clock.step = 1
        with DAG(f"sensor_after_cancel_{mode}", schedule=None, params={"operation": NAME}) as dag:
            cancel = DaiCancelOperationOperator(task_id="cancel", operation_name="{{ params.operation }}")
            DaiOperationSensor(task_id="wait", operation_name=cancel.output, mode=mode, poke_interval=0.01)
        run = run_dag(dag)
        assert run.tasks == {"cancel": "success", "wait": "success"}
        assert run.xcom("wait")["state"] == "CANCELLED"
        assert len(emulator.requests) > 5
        assert run.tries("wait") == 1

    @MODES
    @pytest.mark.parametrize(
        ("state", "options", "expected"),
        [
            pytest.param("CANCELLED", {}, "success", id="cancelled"),
            pytest.param("SUCCEEDED", {}, "success", id="succeeded"),
            pytest.param("FAILED", {}, "failed", id="failed"),
            pytest.param("FAILED", {"soft_fail": True}, "skipped", id="failed-soft_fail"),
            pytest.param("CANCELLED", {"expected_states": "SUCCEEDED"}, "failed", id="unexpected"),
            pytest.param(
                "CANCELLED", {"expected_states": "SUCCEEDED", "soft_fail": True}, "skipped", id="unexpected-soft_fail"
            ),
        ],
    )
    def test_a_final_state_sets_the_state_of_the_task(
        self, emulator: DaiEmulator, run_dag: RunDag, mode: str, state: str, options: dict[str, Any], expected: str
    ) -> None:
        end(emulator, state)
        run = run_dag(self.dag("sensor_ends", mode=mode, retries=3, **options))
        assert run.tasks == {"wait": expected}
        assert run.tries("wait") == 1
        assert len(emulator.requests) == 1

    @MODES
    @pytest.mark.parametrize("soft_fail", [False, True], ids=["plain", "soft_fail"])
    @pytest.mark.parametrize("rpc_status", ["UNIMPLEMENTED", "NOT_FOUND", "PERMISSION_DENIED"])
    def test_a_permanent_error_spends_no_retry(
        self, emulator: DaiEmulator, run_dag: RunDag, mode: str, soft_fail: bool, rpc_status: str
    ) -> None:
        emulator.start_ingest(NAME)
        emulator.inject(Fault(rpc_status=rpc_status, times=None))
        run = run_dag(self.dag("sensor_hopeless", mode=mode, retries=3, soft_fail=soft_fail))
        assert run.tasks == {"wait": "failed"}
        assert run.tries("wait") == 1
        assert len(emulator.requests) == (1 if rpc_status != "NOT_FOUND" else len(GRACE_POLLS))

    @MODES
    @pytest.mark.parametrize(("soft_fail", "expected"), [(False, "failed"), (True, "skipped")])
    def test_a_timeout_fails_or_skips_the_task(
        self, emulator: DaiEmulator, run_dag: RunDag, mode: str, soft_fail: bool, expected: str
    ) -> None:
        emulator.start_ingest(NAME)
        run = run_dag(self.dag("sensor_timeout", mode=mode, retries=3, soft_fail=soft_fail, timeout=0))
        assert run.tasks == {"wait": expected}
        assert run.tries("wait") == 1
        assert emulator.state(NAME) == "RUNNING"

    @MODES
    def test_an_outage_leaves_the_task_to_its_retries(self, emulator: DaiEmulator, run_dag: RunDag, mode: str) -> None:
        emulator.inject(Fault(status=503, times=None))
        dag = self.dag(f"sensor_down_{mode}", mode=mode, retries=3, retry_delay=timedelta(hours=1))
        run = run_dag(dag, stop_when_waiting=True)
        assert run.tasks == {"wait": "up_for_retry"}

    @pytest.mark.usefixtures("emulator")
    def test_missing_ok_pushes_nothing(self, run_dag: RunDag) -> None:
        run = run_dag(self.dag("sensor_missing", missing_ok=True))
        assert run.tasks == {"wait": "success"}
        assert run.xcom("wait") is None

    def test_each_map_index_waits_for_its_own_operation(self, emulator: DaiEmulator, run_dag: RunDag) -> None:
        for state in ENDS:
            end(emulator, state, f"operations/{state}")

        with DAG("sensor_mapped", schedule=None) as dag:

            @task
            def names() -> list[str]:
                return [f"operations/{state}" for state in ENDS]

            DaiOperationSensor.partial(task_id="wait", poke_interval=1).expand(operation_name=names())
        run = run_dag(dag)
        assert run.tasks == {"names": "success", "wait[0]": "success", "wait[1]": "success", "wait[2]": "failed"}
        assert [run.xcom("wait", map_index=index)["state"] for index in (0, 1)] == ["CANCELLED", "SUCCEEDED"]

    def test_airflow_does_not_take_it_for_a_call_from_outside(
        self, emulator: DaiEmulator, run_dag: RunDag, log: Log
    ) -> None:
        end(emulator, "SUCCEEDED")
        run = run_dag(self.dag("sensor_strict", allow_nested_operators=False))
        assert "cannot be called outside" not in log.text
        assert run.tasks == {"wait": "success"}
