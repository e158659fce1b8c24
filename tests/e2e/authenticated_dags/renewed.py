"""Waits during which tokens are renewed: with application default credentials, and with a key file."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider.operators.dai import DaiCancelOperationOperator, DaiCreateCreativeOperator
from airflow_dai_provider.sensors.dai import DaiOperationSensor

MEDIA = {"uri": "https://media.example.com/ad.mp4", "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
CREATIVE = {"adSystem": "example", "mediaFiles": [MEDIA]}
NAME = {"operation_name": "{{ params.operation }}", "gcp_conn_id": "machine"}

with DAG("machine", schedule=None, params={"operation": "operations/x"}):
    DaiOperationSensor(task_id="worker", poke_interval=2, **NAME)
    DaiOperationSensor(task_id="deferred", deferrable=True, poke_interval=2, cancel_on_kill=True, **NAME)
    DaiCreateCreativeOperator(
        task_id="create", creative=CREATIVE, deferrable=True, poll_interval=2, gcp_conn_id="machine"
    )

with DAG("machine_cancels", schedule=None, params={"operation": "operations/x"}):
    DaiCancelOperationOperator(task_id="cancel", poll_interval=2, **NAME)

with DAG("key_file", schedule=None, params={"operations": ["operations/x"]}, max_active_tasks=16):

    @task
    def operations(params: dict) -> list[str]:
        return params["operations"]

    wait = DaiOperationSensor.partial(
        task_id="wait", deferrable=True, poke_interval=5, cancel_on_kill=True, gcp_conn_id="key_file"
    )
    wait.expand(operation_name=operations())
