"""Hooks, and an emulator whose ingests take 100 s."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_dai_provider.emulator import DaiEmulator
from tests.support.clock import Clock
from tests.support.hooks import _isolation, hook, hook_to, make_hook, once, wait  # noqa: F401


@pytest.fixture
def emulator(clock: Clock) -> Iterator[DaiEmulator]:
    with DaiEmulator(ingest_seconds=100, clock=clock) as running:
        yield running
