"""Cancel in the teardown of an ingest: if a later task fails, the ingest is not left running."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG

from airflow_dai_provider.operators.dai import DaiCancelOperationOperator, DaiCreateCreativeOperator
from airflow_dai_provider.sensors.dai import DaiOperationSensor

with DAG("cancel_as_teardown", schedule=None, params={"media_url": "https://media.example.com/ad.mp4"}) as dag:
    start = DaiCreateCreativeOperator(
        task_id="start",
        creative={
            "adSystem": "example",
            "mediaFiles": [
                {"uri": "{{ params.media_url }}", "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
            ],
        },
        wait_for_completion=False,
    )
    wait = DaiOperationSensor(task_id="wait", operation_name=start.output, expected_states="SUCCEEDED", timeout=3600)
    cancel = DaiCancelOperationOperator(task_id="cancel", operation_name=start.output)
    start >> wait >> cancel.as_teardown(setups=start)
