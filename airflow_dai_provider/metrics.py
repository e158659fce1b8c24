"""
What is counted, through Airflow's own Stats: see ``[metrics]`` in its configuration.

Nothing is in tags, which plain StatsD does not have.
"""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from typing import Any

from airflow_dai_provider.api.operation import OperationState


def count_cancel_requested() -> None:
    """Count a cancel request that the service has taken: ``dai.cancel_requested``."""
    _incr("dai.cancel_requested")


def count_ended(state: OperationState) -> None:
    """Count an operation whose end a task has seen: ``dai.operation_ended.<state>``."""
    _incr(f"dai.operation_ended.{state.lower()}")


def time_cancel(seconds: float) -> None:
    """Time a cancel from its request until it was seen: ``dai.cancel_duration``, in milliseconds."""
    _stats().timing("dai.cancel_duration", timedelta(seconds=seconds))


def count_looks(number: int = 1) -> None:
    """Count looks at operations: ``dai.looks``."""
    _incr("dai.looks", number)


def count_repeat() -> None:
    """Count a request that is sent again after an error: ``dai.repeats``."""
    _incr("dai.repeats")


def gauge_strays(number: int) -> None:
    """Report how many strays a sweep has found: ``dai.strays_found``."""
    _stats().gauge("dai.strays_found", number)


def _incr(name: str, number: int = 1) -> None:
    _stats().incr(name, number)


@cache
def _stats() -> Any:
    # Found once, and not where a DAG file is parsed: both would be slow.
    from airflow.providers.common.compat.sdk import Stats

    return Stats
