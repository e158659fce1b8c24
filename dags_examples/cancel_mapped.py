"""Cancel several ingests at once, one mapped task each, and wait for all of them."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider.operators.dai import DaiCancelOperationOperator
from airflow_dai_provider.sensors.dai import DaiOperationSensor

with DAG("cancel_mapped", schedule=None, params={"operations": ["operations/ad-1", "operations/ad-2"]}) as dag:

    @task
    def pulled_ads(params: dict) -> list[str]:
        return params["operations"]

    named = {"missing_ok": True, "map_index_template": "{{ task.operation_name }}"}  # the grid shows names
    cancel = DaiCancelOperationOperator.partial(task_id="cancel", **named).expand(operation_name=pulled_ads())
    DaiOperationSensor.partial(task_id="wait", expected_states=None, poke_interval="5s", **named).expand(
        operation_name=cancel.output
    )
