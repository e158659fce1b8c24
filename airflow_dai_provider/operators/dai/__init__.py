"""Operators for ingests of Google's Video Creative Ingest API (DAI)."""

from airflow_dai_provider.operators.dai.cancel import XCOM_OPERATION, DaiCancelOperationOperator
from airflow_dai_provider.operators.dai.create import DaiCreateCreativeOperator

__all__ = ["XCOM_OPERATION", "DaiCancelOperationOperator", "DaiCreateCreativeOperator"]
