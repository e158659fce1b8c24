"""A later version of the DAGs of a team: they have no ingests any more."""

from __future__ import annotations

from pathlib import Path

from airflow.providers.common.compat.sdk import DAG
from airflow.providers.standard.operators.empty import EmptyOperator

for dag in ("defers", "waits"):
    with DAG(f"{Path(__file__).parent.name}_{dag}__own", schedule=None):
        EmptyOperator(task_id="nothing")
