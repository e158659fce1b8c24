"""A triggerer that responds to the notifier, and few certificate authorities to read."""

from __future__ import annotations

import pytest

from tests.support.deadlines import Triggerer, install_triggerer


@pytest.fixture(autouse=True)
def _authorities(few_authorities: None) -> None:
    """Let the hooks read few certificate authorities."""


@pytest.fixture
def triggerer(monkeypatch: pytest.MonkeyPatch) -> Triggerer:
    return install_triggerer(monkeypatch)
