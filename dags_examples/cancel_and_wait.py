"""One task that cancels an ingest and waits for its final state."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG

from airflow_dai_provider.operators.dai import DaiCancelOperationOperator

with DAG("cancel_and_wait", schedule=None, params={"operation": "operations/my-ingest"}) as dag:
    DaiCancelOperationOperator(
        task_id="cancel",
        operation_name="{{ params.operation }}",
        wait_for_completion=True,
        timeout=600,
        retries=3,  # for a service that is unavailable; one that cannot cancel fails the task at once
    )
