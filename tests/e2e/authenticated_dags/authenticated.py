"""Two ingests of a signed media URL: one whose wait times out, and one that is cancelled."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG

from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier
from airflow_dai_provider.operators.dai import DaiCancelOperationOperator, DaiCreateCreativeOperator
from airflow_dai_provider.sensors.dai import DaiOperationSensor

MEDIA = {
    "uri": "https://media.example.com/ad.mp4?seconds=600&X-Goog-Signature=dGhlLXNpZ25hdHVyZS1vZi10aGUtbWVkaWE",
    "delivery": "DELIVERY_PROGRESSIVE",
    "mimeType": "video/mp4",
}
CREATIVE = {"adSystem": "example", "mediaFiles": [MEDIA]}

with DAG("timed_out", schedule=None, on_failure_callback=DaiCancelOperationNotifier()):
    DaiCreateCreativeOperator(task_id="ingest", creative=CREATIVE, deferrable=True, poll_interval=2, timeout=8)

with DAG("cancelled", schedule=None):
    start = DaiCreateCreativeOperator(task_id="start", creative=CREATIVE, wait_for_completion=False)
    cancel = DaiCancelOperationOperator(task_id="cancel", operation_name=start.output)
    DaiOperationSensor(task_id="wait", operation_name=cancel.output, poke_interval=2)
