"""An ingest that does not finish, by a connection that only the metadata database has."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG

from airflow_dai_provider.operators.dai import DaiCreateCreativeOperator

MEDIA = {
    "uri": "https://media.example.com/stuck.mp4?X-Goog-Signature=dGhlLXNpZ25hdHVyZS1vZi10aGUtbWVkaWE",
    "delivery": "DELIVERY_PROGRESSIVE",
    "mimeType": "video/mp4",
}

with DAG("stuck", schedule=None):
    DaiCreateCreativeOperator(
        task_id="ingest",
        creative={"adSystem": "example", "mediaFiles": [MEDIA]},
        deferrable=True,
        poll_interval="2s",
        timeout="2h",
        gcp_conn_id="on_call",
    )
