"""DAGs that wait in the triggerer."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider.operators.dai import DaiCancelOperationOperator
from airflow_dai_provider.sensors.dai import DaiOperationSensor

OPERATION = {"operation": "operations/x"}

with DAG("deferred_sensor", schedule=None, params=OPERATION):
    DaiOperationSensor(task_id="wait", operation_name="{{ params.operation }}", deferrable=True, poke_interval=2)

with DAG("deferred_sensor_that_cancels", schedule=None, params=OPERATION):
    DaiOperationSensor(
        task_id="wait", operation_name="{{ params.operation }}", deferrable=True, poke_interval=2, cancel_on_kill=True
    )

with DAG("deferred_sensor_with_timeout", schedule=None, params=OPERATION):
    DaiOperationSensor(
        task_id="wait", operation_name="{{ params.operation }}", deferrable=True, poke_interval=2, timeout=20
    )

with DAG("deferred_operator", schedule=None, params=OPERATION):
    DaiCancelOperationOperator(
        task_id="cancel",
        operation_name="{{ params.operation }}",
        wait_for_completion=True,
        deferrable=True,
        poll_interval=2,
        expected_states=["CANCELLED", "SUCCEEDED"],
    )

with DAG("many_deferred_sensors", schedule=None, params={"operations": ["operations/x"]}, max_active_tasks=16):

    @task
    def operations(params: dict) -> list[str]:
        return params["operations"]

    DaiOperationSensor.partial(task_id="wait", deferrable=True, poke_interval=5).expand(operation_name=operations())
