"""The sweeps by owner of the ``swept`` form of the rows; Airflow 3.0 to 3.2 know no owners."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import DAG

from airflow_dai_provider.operators.dai import DaiCancelStrayOperationsOperator, DaiCreateCreativeOperator

if not (3, 0) <= tuple(map(int, airflow_version.split(".")[:2])) < (3, 3):
    with DAG(
        "sweep_owned",
        schedule=timedelta(seconds=30),
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
    ):
        # The other forms are left alone, to see what runs there without a sweep.
        DaiCancelStrayOperationsOperator(
            task_id="sweep", orphaned_for=5, url_pattern="/swept/", max_cancellations=100, max_concurrency=4
        )

with DAG("sweep_all", schedule=None):
    DaiCancelStrayOperationsOperator(task_id="sweep", older_than=86400, max_cancellations=1000)

with DAG("sweep_once", schedule=None, params={"orphaned_for": 5, "prefix": "https://media.example.com/"}):
    DaiCancelStrayOperationsOperator(
        task_id="sweep",
        older_than=86400,
        orphaned_for="{{ params.orphaned_for }}",
        url_prefix="{{ params.prefix }}",
    )

with DAG("keeps__swept", schedule=None, params={"url": "https://media.example.com/ad.mp4"}):
    DaiCreateCreativeOperator(
        task_id="ingest",
        creative={
            "adSystem": "rows",
            "mediaFiles": [{"uri": "{{ params.url }}", "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}],
        },
        poll_interval=2,
        timeout=8,
        cancel_on_failure=False,
    )
