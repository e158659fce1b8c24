"""Calls for many operations, several at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.transport.threads import Workers

NAMES = [f"operations/{number}" for number in range(20)]


@dataclass
class Session:
    """Stands in for a hook: the engine needs no more of one than this."""

    retry_timeout: float = 60.0
    closed: bool = False
    seen: list[tuple[str, float]] = field(default_factory=list)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


@pytest.fixture
def sessions() -> list[Session]:
    return [Session() for _ in range(4)]


@pytest.fixture
def workers(sessions: list[Session]) -> Iterator[Workers[Session]]:
    with Workers(sessions, stopped=lambda: None) as running:
        yield running


def test_every_name_gets_its_result_in_order(workers: Workers[Session]) -> None:
    outcomes = list(workers.call(NAMES, lambda _, name: name.upper()))
    assert outcomes == [(name, name.upper(), None) for name in NAMES]


def test_as_many_calls_as_sessions_are_under_way_at_a_time(sessions: list[Session]) -> None:
    together = threading.Barrier(len(sessions), timeout=10)

    def call(session: Session, name: str) -> None:
        together.wait()
        session.seen.append((name, session.retry_timeout))

    with Workers(sessions, stopped=lambda: None) as workers:
        list(workers.call(NAMES, call))
    assert sum(len(session.seen) for session in sessions) == len(NAMES)


def test_an_error_of_the_service_fails_its_own_name_only(workers: Workers[Session]) -> None:
    def call(_: Session, name: str) -> str:
        if name == NAMES[3]:
            raise ServiceError("no", Code.PERMISSION_DENIED)
        if name == NAMES[4]:
            raise ValueError("Invalid operation name")
        return name

    outcomes = list(workers.call(NAMES, call))
    assert [name for name, _, _ in outcomes] == NAMES
    assert {name: error.rpc_code for name, _, error in outcomes if error} == {
        NAMES[3]: Code.PERMISSION_DENIED,
        NAMES[4]: Code.INVALID_ARGUMENT,
    }
    assert [name for name, result, _ in outcomes if name != result] == NAMES[3:5]


def test_any_other_error_is_raised(workers: Workers[Session]) -> None:
    def call(*_: Any) -> None:
        raise KeyError("a mistake")

    with pytest.raises(KeyError, match="a mistake"):
        list(workers.call(NAMES, call))


def test_no_call_begins_once_they_are_stopped(sessions: list[Session]) -> None:
    begun: list[str] = []
    with Workers(sessions[:1], stopped=lambda: "enough" if len(begun) >= 5 else None) as workers:
        outcomes = list(workers.call(NAMES, lambda _, name: begun.append(name)))
    assert begun == NAMES[:5]
    assert [error and (str(error), error.rpc_code) for _, _, error in outcomes] == [
        *[None] * 5,
        *[("enough", Code.CANCELLED)] * 15,
    ]


def test_after_retries_in_vain_the_next_calls_are_not_retried_until_the_service_responds(
    sessions: list[Session],
) -> None:
    def call(session: Session, name: str) -> None:
        session.seen.append((name, session.retry_timeout))
        if name in NAMES[:3]:
            raise ServiceError("away", Code.UNAVAILABLE)
        if name == NAMES[4]:
            raise ServiceError("no", Code.PERMISSION_DENIED)

    with Workers(sessions[:1], stopped=lambda: None) as workers:
        list(workers.call(NAMES[:6], call, retry_timeout=60.0))
    assert [timeout for _, timeout in sessions[0].seen] == [60.0, 0.0, 0.0, 0.0, 60.0, 60.0]


def test_sessions_are_closed_in_the_end(sessions: list[Session]) -> None:
    with Workers(sessions, stopped=lambda: None):
        pass
    assert all(session.closed for session in sessions)


def test_an_interruption_waits_for_no_call_and_leaves_its_session_open(sessions: list[Session]) -> None:
    release = threading.Event()
    finished = threading.Event()

    def call(*_: Any) -> None:
        release.wait(10)
        finished.set()

    with pytest.raises(KeyboardInterrupt), Workers(sessions[:1], stopped=lambda: None) as workers:  # noqa: PT012
        workers.call(NAMES[:1], call)
        raise KeyboardInterrupt
    assert not sessions[0].closed
    assert not finished.is_set()
    release.set()
    assert finished.wait(10)
