"""Make one call for each of many operations, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from queue import SimpleQueue
from typing import Any, Generic, Protocol, Self, TypeVar

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.retry import PERMANENT


class Session(AbstractContextManager[Any], Protocol):
    """What a worker needs of a hook."""

    retry_timeout: float


S = TypeVar("S", bound=Session)
T = TypeVar("T")


class Workers(Generic[S]):
    """Threads, each with a session of its own.

    The threads ask Airflow for nothing but the log and the metrics: connections are looked up before they start.

    :param sessions: hooks that are ready to use, one for each call under way at a time.
    :param should_stop: whether to begin no other call.
    """

    def __init__(self, sessions: Sequence[S], *, should_stop: Callable[[], bool]) -> None:
        self._sessions = sessions
        self._should_stop = should_stop
        self._idle: SimpleQueue[S] = SimpleQueue()
        for session in sessions:
            self._idle.put(session)
        self._threads = ThreadPoolExecutor(max(1, len(sessions)), thread_name_prefix="dai-worker")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # An interruption does not wait for calls under way, whose sessions stay open until they are over.
        self._threads.shutdown(wait=kind is None, cancel_futures=True)
        if kind is None:
            for session in self._sessions:
                session.__exit__(None, None, None)

    def call(
        self, names: Iterable[str], request: Callable[[S, str], T], *, retry_timeout: float = 0.0
    ) -> tuple[dict[str, T], dict[str, ServiceError]]:
        """Call ``request(session, name)`` for each name.

        When the retries of one call were in vain, the next calls on its session are not retried until the service
        responds again: otherwise a long list would take hours while the service is unavailable.

        :param retry_timeout: seconds after which one call is not retried again; 0 for no retry.
        :return: by name, what the calls returned, and the errors of those that failed (a name that the service
            refuses to take counts as one). A name that was not attempted,
            since the workers should stop, is in neither.
        """

        def attempt(name: str) -> T | None:
            session = self._idle.get()
            try:
                if self._should_stop():
                    raise _NotAttempted
                result = request(session, name)
            except ValueError as error:
                raise ServiceError(str(error), Code.INVALID_ARGUMENT) from error
            except ServiceError as error:
                session.retry_timeout = retry_timeout if error.rpc_code in PERMANENT else 0.0
                raise
            else:
                session.retry_timeout = retry_timeout
                return result
            finally:
                self._idle.put(session)

        for session in self._sessions:
            session.retry_timeout = retry_timeout
        calls: dict[str, Future[Any]] = {name: self._threads.submit(attempt, name) for name in names}
        results: dict[str, T] = {}
        failures: dict[str, ServiceError] = {}
        for name, call in calls.items():
            try:
                results[name] = call.result()
            except ServiceError as error:
                failures[name] = error
            except _NotAttempted:
                continue
        return results, failures


class _NotAttempted(Exception):  # noqa: N818 - no error
    """The workers were told to stop before this call."""
