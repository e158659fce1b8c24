"""Threads that request the cancellations of a sweep and look for the ends, each with a hook of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self, TypeVar

from airflow_dai_provider.api.errors import PERMANENT, Code, ServiceError
from airflow_dai_provider.api.polling import Wait, WaitTimeoutError
from airflow_dai_provider.metrics import count_ended
from airflow_dai_provider.sweep.report import Failure, SweepReport
from airflow_dai_provider.tasks.cancellation import request_cancellation
from airflow_dai_provider.tasks.failures import error_code, error_message

if TYPE_CHECKING:
    from airflow_dai_provider.api.operation import Operation
    from airflow_dai_provider.hooks.dai import DaiHook

T = TypeVar("T")

#: The most threads, and connections, of one crew.
MAX_CONCURRENCY = 50


class Crew:
    """
    Do what a sweep does to many operations, some of them at a time, and keep its report.

    The threads call nothing of Airflow but the log and the metrics: the connection is looked up before they start.
    Each session serves one thread at a time. The report is written by the caller's thread only.

    :param hook: whose connection they use, looked up already.
    :param size: how many calls are under way at a time, at most.
    :param log: where everything is said.
    :param is_called_off: whether to begin no other call.
    """

    def __init__(self, hook: DaiHook, size: int, log: Any, is_called_off: Callable[[], bool]) -> None:
        self._log = log
        self._is_called_off = is_called_off
        self._retry_timeout = hook.retry_timeout
        self._hooks = [hook.sibling() for _ in range(size)]
        self._idle: SimpleQueue[DaiHook] = SimpleQueue()
        for idle in self._hooks:
            self._idle.put(idle)
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="dai-sweep")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Whoever breaks in does not wait for calls under way, whose sessions stay open until they are over.
        self._threads.shutdown(wait=kind is None, cancel_futures=True)
        if kind is None:
            for hook in self._hooks:
                hook.close()

    def request_cancellations(self, report: SweepReport) -> None:
        """Request the cancellation of every operation that is left."""

        def request(hook: DaiHook, name: str) -> Operation | None:
            return request_cancellation(hook, name, self._log)

        for name, result in self._call(report.left, request, self._retry_timeout):
            if isinstance(result, Failure):
                self._note_failure(report, name, result)
            elif result is None:
                report.request_taken(name)
            else:
                count_ended(result.state)
                report.seen(name, result)

    def wait(
        self, report: SweepReport, wait: Wait, *, clock: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        """
        Look, in rounds, until every operation whose cancellation is requested has ended; what has not is left then.

        :param wait: one for all of them: the service counts as away when no look of a round succeeds.
        """
        while (last := self._look(report)) and report.requested:
            now = clock()
            try:
                if isinstance(last, Failure):
                    seconds, _ = wait.after_error(ServiceError(last.reason, last.code), now)
                else:
                    seconds = wait.after_look(last, now)
            except (WaitTimeoutError, ServiceError):
                report.leave_requested(f"it was waited for {wait.elapsed(now):.0f} s")
                break
            line = "The end of %d operations is not seen yet; %.0f s elapsed, next look in %.1f s"
            self._log.info(line, len(report.requested), wait.elapsed(now), seconds)
            sleep(seconds)

    def _look(self, report: SweepReport) -> Operation | Failure | None:
        """Look once at every requested operation; return one that runs, or else why one could not be seen."""

        def look(hook: DaiHook, name: str) -> Operation:
            return hook.get_operation(name)

        running: Operation | None = None
        failure: Failure | None = None
        # Not repeated: the next round is the repeat.
        for name, result in self._call(report.requested, look, 0.0):
            if isinstance(result, Failure):
                self._note_failure(report, name, result)
                failure = result if name in report.requested else failure
                continue
            report.seen(name, result)
            if result.done:
                count_ended(result.state)
                self._log.info("%s.", result)
            else:
                running = result
        return running or failure

    def _note_failure(self, report: SweepReport, name: str, failure: Failure) -> None:
        self._log.warning("%s: %s", name, failure.reason)
        report.failed(name, failure)

    def _call(
        self, names: Collection[str], request: Callable[[DaiHook, str], T], retry_timeout: float
    ) -> Iterator[tuple[str, T | Failure]]:
        """
        Give each name, in order, with what ``request(hook, name)`` returned, or with the service's error.

        A session whose repeats were in vain sends one request for each of the names that follow, until the service
        answers it again: else a long list would take hours when the service is away.

        :param retry_timeout: seconds after which one request is not repeated again; 0 for no repeat at all.
        """

        def attempt(name: str) -> T | Failure:
            hook = self._idle.get()
            try:
                if self._is_called_off():
                    return Failure(Code.CANCELLED, "the task was killed before this was attempted")
                result = request(hook, name)
            except Exception as error:
                code = error_code(error)
                if code is None:
                    raise
                hook.retry_timeout = retry_timeout if code in PERMANENT else 0.0
                return Failure(code, error_message(error).rstrip("."))
            else:
                hook.retry_timeout = retry_timeout
                return result
            finally:
                self._idle.put(hook)

        for hook in self._hooks:
            hook.retry_timeout = retry_timeout
        names = list(names)
        return zip(names, self._threads.map(attempt, names), strict=True)
