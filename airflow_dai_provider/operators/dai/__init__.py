"""Operators for ingests of Google's Video Creative Ingest API (DAI)."""

from airflow_dai_provider.operators.dai.cancel import DaiCancelOperationOperator
from airflow_dai_provider.operators.dai.create import DaiCreateCreativeOperator
from airflow_dai_provider.operators.dai.delete import DaiDeleteCreativeOperator
from airflow_dai_provider.operators.dai.sweep import DaiCancelStrayOperationsOperator
from airflow_dai_provider.tasks.xcom import XCOM_OPERATION, XCOM_REPORT

__all__ = [
    "XCOM_OPERATION",
    "XCOM_REPORT",
    "DaiCancelOperationOperator",
    "DaiCancelStrayOperationsOperator",
    "DaiCreateCreativeOperator",
    "DaiDeleteCreativeOperator",
]
