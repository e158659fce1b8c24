"""A triggerer that responds to the notifier, and few certificate authorities to read."""

from __future__ import annotations

import pytest

from tests.support.deadlines import Triggerer, install_triggerer
from tests.support.event_loop import trust_few


@pytest.fixture(autouse=True)
def few_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    trust_few(monkeypatch)


@pytest.fixture
def triggerer(monkeypatch: pytest.MonkeyPatch) -> Triggerer:
    return install_triggerer(monkeypatch)
