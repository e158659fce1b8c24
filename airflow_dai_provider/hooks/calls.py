"""How the synchronous hook calls the service: retries, pauses, and siblings that work side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import random
from typing import Any, Self, TypeVar

from airflow_dai_provider import metrics
from airflow_dai_provider.api import rest
from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.polling import Wait
from airflow_dai_provider.api.retry import MAX_BACKOFF, Retry, as_outage, not_retried
from airflow_dai_provider.hooks.base import DaiBaseHook
from airflow_dai_provider.transport.google_errors import typed
from airflow_dai_provider.transport.shared_token import REFUSAL_LASTS
from airflow_dai_provider.transport.threads import CONCURRENCY, Workers

T = TypeVar("T")

#: The most seconds for which a sibling sleeps before it checks whether it is stopped.
MAX_SLEEP = MAX_BACKOFF


class DaiCallingHook(DaiBaseHook):
    """Send requests with retries, and again once the service allows it.

    The parameters are those of :class:`airflow_dai_provider.hooks.dai.DaiHook`.
    """

    #: Replaced in tests, which replace nothing but time and randomness.
    _sleep: Callable[[float], None] = staticmethod(time.sleep)
    _clock: Callable[[], float] = staticmethod(time.monotonic)
    _random: Callable[[], float] = staticmethod(random)

    #: Returns the reason to send no further request or retry, or None. A killed task sets it, and a callback whose time
    #: is up; siblings share it.
    stopped: Callable[[], str | None] = staticmethod(lambda: None)
    #: Whether this hook is one of several siblings that work side by side, each in a thread. They log nothing:
    #: their caller logs each kind of error once.
    is_worker = False

    @property
    def responded(self) -> bool:
        """Whether the API has responded to this hook or a sibling: endpoint and access are right."""
        return self.service.responded

    @responded.setter
    def responded(self, responded: bool) -> None:
        self.service.responded = responded

    def workers(self, number: int, most: int = CONCURRENCY, *, wait: Wait | None = None) -> Workers[Self]:
        """Return threads that work on many operations, each with a sibling of this hook; use them as a context manager.

        :param number: how many operations there are.
        :param most: how many requests may be under way at a time.
        :param wait: see :meth:`connect`.
        :raises WaitTimeoutError: when the look-up fails until the time of the wait is up.
        :raises google.api_core.exceptions.GoogleAPICallError: when the connection gives no credentials.
        """
        if self._token is None:
            # Otherwise the hook is connected. If it has fetched no token, that is not tried again before it is needed.
            self.connect(wait)
        self.shared_token().refusal_lasts = REFUSAL_LASTS
        siblings = [self.sibling() for _ in range(max(1, min(number, most)))]
        for sibling in siblings:
            sibling.is_worker = True
        return Workers(siblings, stopped=self.stopped)

    def make_retry(self, retryable_codes: frozenset[Code], started: float) -> Retry:
        """Return the retries of a call that began at ``started``."""
        return Retry(
            retryable_codes,
            # The default, as long as the connection could not be looked up.
            num_retries=max(0, self.num_retries) if self.looked_up else 5,
            retry_timeout=self.retry_timeout,
            started=started,
            jitter=self._random,
        )

    def connect(self, wait: Wait | None = None) -> None:
        """Look up the connection and fetch a token, with the retries of a request; the first call would do it too.

        :param wait: decides about a failure as about that of a poll, in place of these retries.
        :raises WaitTimeoutError: when it fails until the time of the wait is up.
        :raises google.api_core.exceptions.GoogleAPICallError: when the connection gives no credentials. When no token
            can be fetched, the next call raises the error.
        """
        request = rest.list_operations(page_size=1)

        def attempt() -> None:
            self.shared_token().fetch_first()

        if wait:
            self._attempt_until_over(request, attempt, wait)
        else:
            # A pause that the service has asked for does not apply to the token service.
            self._retried(request, attempt, keeps_pause=False)

    def _call(self, request: rest.Request[T], *, retry: bool = True) -> T:
        """Send a request, and again after errors that allow it; raise the last ServiceError."""
        return self._retried(request, lambda: self._send(request), retry=retry)

    def _retried(
        self, request: rest.Request[Any], attempt: Callable[[], T], *, retry: bool = True, keeps_pause: bool = True
    ) -> T:
        self._check_stopped(request)
        started = self._clock()
        retries: Retry | None = None
        while True:
            if keeps_pause:
                until = started + self.retry_timeout if retry else started
                self._keep_pause(request, until, retries.failure if retries else None)
            try:
                return attempt()
            except ServiceError as error:
                last = typed(as_outage(error, self.responded, request.retryable_codes))
            if not retry:
                raise last
            retries = retries or self.make_retry(request.retryable_codes, started)
            seconds, line = retries.after(last, self._clock())
            if not self.is_worker:
                self.log.warning("%s", line)
            metrics.count_retry()
            self._sleep_unless_stopped(seconds)
            self._check_stopped(request, retries.failure)

    def _keep_pause(self, request: rest.Request[Any], until: float, failure: ServiceError | None) -> None:
        """Wait as long as the service has asked this hook or a sibling to.

        If that is too long for this call, a sibling raises: many requests would ignore the pause. A single request is
        sent, since its response can decide the outcome of an ingest.

        :param failure: the error of the last attempt, if there was one.
        """
        pause = self.service.pause
        while delay := pause.delay(now := self._clock()):
            if now + delay >= until:
                if self.is_worker:
                    raise typed(pause.error(request, delay, failure))
                self._sleep_unless_stopped(until - now)
                return
            self._sleep_unless_stopped(delay)
            self._check_stopped(request, failure)

    def _sleep_unless_stopped(self, seconds: float) -> None:
        """Sleep; a sibling only until it is stopped, since an interruption waits for the threads."""
        while seconds > 0 and self.is_worker and not self.stopped():
            self._sleep(min(seconds, MAX_SLEEP))
            seconds -= MAX_SLEEP
        if seconds > 0 and not self.is_worker:
            self._sleep(seconds)

    def _check_stopped(self, request: rest.Request[Any], failure: ServiceError | None = None) -> None:
        if reason := self.stopped():
            if failure:
                raise typed(not_retried(failure, reason))
            raise typed(ServiceError(f"{request} was not sent: {reason}", Code.CANCELLED, sent=False))

    def _attempt_until_over(self, request: rest.Request[Any], attempt: Callable[[], T], wait: Wait) -> T:
        """Attempt a call until it succeeds; tolerate failures as long as a wait does."""
        while True:
            self._check_stopped(request)
            try:
                return attempt()
            except ServiceError as error:
                seconds, line = judge(wait, error, self._clock())
            if line:
                self.log.warning("%s", line)
            self._sleep(seconds)

    def _send(self, request: rest.Request[T], timeout: float = float("inf")) -> T:
        """Send a request once.

        :param timeout: seconds that it may take, if these are fewer than those of every request.
        """
        try:
            result = self._get_transport().call(request, timeout)
        except ServiceError as error:
            self.service.pause.note(error, self._clock())
            raise
        self.service.responded = True
        return result


def judge(wait: Wait, error: ServiceError, now: float) -> tuple[float, str | None]:
    """Decide as :meth:`Wait.after_error` when to poll again; raise its errors as those of a hook."""
    try:
        return wait.after_error(error, now)
    except ServiceError as verdict:
        raise typed(verdict) from error.__cause__
