"""A teardown without a setup: it also runs when the task that starts the ingest fails afterwards."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider.operators.dai import DaiCancelOperationOperator

with DAG("cancel_even_if_start_fails", schedule=None, params={"media_url": "https://media.example.com/ad.mp4"}) as dag:

    @task
    def ingest_and_publish(params: dict, ti=None) -> None:
        from airflow_dai_provider.hooks.dai import DaiHook

        media = {"uri": params["media_url"], "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
        with DaiHook() as hook:
            operation = hook.create_creative({"adSystem": "example", "mediaFiles": [media]})
        ti.xcom_push("operation_name", operation.name)
        raise RuntimeError("The ad server refused the ad.")

    cancel = DaiCancelOperationOperator(
        task_id="cancel",
        operation_name="{{ ti.xcom_pull(task_ids='ingest_and_publish', key='operation_name') }}",
    )
    ingest_and_publish() >> cancel.as_teardown()
