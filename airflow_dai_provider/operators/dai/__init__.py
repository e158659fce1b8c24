"""Operators for ingests of Google's Video Creative Ingest API (DAI)."""

from airflow_dai_provider.operators.dai.cancel import XCOM_OPERATION, DaiCancelOperationOperator

__all__ = ["XCOM_OPERATION", "DaiCancelOperationOperator"]
