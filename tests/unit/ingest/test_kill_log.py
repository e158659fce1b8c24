"""A kill while its task writes to the log: the logger of a task of Airflow 3 has a lock that its holder cannot take."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock
from typing import Any

import pytest

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.ingest import cancel_on_kill
from airflow_dai_provider.ingest.guard import IngestGuard
from tests.support.emulators import count
from tests.support.payloads import creative
from tests.support.threads import wait_until

CANCEL = "operations.cancel"


class LockedLog:
    """A logger with a lock, as ``structlog.BytesLogger``."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.lines: list[str] = []

    def info(self, words: str, *values: Any) -> None:
        assert self.lock.acquire(timeout=10), "It waits for the task that it has interrupted."
        self.lines.append(words % values)
        self.lock.release()

    error = info


@pytest.fixture
def log() -> LockedLog:
    return LockedLog()


@pytest.fixture
def hook(emulator: DaiEmulator) -> Iterator[DaiHook]:
    with DaiHook() as hook:
        yield hook


@pytest.fixture(params=[1, 3], ids=["one", "many"])
def guard(request: pytest.FixtureRequest, hook: DaiHook, log: LockedLog) -> Iterator[IngestGuard]:
    """Give a guard of one ingest, or of several."""
    guard = IngestGuard(on_kill=True, on_failure=True, log=log)
    guard.prepare(hook, request.param)
    for number in range(request.param):
        guard.arm(hook, hook.create_creative(creative(f"https://media.example.com/{number}.mp4")).name)
    yield guard
    guard.close()


def test_a_kill_sends_its_requests_and_returns(guard: IngestGuard, log: LockedLog, emulator: DaiEmulator) -> None:
    with log.lock:
        guard.kill()
        assert count(emulator, CANCEL) == len(guard._ingests)
    wait_until(lambda: log.lines)
    assert log.lines[0].startswith("Requested the cancellation of operations/")


def test_what_may_still_run_is_logged_later(guard: IngestGuard, log: LockedLog, emulator: DaiEmulator) -> None:
    emulator.inject(Fault(method=CANCEL, status=503, times=None))
    with log.lock:
        guard.kill()
    wait_until(lambda: len(log.lines) == len(guard._ingests))
    assert all("may still run: its task was killed" in line for line in log.lines)


def test_a_kill_has_its_lines_in_the_log_when_it_returns(
    guard: IngestGuard, log: LockedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancel_on_kill, "LOG_TIMEOUT", 60.0)
    guard.kill()
    assert len(log.lines) == 1
