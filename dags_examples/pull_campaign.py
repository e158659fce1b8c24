"""Pull a campaign: cancel all of its ingests, wait for them, and delete the ads of those that had succeeded."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider.operators.dai import DaiCancelOperationOperator, DaiDeleteCreativeOperator

with DAG("pull_campaign", schedule=None, params={"operations": ["operations/ad-1", "operations/ad-2"]}) as dag:
    cancel = DaiCancelOperationOperator(
        task_id="cancel",
        operation_name="{{ params.operations }}",
        wait_for_completion=True,
        missing_ok=True,
        timeout=3600,
        retries=3,
    )

    @task(trigger_rule="all_done")  # ads are deleted also when some operations could not be cancelled
    def ads_made(operations: list[dict | None]) -> list[str]:
        return [one["creative_name"] for one in operations if one and one["creative_name"]]

    delete = DaiDeleteCreativeOperator(task_id="delete", creative_name=ads_made(cancel.output["operation"]), retries=3)

    @task
    def pulled() -> None:
        """Nothing of the campaign runs or is served: the run succeeds only if both tasks before have succeeded."""

    [cancel, delete] >> pulled()
