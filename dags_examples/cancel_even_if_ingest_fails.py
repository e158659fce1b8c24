"""A teardown without a setup: it also runs when the task that starts the ingest fails, or is lost with its worker."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG

from airflow_dai_provider.operators.dai import DaiCancelOperationOperator, DaiCreateCreativeOperator

with DAG("cancel_even_if_ingest_fails", schedule=None, params={"media_url": "https://media.example.com/ad.mp4"}) as dag:
    ingest = DaiCreateCreativeOperator(
        task_id="ingest",
        creative={
            "adSystem": "example",
            "mediaFiles": [
                {"uri": "{{ params.media_url }}", "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
            ],
        },
        timeout=3600,
    )
    cancel = DaiCancelOperationOperator(task_id="cancel", operation_name=ingest.output["operation_name"])
    ingest >> cancel.as_teardown()
