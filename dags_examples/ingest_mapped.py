"""Ingest several ads, one mapped task each; the grid shows the file of each task instead of a number."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier
from airflow_dai_provider.operators.dai import DaiCreateCreativeOperator

MEDIA = ["https://media.example.com/ad-1.mp4", "https://media.example.com/ad-2.mp4"]

with DAG("ingest_mapped", schedule=None, params={"media_urls": MEDIA}) as dag:

    @task
    def creatives(params: dict) -> list[dict]:
        media = {"delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
        return [{"adSystem": "example", "mediaFiles": [{"uri": url, **media}]} for url in params["media_urls"]]

    DaiCreateCreativeOperator.partial(
        task_id="ingest",
        map_index_template="{{ task.creative.mediaFiles[0].uri.partition('?')[0].rpartition('/')[2] }}",
        on_failure_callback=DaiCancelOperationNotifier(),  # Airflow 3 calls the operator's own for no mapped task
        timeout="1h",
        retries=2,
    ).expand(creative=creatives())
