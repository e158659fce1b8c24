"""Time that passes when told to, for waits in the triggerer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.event_loop import let_time_pass, trust_few

if TYPE_CHECKING:
    from conftest import Clock


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch, fake_time: Clock) -> list[float]:
    """Let the hooks wait on the test's clock; what they have slept."""
    trust_few(monkeypatch)
    return let_time_pass(monkeypatch, fake_time)
