"""Start an ingest and wait for it in the triggerer; if the task fails or is killed, the ingest is cancelled."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG

from airflow_dai_provider.operators.dai import DaiCreateCreativeOperator

with DAG("ingest", schedule=None, params={"media_url": "https://media.example.com/ad.mp4"}) as dag:
    DaiCreateCreativeOperator(
        task_id="ingest",
        creative={
            "adSystem": "example",
            "mediaFiles": [
                {"uri": "{{ params.media_url }}", "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
            ],
        },
        deferrable=True,
        timeout=3600,
        retries=2,
    )
