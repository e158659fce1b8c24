"""The engine for many operations: one call for each, several at a time, on few connections."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import chain
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.redaction import redact_urls
from airflow_dai_provider.api.retry import PERMANENT

#: The most calls under way at a time, and so the most connections.
CONCURRENCY = 64
#: Seconds between two checks whether :meth:`Workers.hold` has ended.
_HOLD_CHECK = 0.05


class Session(AbstractContextManager[Any], Protocol):
    """The part of a hook that a worker needs."""

    retry_timeout: float
    stopped: Callable[[], str | None]


S = TypeVar("S", bound=Session)
T = TypeVar("T")


class Outcome(NamedTuple, Generic[T]):
    """The result of one call, or its error."""

    name: str
    result: T | None
    error: ServiceError | None


class Workers(Generic[S]):
    """Threads, each with a session of its own.

    All of them run before the first call is made, and take their jobs from a ``SimpleQueue``: so a signal handler can
    add a job, which may neither start a thread nor take a lock. They ask Airflow for nothing but the metrics, and log
    nothing: connections are looked up before they start.

    :param sessions: hooks that are ready to use, one for each call under way at a time.
    :param stopped: returns the reason to begin no further call or retry, or None.
    :param thread_name: of each thread.
    """

    def __init__(
        self, sessions: Sequence[S], *, stopped: Callable[[], str | None], thread_name: str = "dai-worker"
    ) -> None:
        self._sessions = sessions
        #: Gives the reason to begin no other call, or None.
        self.stopped = stopped
        self._held_until = float("-inf")
        self._jobs: SimpleQueue[Callable[[S], None] | None] = SimpleQueue()
        self._closed = False
        for session in sessions:
            session.stopped = stopped
        # Daemons: the process of a killed task ends without waiting for a request that is under way.
        self._threads = [Thread(target=self._work, args=(one,), name=thread_name, daemon=True) for one in sessions]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closed = True
        if kind is not None:
            for session in self._sessions:
                session.stopped = lambda: "the work was broken off"
        for _thread in self._threads:
            self._jobs.put(None)
        if kind is None:
            # An interruption does not wait for calls under way.
            for thread in self._threads:
                thread.join()

    def call(
        self, names: Iterable[str], request: Callable[[S, str], T], *, retry_timeout: float = 0.0
    ) -> Iterator[Outcome[T]]:
        """Call ``request(session, name)`` for each name, and yield the outcomes as they come.

        When the retries of one call were in vain, the next calls on its session are not retried until the service
        responds again: otherwise a long list would take hours while the service is unavailable.

        :param retry_timeout: seconds after which one call is not retried again; 0 for no retry.
        :return: for each name its outcome. The error of a call that was not begun has the code CANCELLED, that of an
            invalid name INVALID_ARGUMENT, and that of a call that failed with any other error UNKNOWN.
        """
        return chain.from_iterable(self.batches(names, request, retry_timeout=retry_timeout))

    def batches(
        self,
        names: Iterable[str],
        request: Callable[[S, str], T],
        *,
        retry_timeout: float = 0.0,
        seconds: float = 0.0,
        until: float = float("inf"),
    ) -> Generator[list[Outcome[T]]]:
        """Do the same, and yield several outcomes at a time.

        Jobs that have not begun are dropped when the iterator is closed.

        :param seconds: after the first outcome of a batch, how long to wait for others.
        :param until: when to wait no longer for any outcome, in seconds of ``time.monotonic``.
        """
        done: SimpleQueue[Outcome[T]] = SimpleQueue()
        dropped = Event()

        def job(name: str) -> Callable[[S], None]:
            def run(session: S) -> None:
                if not (self._closed or dropped.is_set()):
                    done.put(self._outcome(session, name, request, retry_timeout))

            return run

        for session in self._sessions:
            session.retry_timeout = retry_timeout
        left = 0
        for name in names:
            self._jobs.put(job(name))
            left += 1
        return self._collect(done, dropped, left, seconds, until)

    def hold(self, seconds: float) -> None:
        """Begin no job for so many seconds, for example while a signal handler needs the CPU; 0 resumes."""
        self._held_until = time.monotonic() + seconds

    def assist(self, session: S, until: float) -> None:
        """Do jobs in the calling thread too, until none is left or the time is up.

        :param session: one for this thread only.
        :param until: in seconds of ``time.monotonic``.
        """
        with suppress(Empty):
            while time.monotonic() < until and (job := self._jobs.get_nowait()):
                job(session)

    def _collect(
        self, done: SimpleQueue[Outcome[T]], dropped: Event, left: int, seconds: float, until: float
    ) -> Generator[list[Outcome[T]]]:
        try:
            while left:
                try:
                    outcomes = [done.get(timeout=_seconds_to(until))]
                except Empty:
                    return
                end = min(time.monotonic() + seconds, until)
                with suppress(Empty):
                    while len(outcomes) < left:
                        outcomes.append(done.get(timeout=_seconds_to(end)))
                left -= len(outcomes)
                yield outcomes
        finally:
            # Not taken out of the queue: after an exception, this can run long after the end of the threads was put in.
            dropped.set()

    def _work(self, session: S) -> None:
        with session:
            while job := self._jobs.get():
                while time.monotonic() < self._held_until:
                    time.sleep(_HOLD_CHECK)
                job(session)

    def _outcome(self, session: S, name: str, request: Callable[[S, str], T], retry_timeout: float) -> Outcome[T]:
        if reason := self.stopped():
            return Outcome(name, None, ServiceError(reason, Code.CANCELLED, sent=False))
        try:
            result = request(session, name)
        except ServiceError as error:
            session.retry_timeout = retry_timeout if error.rpc_code in PERMANENT else 0.0
            return Outcome(name, None, error)
        except Exception as error:
            return Outcome(name, None, error_of_one(error))
        session.retry_timeout = retry_timeout
        return Outcome(name, result, None)


def error_of_one(error: Exception) -> ServiceError:
    """Return the error of one call of many: whatever it is, it never keeps the others from being made."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, ValueError):
        return ServiceError(str(error), Code.INVALID_ARGUMENT)
    failure = ServiceError(redact_urls(repr(error)), Code.UNKNOWN)
    failure.__cause__ = error
    return failure


def _seconds_to(until: float) -> float | None:
    """Return how long to wait, or None for no limit."""
    return None if until == float("inf") else max(0.0, until - time.monotonic())
