"""Many mapped ingests that are deferred."""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider.operators.dai import DaiCreateCreativeOperator

with DAG(
    "many_defer__own",
    schedule=None,
    params={"url": "https://media.example.com/ad.mp4", "number": 1},
    # When more tasks start at once on two processors, heartbeats are late, and Airflow takes the tasks for lost.
    max_active_tasks=8,
):

    @task
    def creatives(params: dict) -> list[dict]:
        return [
            {
                "adSystem": "many",
                "mediaFiles": [
                    {
                        "uri": f"{params['url']}&number={number}",
                        "delivery": "DELIVERY_PROGRESSIVE",
                        "mimeType": "video/mp4",
                    }
                ],
            }
            for number in range(params["number"])
        ]

    DaiCreateCreativeOperator.partial(
        task_id="ingest", deferrable=True, poll_interval=10, retries=1, retry_delay=timedelta(seconds=1)
    ).expand(creative=creatives())
