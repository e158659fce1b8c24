"""Cancel requests that a signal handler can send, for one ingest or for thousands."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Self

from airflow_dai_provider.api.errors import Code, ServiceError

if TYPE_CHECKING:
    from airflow_dai_provider.hooks.dai import DaiHook
    from airflow_dai_provider.transport.threads import Workers

#: Seconds that all cancel requests may take when a task is killed. Airflow 3 ends the process 5 s after the kill, so
#: they have to be over before that.
KILL_TIMEOUT = 3.6
#: The most cancel requests under way at a time.
CONCURRENCY = 32
#: Seconds that the handler waits until what was requested is in the log.
LOG_TIMEOUT = 0.5

#: The fewest seconds for one request.
_LEAST_TIMEOUT = 0.1
_TIME_IS_UP = "there was no time left to request its cancellation"


class _Session:
    """A session for cancel requests only: it looks up nothing, fetches no token, and does not retry."""

    retry_timeout = 0.0
    stopped: Callable[[], str | None] = staticmethod(lambda: None)

    def __init__(self, hook: DaiHook, *, fetch_token: bool = False) -> None:
        self._send = hook.prepare_cancellation(fetch_token=fetch_token)

    def cancel(self, name: str, until: float) -> None:
        """Request one cancellation.

        :param until: when the response has to be there, in seconds of ``time.monotonic``.
        """
        self._send(name, max(_LEAST_TIMEOUT, until - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Keep the session: the process ends."""


class PreparedCancels:
    """Cancel requests that were prepared before the signal came.

    The signal can interrupt the task anywhere. If the task is waiting for a response of Airflow, another request to
    Airflow from the handler would deadlock; if it is inside a request to the service, the locks of its session are
    held; if it is writing to the log, a thread that logs would wait for a lock that the task holds until the handler
    returns. Therefore nothing is looked up then and nothing is shared with the task: each session was made before,
    takes the token at hand, and sends each request once. The threads run already, are fed through a ``SimpleQueue``,
    which takes no lock of Python's, and log nothing.

    The handler sends requests itself too. For a single ingest there is no thread but the one that writes to the log:
    the logger of a task of Airflow 3 has a lock that the handler cannot take again.

    :param hook: the hook of the task.
    :param number: how many ingests there can be.
    """

    def __init__(self, hook: DaiHook, number: int) -> None:
        # One attempt for all sessions: while no token can be had, each takes its time.
        self._own = _Session(hook, fetch_token=True)
        self._threads: Workers[_Session] | None = None
        self._until = float("inf")
        self._lines: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._log_thread = Thread(target=self._write_log, name="dai-kill-log", daemon=True)
        self._log_thread.start()
        if number > 1:
            # Imported here, since DAG files are parsed often and few of their tasks start many ingests.
            from airflow_dai_provider.transport.threads import Workers

            helpers = [_Session(hook) for _ in range(min(number, CONCURRENCY) - 1)]
            self._threads = Workers(helpers, stopped=self._stopped, thread_name="dai-kill")

    def cancel(self, names: Sequence[str]) -> dict[str, Exception]:
        """Request the cancellations, in the time that a kill leaves; return the errors."""
        errors: dict[str, Exception] = {}
        until = self._until = time.monotonic() + KILL_TIMEOUT
        if self._threads is None:
            for name in names:
                try:
                    self._own.cancel(name, until)
                except Exception as error:
                    errors[name] = error
            return errors
        errors = dict.fromkeys(names, ServiceError(_TIME_IS_UP, Code.CANCELLED, sent=False))
        batches = self._threads.batches(names, lambda session, name: session.cancel(name, until), until=until)
        self._threads.assist(self._own, until)
        for outcomes in batches:
            for name, _, failure in outcomes:
                if failure is None:
                    del errors[name]
                else:
                    errors[name] = failure
        return errors

    def log(self, write: Callable[[], None]) -> None:
        """Write to the log in a thread; wait for it at most for :data:`LOG_TIMEOUT`.

        When the task was interrupted while it held the log's lock, the thread goes on once the handler has returned.
        """
        written: SimpleQueue[None] = SimpleQueue()
        self._lines.put(write)
        self._lines.put(lambda: written.put(None))
        with suppress(Empty):
            written.get(timeout=LOG_TIMEOUT)

    def close(self) -> None:
        """End the threads."""
        if self._threads:
            self._threads.__exit__(None, None, None)
            self._threads = None
        self._lines.put(None)
        self._log_thread.join()

    def _write_log(self) -> None:
        while write := self._lines.get():
            write()

    def _stopped(self) -> str | None:
        return _TIME_IS_UP if time.monotonic() >= self._until else None
