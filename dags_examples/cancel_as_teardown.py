"""Cancel as a teardown: whatever happens between the start of the ingest and its end, it is not left running."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider.operators.dai import DaiCancelOperationOperator
from airflow_dai_provider.sensors.dai import DaiOperationSensor

with DAG("cancel_as_teardown", schedule=None, params={"media_url": "https://media.example.com/ad.mp4"}) as dag:

    @task
    def start_ingest(params: dict) -> str:
        from airflow_dai_provider.hooks.dai import DaiHook

        media = {"uri": params["media_url"], "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
        with DaiHook() as hook:
            return hook.create_creative({"adSystem": "example", "mediaFiles": [media]}).name

    name = start_ingest()
    wait = DaiOperationSensor(task_id="wait", operation_name=name, expected_states="SUCCEEDED", timeout=3600)
    cancel = DaiCancelOperationOperator(task_id="cancel", operation_name=name)
    name >> wait >> cancel.as_teardown(setups=name)
