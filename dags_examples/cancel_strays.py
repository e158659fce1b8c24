"""The one DAG to add: every ten minutes, cancel the ingests whose task is over."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.providers.common.compat.sdk import DAG

from airflow_dai_provider.operators.dai import DaiCancelStrayOperationsOperator

with DAG(
    "cancel_strays",
    schedule=timedelta(minutes=10),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
) as dag:
    DaiCancelStrayOperationsOperator(
        task_id="cancel_strays",
        wait_for_completion=True,
        timeout=600,
        retries=2,
    )
