"""Metrics, through Airflow's own Stats: see ``[metrics]`` in its configuration. They have no tags, as plain StatsD."""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from typing import Any

from airflow_dai_provider.api.operation import OperationState


def count_cancel_requested() -> None:
    """Count a cancel request that the service has accepted: ``dai.cancel_requested``."""
    _incr("dai.cancel_requested")


def count_finished(state: OperationState) -> None:
    """Count an operation that a task has seen in a final state: ``dai.operation_finished.<state>``."""
    _incr(f"dai.operation_finished.{state.lower()}")


def time_cancel(seconds: float) -> None:
    """Time a cancel from its request until get has shown it: ``dai.cancel_duration``, in milliseconds."""
    _stats().timing("dai.cancel_duration", timedelta(seconds=seconds))


def count_polls(number: int = 1) -> None:
    """Count polls of operations: ``dai.polls``."""
    _incr("dai.polls", number)


def count_retry() -> None:
    """Count a request that is sent again after an error: ``dai.retries``."""
    _incr("dai.retries")


def gauge_strays(number: int) -> None:
    """Report the number of strays that a sweep has found: ``dai.strays_found``."""
    _stats().gauge("dai.strays_found", number)


def _incr(name: str, number: int = 1) -> None:
    _stats().incr(name, number)


@cache
def _stats() -> Any:
    # Looked up once, and not when a DAG file is parsed, since it is slow.
    from airflow.providers.common.compat.sdk import Stats

    return Stats
