"""Calls for many operations, several at a time."""

from __future__ import annotations

import threading
import time
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
    stopped: Any = None
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


def test_every_name_gets_its_result(workers: Workers[Session]) -> None:
    outcomes = sorted(workers.call(NAMES, lambda _, name: name.upper()))
    assert outcomes == [(name, name.upper(), None) for name in sorted(NAMES)]


def test_an_outcome_comes_as_soon_as_it_is_known(sessions: list[Session]) -> None:
    release = threading.Event()
    with Workers(sessions[:2], stopped=lambda: None) as workers:
        outcomes = workers.call(NAMES[:2], lambda _, name: name == NAMES[1] or release.wait(10))
        assert next(outcomes).name == NAMES[1]
        release.set()
        assert next(outcomes).name == NAMES[0]


def test_a_batch_has_what_comes_within_its_seconds(workers: Workers[Session]) -> None:
    assert [len(batch) for batch in workers.batches(NAMES, lambda _, name: name, seconds=60)] == [len(NAMES)]


def test_jobs_that_have_not_begun_are_dropped_when_the_iterator_is_closed(sessions: list[Session]) -> None:
    begun: list[str] = []
    turn = threading.Semaphore(2)

    def call(_: Session, name: str) -> None:
        turn.acquire(timeout=10)
        begun.append(name)

    with Workers(sessions[:1], stopped=lambda: None) as workers:
        outcomes = workers.batches(NAMES, call)
        next(outcomes)
        outcomes.close()
        turn.release(len(NAMES))
    assert 1 <= len(begun) <= 3


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

    outcomes = sorted(workers.call(NAMES, call), key=lambda outcome: NAMES.index(outcome.name))
    assert [name for name, _, _ in outcomes] == NAMES
    assert {name: error.rpc_code for name, _, error in outcomes if error} == {
        NAMES[3]: Code.PERMISSION_DENIED,
        NAMES[4]: Code.INVALID_ARGUMENT,
    }
    assert [name for name, result, _ in outcomes if name != result] == NAMES[3:5]


def test_any_other_error_fails_its_own_name_only(workers: Workers[Session]) -> None:
    def call(_: Session, name: str) -> None:
        if name == NAMES[3]:
            raise KeyError("a mistake at https://media.example.com/ad.mp4?Signature=s3cret")

    (failed,) = [outcome for outcome in workers.call(NAMES, call) if outcome.error]
    assert failed.name == NAMES[3]
    assert failed.error is not None
    assert (failed.error.rpc_code, "a mistake" in str(failed.error)) == (Code.UNKNOWN, True)
    assert "s3cret" not in str(failed.error)


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
    begun, release, finished = threading.Event(), threading.Event(), threading.Event()

    def call(*_: Any) -> None:
        begun.set()
        release.wait(10)
        finished.set()

    with pytest.raises(KeyboardInterrupt), Workers(sessions[:1], stopped=lambda: None) as workers:  # noqa: PT012
        workers.call(NAMES[:1], call)
        assert begun.wait(10)
        raise KeyboardInterrupt
    assert not sessions[0].closed
    assert not finished.is_set()
    release.set()
    assert finished.wait(10)


def test_threads_end_when_an_iterator_is_closed_after_them(sessions: list[Session]) -> None:
    """An exception in the loop over the outcomes keeps the iterator alive in its traceback."""
    outcomes: Any = None
    with pytest.raises(KeyboardInterrupt), Workers(sessions, stopped=lambda: None) as workers:  # noqa: PT012
        outcomes = workers.call(NAMES, lambda _, name: name)
        next(outcomes)
        raise KeyboardInterrupt
    del outcomes
    for thread in workers._threads:
        thread.join(10)
        assert not thread.is_alive()


def test_the_calling_thread_can_do_jobs_too() -> None:
    own = Session()
    with Workers[Session]([], stopped=lambda: None) as workers:
        batches = workers.batches(NAMES, lambda session, _: session is own, until=time.monotonic() + 10)
        workers.assist(own, time.monotonic() + 10)
        assert [outcome.result for batch in batches for outcome in batch] == [True] * len(NAMES)
    assert not own.closed


def test_outcomes_are_not_waited_for_when_the_time_is_up(sessions: list[Session]) -> None:
    release = threading.Event()
    with Workers(sessions, stopped=lambda: None) as workers:
        batches = workers.batches(NAMES, lambda *_: release.wait(10), until=time.monotonic() + 0.05)
        assert list(batches) == []
        release.set()


def test_no_job_begins_while_the_threads_are_held(sessions: list[Session]) -> None:
    with Workers(sessions, stopped=lambda: None) as workers:
        workers.hold(30)
        assert list(workers.batches(NAMES, lambda *_: None, until=time.monotonic() + 0.2)) == []
        workers.hold(0)
        assert len(list(workers.call(NAMES, lambda *_: None))) == len(NAMES)
