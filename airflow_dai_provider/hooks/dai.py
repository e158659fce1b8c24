"""Hooks for Google's Video Creative Ingest API (DAI)."""

from airflow_dai_provider.hooks.asynchronous import DaiAsyncHook
from airflow_dai_provider.hooks.sync import DaiHook

__all__ = ["DaiAsyncHook", "DaiHook"]
