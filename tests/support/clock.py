"""The clock of a test: time that passes when told to, for everything that would sleep."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest


@dataclass
class Clock:
    """Epoch seconds that pass when told to, and by ``step`` at every reading.

    :param slept: what the code under test would have slept; that time passes here instead.
    """

    now: float = 1_750_000_000.0
    step: float = 0.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        self.now += self.step
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        assert len(self.slept) < 1000, "This would wait forever."


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def no_sleep(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Clock:
    """Let the clock pass instead of sleeping, also in Airflow's own code."""
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Clock:
    """Let hooks, notifiers, operators and deferrals live on the clock, without chance."""
    from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
    from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier
    from airflow_dai_provider.operators.dai import (
        DaiCancelOperationOperator,
        DaiCancelStrayOperationsOperator,
        DaiCreateCreativeOperator,
        DaiDeleteCreativeOperator,
    )
    from airflow_dai_provider.sensors.dai import DaiOperationSensor
    from airflow_dai_provider.tasks import deferral

    async def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        await asyncio.sleep(0)

    operators = (
        DaiCancelOperationOperator,
        DaiCreateCreativeOperator,
        DaiCancelStrayOperationsOperator,
        DaiDeleteCreativeOperator,
    )
    for waiting in (DaiHook, DaiAsyncHook, DaiCancelOperationNotifier, *operators):
        monkeypatch.setattr(waiting, "_sleep", staticmethod(sleep if waiting is DaiAsyncHook else clock.sleep))
        monkeypatch.setattr(waiting, "_clock", staticmethod(clock))
    monkeypatch.setattr(DaiAsyncHook, "_monotonic", staticmethod(clock))
    monkeypatch.setattr(DaiOperationSensor, "_clock", staticmethod(clock))
    for polling in (DaiHook, DaiAsyncHook):
        monkeypatch.setattr(polling, "_random", staticmethod(lambda: 0.0))
    monkeypatch.setattr(deferral, "time", SimpleNamespace(time=clock))
    return clock


@pytest.fixture
def slept(fake_time: Clock) -> list[float]:
    """Give the seconds that the code under test has slept so far."""
    return fake_time.slept
