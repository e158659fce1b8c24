"""The sweep behind all other guards: every hour, cancel what has been running for longer than any ingest should."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.providers.common.compat.sdk import DAG

from airflow_dai_provider.operators.dai import DaiCancelStrayOperationsOperator

with DAG(
    "cancel_strays",
    schedule="@hourly",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
) as dag:
    DaiCancelStrayOperationsOperator(
        task_id="cancel_strays",
        # More than the longest legitimate ingest takes, of everybody who uses the account: the service knows no owners.
        older_than=timedelta(hours=6),
        url_prefix="https://media.example.com/",
        max_cancellations=20,  # with more than this something else is wrong: the task fails and cancels none
        wait_for_completion=True,
        timeout=600,
        retries=2,
    )
