"""The ingests of a team, which the folder is named after: its triggers run in the queue of this name."""

from __future__ import annotations

from pathlib import Path

from airflow.providers.common.compat.sdk import DAG

from airflow_dai_provider.operators.dai import DaiCreateCreativeOperator

TEAM = Path(__file__).parent.name
PARAMS = {"url": "https://media.example.com/ad.mp4"}

for dag, deferrable in (("defers", True), ("waits", False)):
    with DAG(f"{TEAM}_{dag}__own", schedule=None, params=PARAMS):
        DaiCreateCreativeOperator(
            task_id="ingest",
            creative={
                "adSystem": TEAM,
                "mediaFiles": [
                    {"uri": "{{ params.url }}", "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
                ],
            },
            poll_interval=2,
            deferrable=deferrable,
            queue=TEAM,
        )
