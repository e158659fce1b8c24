"""A user's project for mypy in strict mode: every class of the package, TaskFlow and mapping."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider.api.operation import Operation, OperationState
from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier
from airflow_dai_provider.operators.dai import (
    DaiCancelOperationOperator,
    DaiCancelStrayOperationsOperator,
    DaiCreateCreativeOperator,
    DaiDeleteCreativeOperator,
)
from airflow_dai_provider.sensors.dai import DaiOperationSensor
from airflow_dai_provider.triggers.dai import DaiOperationTrigger

CREATIVE = {
    "adSystem": "example",
    "mediaFiles": [
        {"uri": "https://media.example.com/ad.mp4", "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
    ],
}

with DAG("typed", schedule=None, on_failure_callback=DaiCancelOperationNotifier(ingest_task_ids=["start"])) as dag:

    @task(on_failure_callback=DaiCancelOperationNotifier())
    def start(title: str) -> str:
        with DaiHook() as hook:
            return hook.create_creative({**CREATIVE, "adTitle": title}).name

    @task
    def running() -> list[str]:
        with DaiHook() as hook:
            return [operation.name for operation in hook.list_operations() if not operation.done]

    @task
    def reason(finished: Any) -> str | None:  # an operator's output is typed as XComArg only
        operation = Operation.from_dict(finished)
        if operation.state is OperationState.FAILED and operation.ingest:
            return operation.ingest.failure_reason
        return operation.error_message

    cancel = DaiCancelOperationOperator(task_id="cancel", operation_name=start("Spring"), retries=3)
    wait = DaiOperationSensor(task_id="wait", operation_name=cancel.output, expected_states="CANCELLED")
    reason(wait.output)

    DaiCancelOperationOperator.partial(task_id="cancel_all", missing_ok=True).expand(operation_name=running())
    ingest = DaiCreateCreativeOperator(task_id="ingest", creative=CREATIVE, deferrable=True, timeout="1h")
    DaiOperationSensor.partial(task_id="wait_all").expand(operation_name=[ingest.output])
    DaiCancelOperationOperator(task_id="cancel_list", operation_name=["operations/a", "operations/b"])
    DaiOperationSensor(task_id="wait_list", operation_name=["operations/a", "operations/b"])
    DaiCreateCreativeOperator(task_id="ingest_list", creative=[CREATIVE, CREATIVE])
    DaiDeleteCreativeOperator(task_id="delete", creative_name="creatives/a")
    DaiDeleteCreativeOperator(task_id="delete_list", creative_name=["creatives/a", "creatives/b"])
    DaiDeleteCreativeOperator.partial(task_id="delete_mapped").expand(creative_name=["creatives/a"])
    DaiCancelStrayOperationsOperator(task_id="sweep", older_than=timedelta(hours=6), dry_run=True)


async def poll(name: str) -> OperationState:
    async with DaiAsyncHook("google_cloud_dai", impersonation_chain=["dai@project.iam.gserviceaccount.com"]) as hook:
        return (await hook.get_operation(name)).state


def test_it() -> None:
    with DaiEmulator(ingest_seconds=600) as emulator:
        name = emulator.start_ingest()
        assert emulator.state(name) == "RUNNING"
        assert DaiOperationTrigger(name, poll_interval="5s").serialize()[1]["operation_name"] == name
