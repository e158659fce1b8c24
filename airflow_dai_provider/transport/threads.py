"""Make one call for each of many operations, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.retry import PERMANENT


class Session(AbstractContextManager[Any], Protocol):
    """What a worker needs of a hook."""

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

    The threads ask Airflow for nothing but the log and the metrics: connections are looked up before they start.

    :param sessions: hooks that are ready to use, one for each call under way at a time.
    :param stopped: the reason to begin no other call and no retry, or None.
    """

    def __init__(self, sessions: Sequence[S], *, stopped: Callable[[], str | None]) -> None:
        self._sessions = sessions
        self._stopped = stopped
        self._idle: SimpleQueue[S] = SimpleQueue()
        for session in sessions:
            session.stopped = stopped
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
    ) -> Iterator[Outcome[T]]:
        """Call ``request(session, name)`` for each name, and yield the outcomes in the same order.

        When the retries of one call were in vain, the next calls on its session are not retried until the service
        responds again: otherwise a long list would take hours while the service is unavailable.

        :param retry_timeout: seconds after which one call is not retried again; 0 for no retry.
        :return: for each name its outcome. The error of a call that was not begun has the code CANCELLED, that of an
            invalid name INVALID_ARGUMENT.
        """

        def attempt(name: str) -> Outcome[T]:
            session = self._idle.get()
            try:
                if reason := self._stopped():
                    return Outcome(name, None, ServiceError(reason, Code.CANCELLED, sent=False))
                result = request(session, name)
            except ValueError as error:
                return Outcome(name, None, ServiceError(str(error), Code.INVALID_ARGUMENT))
            except ServiceError as error:
                session.retry_timeout = retry_timeout if error.rpc_code in PERMANENT else 0.0
                return Outcome(name, None, error)
            else:
                session.retry_timeout = retry_timeout
                return Outcome(name, result, None)
            finally:
                self._idle.put(session)

        for session in self._sessions:
            session.retry_timeout = retry_timeout
        return self._threads.map(attempt, list(names))
