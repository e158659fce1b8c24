"""If a run takes too long, a Deadline alert (Airflow 3.1 and later) cancels the ingest that the run has started."""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier
from airflow_dai_provider.sensors.dai import DaiOperationSensor

try:
    from airflow.sdk.definitions.deadline import AsyncCallback, DeadlineAlert, DeadlineReference
except ImportError:
    guard = {}
else:
    alert = DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=1),
        callback=AsyncCallback(DaiCancelOperationNotifier, kwargs={"ingest_task_ids": "start_ingest"}),
    )
    guard = {"deadline": alert}

params = {"media_url": "https://media.example.com/ad.mp4"}
with DAG("cancel_on_deadline", schedule=None, params=params, **guard) as dag:

    @task
    def start_ingest(params: dict) -> str:
        from airflow_dai_provider.hooks.dai import DaiHook

        media = {"uri": params["media_url"], "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
        with DaiHook() as hook:
            return hook.create_creative({"adSystem": "example", "mediaFiles": [media]}).name

    DaiOperationSensor(task_id="wait", operation_name=start_ingest(), expected_states="SUCCEEDED", timeout=7200)
