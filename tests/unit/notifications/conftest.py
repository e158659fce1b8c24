"""Time that passes when told to, for both forms of the notifier, and a triggerer that answers one of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.support.deadlines import Triggerer, answer_as_triggerer
from tests.support.event_loop import trust_few

if TYPE_CHECKING:
    from conftest import Clock


@pytest.fixture(autouse=True)
def fake_async_time(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Let the asynchronous form wait on the clock too."""
    from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier

    async def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        await asyncio.sleep(0)

    trust_few(monkeypatch)
    monkeypatch.setattr(DaiCancelOperationNotifier, "_async_sleep", staticmethod(sleep))


@pytest.fixture
def triggerer(monkeypatch: pytest.MonkeyPatch) -> Triggerer:
    return answer_as_triggerer(monkeypatch)
