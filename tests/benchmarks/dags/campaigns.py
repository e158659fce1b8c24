"""The same campaign mapped and as a list."""

from __future__ import annotations

import resource
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task
from campaign_tasks import PARAMS, creatives, note

from airflow_dai_provider.operators.dai import DaiCancelOperationOperator, DaiCreateCreativeOperator
from airflow_dai_provider.sensors.dai import DaiOperationSensor

try:
    from airflow.sdk import get_parsing_context
except ImportError:
    from airflow.utils.dag_parsing_context import get_parsing_context


def note_memory(context: Any) -> None:
    """Note the most memory that the process of a task has held, in KiB."""
    note(task=context["ti"].task_id, memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if (parsed_for := get_parsing_context()).task_id:
    note(task=parsed_for.task_id)


@task
def operations(params: dict) -> list[str]:
    """Return the names of the operations of a campaign."""
    return [f"operations/{params['campaign']}/{number}" for number in range(params["number"])]


measured: dict[str, Any] = {"on_success_callback": note_memory}

with DAG("cancels_mapped", schedule=None, params=PARAMS):
    cancel = DaiCancelOperationOperator.partial(task_id="cancel", **measured).expand(operation_name=operations())
    DaiOperationSensor.partial(task_id="wait", poke_interval=5, deferrable=False, **measured).expand(
        operation_name=cancel.output
    )

with DAG("cancels_list", schedule=None, params=PARAMS):
    cancel = DaiCancelOperationOperator(task_id="cancel", operation_name=operations(), **measured)
    DaiOperationSensor(task_id="wait", operation_name=cancel.output, poke_interval=5, deferrable=False, **measured)

with DAG("ingests_mapped", schedule=None, params=PARAMS):
    DaiCreateCreativeOperator.partial(task_id="ingest", deferrable=True, **measured).expand(creative=creatives())

with DAG("ingests_list", schedule=None, params=PARAMS):
    DaiCreateCreativeOperator(task_id="ingest", creative=creatives(), deferrable=True, **measured)

with DAG("ingests_list_in_worker", schedule=None, params=PARAMS):
    DaiCreateCreativeOperator(task_id="ingest", creative=creatives(), deferrable=False, **measured)
