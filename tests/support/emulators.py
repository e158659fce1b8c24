"""Emulators of the DAI service on the clock of the test, to which the environment points the hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import requests

from airflow_dai_provider.emulator import DaiEmulator
from tests.support.clock import Clock

MakeEmulator = Callable[..., DaiEmulator]


@pytest.fixture
def make_emulator(monkeypatch: pytest.MonkeyPatch, fake_time: Clock) -> Iterator[MakeEmulator]:
    """Give a function that starts an emulator, whose ingests never finish by themselves, and points the hooks at it."""
    with ExitStack() as running:

        def make(**options: Any) -> DaiEmulator:
            emulator = running.enter_context(DaiEmulator(clock=fake_time, **{"ingest_seconds": 1e9, **options}))
            monkeypatch.setenv("DAI_EMULATOR_HOST", emulator.host)
            return emulator

        yield make


@pytest.fixture
def emulator(make_emulator: MakeEmulator) -> DaiEmulator:
    return make_emulator()


def methods(emulator: DaiEmulator) -> list[str | None]:
    """Return the methods of the API that were called."""
    return [request.method for request in emulator.requests]


def count(emulator: DaiEmulator, method: str) -> int:
    """Return how often a method of the API was called."""
    return methods(emulator).count(method)


def bearers(emulator: DaiEmulator) -> list[str | None]:
    return [request.headers.get("authorization") for request in emulator.requests]


def cancel_from_outside(emulator: DaiEmulator, *names: str) -> None:
    """Request cancellations as another client does, outside of Airflow."""
    for name in names:
        requests.post(f"{emulator.endpoint}/v1/{name}:cancel", timeout=10).raise_for_status()
