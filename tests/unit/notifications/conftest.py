"""Time that passes when told to, for both forms of the notifier, and a triggerer that answers one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.deadlines import Triggerer, answer_as_triggerer
from tests.support.event_loop import trust_few

if TYPE_CHECKING:
    from conftest import Clock


@pytest.fixture(autouse=True)
def fake_async_time(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Let the asynchronous form wait on the clock too."""
    trust_few(monkeypatch)


@pytest.fixture
def triggerer(monkeypatch: pytest.MonkeyPatch) -> Triggerer:
    return answer_as_triggerer(monkeypatch)
