"""Polling: when to poll an operation again, and when to stop waiting.

Pure: the caller (a worker that sleeps, a trigger that awaits) polls, and brings its own clock.
"""

from __future__ import annotations

from collections.abc import Callable
from random import random

from airflow_dai_provider.api.errors import ServiceError
from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.api.parameters import check_seconds
from airflow_dai_provider.api.retry import PERMANENT, TRANSIENT

#: Seconds between the first poll, which comes at once, and the second.
FIRST_INTERVAL = 1.0
#: The interval grows by this share of the time waited so far, which makes it grow 1.5-fold from poll to poll.
GROWTH = 0.5
#: The largest share of an interval that jitter takes away.
JITTER = 0.2
#: Seconds that a service may be unavailable before the wait fails with its error; it is polled ten times in them.
MAX_OUTAGE = 300.0


class WaitTimeoutError(TimeoutError):
    """The operation was still running when the time was up; nothing has been cancelled."""


class Wait:
    """One wait until an operation is done.

    Polls come at 0 s, 1 s and then 1.5-fold later each time, up to ``poll_interval``: a quick end is seen soon, a
    slow one costs one poll per interval. Jitter only shortens, so that waits that began together spread out.

    :param name: the operation's name, for messages.
    :param started: when the wait began, in seconds of the caller's clock.
    :param poll_interval: the longest time between two polls, in seconds.
    :param timeout: seconds after which the wait is over, or None for no limit. One last poll is made then.
    :param max_outage: seconds that the service may be unavailable, or None for no limit: then only a permanent error
        ends the wait.
    :param jitter: gives numbers from 0 to 1.
    """

    def __init__(
        self,
        name: str,
        *,
        started: float,
        poll_interval: float,
        timeout: float | None = None,
        max_outage: float | None = MAX_OUTAGE,
        jitter: Callable[[], float] = random,
    ) -> None:
        self.name = name
        self.started = started
        self.poll_interval = check_seconds("poll_interval", poll_interval)
        self.timeout = timeout if timeout is None else check_seconds("timeout", timeout, zero=True)
        self.max_outage = float("inf") if max_outage is None else check_seconds("max_outage", max_outage)
        self._jitter = jitter
        self._failing_since: float | None = None

    def time_left(self, now: float) -> float:
        """Return the seconds until the time is up; infinite without a timeout."""
        return float("inf") if self.timeout is None else max(0.0, self.started + self.timeout - now)

    def after_poll(self, operation: Operation | str, now: float) -> tuple[float, str]:
        """Decide when to poll again after a poll that found the operation running.

        :param operation: what was seen; a text where the wait is for many operations.
        :return: the seconds until then, and the line for the log.
        :raises WaitTimeoutError: when the time is up.
        """
        self._failing_since = None
        wait = self._next(now, f"the last poll found: {operation}")
        return wait, describe_poll(operation, now - self.started, wait)

    def after_error(self, error: ServiceError, now: float) -> tuple[float, str]:
        """Decide when to poll again after a poll that failed.

        :return: the seconds until then, and the line for the log.
        :raises ServiceError: the same, when it is permanent or the service is unavailable for too long.
        :raises WaitTimeoutError: when the time is up.
        """
        if self._failing_since is None:
            self._failing_since = now
        permanent = error.rpc_code in PERMANENT if self.max_outage == float("inf") else error.rpc_code not in TRANSIENT
        outage_left = self._failing_since + self.max_outage - now
        if permanent or outage_left <= 0:
            raise error
        wait = self._next(
            now,
            f"the last poll failed: {error}",
            at_least=min(error.retry_after or 0.0, outage_left),
            interval=min(self.poll_interval, self.max_outage / 10),
        )
        return wait, describe_poll(f"Could not poll {self.name}: {error}", now - self.started, wait)

    def _next(self, now: float, last: str, at_least: float = 0.0, interval: float | None = None) -> float:
        elapsed = now - self.started
        wait = max(next_interval(elapsed, interval or self.poll_interval, self._jitter()), at_least)
        if self.timeout is None:
            return wait
        if elapsed >= self.timeout:
            raise WaitTimeoutError(f"{self.name} has not finished within {self.timeout:g} s; {last}")
        return min(wait, self.timeout - elapsed)


def next_interval(elapsed: float, poll_interval: float, jitter: float) -> float:
    """Return the seconds until the next poll.

    :param elapsed: seconds waited so far.
    :param poll_interval: the most it can be.
    :param jitter: a number from 0 to 1.
    """
    return min(FIRST_INTERVAL + GROWTH * max(elapsed, 0.0), poll_interval) * (1 - JITTER * jitter)


def describe_poll(result: object, elapsed: float, wait: float) -> str:
    """Return the log line of one poll after which the wait goes on.

    :param result: the operation, or what went wrong.
    :param elapsed: seconds waited so far.
    :param wait: seconds until the next poll.
    """
    return f"{result}; {elapsed:.0f} s elapsed, next poll in {wait:.1f} s"
