"""What tests of the sensor on the test's clock share."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import BaseSensorOperator

from tests.support.clock import Clock
from tests.support.task_instance import Ti


@pytest.fixture
def sensor_time(monkeypatch: pytest.MonkeyPatch, few_authorities: None, fake_time: Clock) -> None:
    """Let Airflow's sensor base see the test's clock, as hooks and deferrals do."""
    base = sys.modules[BaseSensorOperator.__module__]
    monkeypatch.setattr(base, "time", SimpleNamespace(sleep=fake_time.sleep, monotonic=fake_time))
    monkeypatch.setattr(base, "timezone", SimpleNamespace(utcnow=lambda: datetime.fromtimestamp(fake_time.now, UTC)))


@pytest.fixture
def context(ti: Ti, clock: Clock, monkeypatch: pytest.MonkeyPatch, airflow_2: bool) -> dict[str, Any]:
    """Give a context whose task began now, for a sensor in reschedule mode to ask."""
    began = datetime.fromtimestamp(clock.now, UTC)
    if airflow_2:
        monkeypatch.setattr(sys.modules[BaseSensorOperator.__module__], "_orig_start_date", lambda **_: began)
    ti.get_first_reschedule_date = lambda _: began  # type: ignore[method-assign,assignment,return-value]
    return {"ti": ti}
