"""The hooks of Google's Video Creative Ingest API (DAI): they only carry what ``rest`` builds."""

from airflow_dai_provider.hooks.dai.aio import DaiAsyncHook
from airflow_dai_provider.hooks.dai.sync import DaiHook

__all__ = ["DaiAsyncHook", "DaiHook"]
