"""The hooks of Google's Video Creative Ingest API (DAI): they only carry what ``rest`` builds."""

from airflow_dai_provider.hooks.asynchronous import DaiAsyncHook
from airflow_dai_provider.hooks.sync import DaiHook

__all__ = ["DaiAsyncHook", "DaiHook"]
