"""A task starts an ingest and then fails: its failure callback cancels the operation started by the task."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier

with DAG("cancel_on_task_failure", schedule=None, params={"media_url": "https://media.example.com/ad.mp4"}) as dag:

    @task(on_failure_callback=DaiCancelOperationNotifier(), on_retry_callback=DaiCancelOperationNotifier())
    def ingest_and_publish(params: dict, ti=None) -> None:
        from airflow_dai_provider.hooks.dai import DaiHook

        media = {"uri": params["media_url"], "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
        with DaiHook() as hook:
            operation = hook.create_creative({"adSystem": "example", "mediaFiles": [media]})
        ti.xcom_push("operation_name", operation.name)
        ti.xcom_push("operation_started", {"try_number": ti.try_number})  # a late callback spares the next try's ingest
        raise RuntimeError("The ad server refused the ad.")

    ingest_and_publish()
