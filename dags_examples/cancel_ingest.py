"""Start an ingest with a plain task, cancel it, and wait for its final state."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider.operators.dai import DaiCancelOperationOperator
from airflow_dai_provider.sensors.dai import DaiOperationSensor

with DAG("cancel_ingest", schedule=None, params={"media_url": "https://media.example.com/ad.mp4"}) as dag:

    @task
    def start_ingest(params: dict) -> str:
        from airflow_dai_provider.hooks.dai import DaiHook

        media = {"uri": params["media_url"], "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
        with DaiHook() as hook:
            return hook.create_creative({"adSystem": "example", "mediaFiles": [media]}).name

    cancel = DaiCancelOperationOperator(task_id="cancel", operation_name=start_ingest())
    DaiOperationSensor(task_id="wait", operation_name=cancel.output, poke_interval=5, timeout=600)
