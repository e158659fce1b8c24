"""The sweep by owner, again and again: one for a whole Airflow."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.providers.common.compat.sdk import DAG

from airflow_dai_provider.operators.dai import DaiCancelStrayOperationsOperator

with DAG(
    "sweep",
    schedule="@continuous",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
):
    DaiCancelStrayOperationsOperator(task_id="sweep", orphaned_for=timedelta(seconds=5), max_cancellations=100)
