"""Cancel an ingest and wait for its final state in the triggerer, without holding a worker slot."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG

from airflow_dai_provider.operators.dai import DaiCancelOperationOperator
from airflow_dai_provider.sensors.dai import DaiOperationSensor

with DAG("cancel_deferrable", schedule=None, params={"operation": "operations/my-ingest"}) as dag:
    cancel = DaiCancelOperationOperator(task_id="cancel", operation_name="{{ params.operation }}")
    DaiOperationSensor(task_id="wait", operation_name=cancel.output, deferrable=True, poke_interval=30, timeout=3600)
