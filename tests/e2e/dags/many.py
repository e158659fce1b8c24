"""Many ingests that are deferred: mapped, and as the list of one task."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider.operators.dai import DaiCreateCreativeOperator

PARAMS = {"url": "https://media.example.com/ad.mp4", "number": 1}
OPTIONS: dict[str, Any] = {
    "task_id": "ingest",
    "deferrable": True,
    "poll_interval": 10,
    "retry_delay": timedelta(seconds=1),
}


@task
def creatives(params: dict) -> list[dict]:
    """Return the creatives of a run."""
    media = {"delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
    uris = (f"{params['url']}&number={number}" for number in range(params["number"]))
    return [{"adSystem": "many", "mediaFiles": [{"uri": uri, **media}]} for uri in uris]


# When more tasks start at once on two processors, heartbeats are late, and Airflow takes the tasks for lost.
with DAG("many_defer__own", schedule=None, params=PARAMS, max_active_tasks=8):
    DaiCreateCreativeOperator.partial(retries=1, **OPTIONS).expand(creative=creatives())

with DAG("many_as_list__own", schedule=None, params=PARAMS):
    DaiCreateCreativeOperator(creative=creatives(), retries=2, **OPTIONS)
