"""Time that passes when told to, for waits in the triggerer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from airflow_dai_provider.triggers.dai import DaiOperationTrigger
from tests.support.event_loop import let_time_pass, trust_few

if TYPE_CHECKING:
    from conftest import Clock


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch, fake_time: Clock) -> list[float]:
    """Let the hooks wait on the test's clock; what they have slept."""
    trust_few(monkeypatch)
    return let_time_pass(monkeypatch, fake_time)


@pytest.fixture
def make_trigger(clock: Clock) -> Callable[..., DaiOperationTrigger]:
    """Give a function that makes a trigger whose wait begins now."""
    return lambda name, **arguments: DaiOperationTrigger(name, **{"started": clock.now, **arguments})
