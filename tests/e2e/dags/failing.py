"""DAGs that fail and whose callbacks must cancel their ingests."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier
from airflow_dai_provider.operators.dai import DaiCancelOperationOperator

# One notifier instance serves every run: values rendered for one run must not stay for the next.
with DAG(
    "run_callback_by_name",
    schedule=None,
    params={"operation": "operations/x"},
    on_failure_callback=DaiCancelOperationNotifier("{{ params.operation }}"),
):

    @task
    def fail_by_name() -> None:
        raise RuntimeError("the original failure")

    fail_by_name()

with DAG(
    "run_callback_by_xcom",
    schedule=None,
    params={"operations": ["operations/x"]},
    on_failure_callback=DaiCancelOperationNotifier(),
):

    @task
    def start(operation: str) -> str:
        return operation

    @task
    def fail_after(_: object) -> None:
        raise RuntimeError("the original failure")

    @task
    def operations(params: dict) -> list[str]:
        return params["operations"]

    fail_after(start.expand(operation=operations()))

with DAG("mapped_task_callback", schedule=None, params={"operations": ["operations/x"], "failing": 0}):

    @task
    def all_operations(params: dict) -> list[str]:
        return params["operations"]

    @task(on_failure_callback=DaiCancelOperationNotifier())
    def ingest(operation: str, ti=None, params=None) -> None:
        ti.xcom_push("operation_name", operation)
        ti.xcom_push("operation_started", {"try_number": ti.try_number})
        if ti.map_index == params["failing"]:
            raise RuntimeError("the original failure")

    ingest.expand(operation=all_operations())

with DAG("nothing_to_cancel", schedule=None):

    @task(on_failure_callback=DaiCancelOperationNotifier())
    def fail_before_start() -> None:
        raise RuntimeError("the original failure")

    fail_before_start()

with DAG("service_is_down", schedule=None, params={"operation": "operations/x"}):

    @task(on_failure_callback=DaiCancelOperationNotifier("{{ params.operation }}", timeout=3))
    def fail_while_service_is_down() -> None:
        raise RuntimeError("the original failure")

    fail_while_service_is_down()

with DAG("retries", schedule=None, params={"operation": "operations/x"}):
    DaiCancelOperationOperator(task_id="cancel", operation_name="{{ params.operation }}", retries=3)
