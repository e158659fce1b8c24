"""Another task of the run fails while an ingest runs: the DAG's failure callback cancels the ingest."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier
from airflow_dai_provider.operators.dai import DaiCreateCreativeOperator

with DAG(
    "cancel_on_run_failure",
    schedule=None,
    params={"media_url": "https://media.example.com/ad.mp4"},
    on_failure_callback=DaiCancelOperationNotifier(ingest_task_ids="start_ingest"),
) as dag:
    start = DaiCreateCreativeOperator(
        task_id="start_ingest",
        creative={
            "adSystem": "example",
            "mediaFiles": [
                {"uri": "{{ params.media_url }}", "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
            ],
        },
        wait_for_completion=False,
    )

    @task
    def publish() -> None:
        raise RuntimeError("The ad server refused the ad.")

    start >> publish()
