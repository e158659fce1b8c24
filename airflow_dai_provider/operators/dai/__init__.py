"""Operators for ingests of Google's Video Creative Ingest API (DAI)."""

from airflow_dai_provider.operators.dai.cancel import XCOM_OPERATION, DaiCancelOperationOperator
from airflow_dai_provider.operators.dai.create import DaiCreateCreativeOperator
from airflow_dai_provider.operators.dai.stray import XCOM_REPORT, DaiCancelStrayOperationsOperator

__all__ = [
    "XCOM_OPERATION",
    "XCOM_REPORT",
    "DaiCancelOperationOperator",
    "DaiCancelStrayOperationsOperator",
    "DaiCreateCreativeOperator",
]
