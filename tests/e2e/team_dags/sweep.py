"""The one sweep of an installation: its DAG belongs to no team."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG

from airflow_dai_provider.operators.dai import DaiCancelStrayOperationsOperator

with DAG("sweep", schedule=None):
    DaiCancelStrayOperationsOperator(task_id="sweep", orphaned_for=5, wait_for_completion=True)
