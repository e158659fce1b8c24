"""
When to look at an operation again, and when to stop waiting.

Pure: whoever does the looking (a worker that sleeps, a trigger that awaits) asks here and brings its own clock.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from random import random

from airflow_dai_provider.api.errors import ANY_HICCUP, PERMANENT, ServiceError
from airflow_dai_provider.api.operation import Operation

#: Seconds before the second look; the first comes at once.
FIRST_INTERVAL = 1.0
#: The interval grows by this share of the time waited so far, which makes it grow 1.5-fold from look to look.
GROWTH = 0.5
#: The most that jitter takes away from an interval, as a share of it.
JITTER = 0.2
#: Seconds that a service may stay out of reach before the wait ends with its error; it is looked at ten times in them.
MAX_OUTAGE = 300.0


class WaitTimeoutError(TimeoutError):
    """The operation was still running when the time was up; nothing has been cancelled."""


class Wait:
    """
    One wait for the end of an operation.

    Looks come at 0 s, 1 s and then 1.5-fold later each time, up to ``poll_interval``: a quick end is seen soon, a
    slow one costs one look per interval. Jitter only shortens, so that waits that began together spread out.

    :param name: the operation's name, for messages.
    :param started: when the wait began, in seconds of the caller's clock.
    :param poll_interval: the longest time between two looks, in seconds.
    :param timeout: seconds after which the wait is over, or None for no limit. One last look is made then.
    :param max_outage: seconds that the service may stay out of reach, or None for no limit: then only what can never
        heal ends the wait.
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

    def elapsed(self, now: float) -> float:
        """Return the seconds waited so far."""
        return now - self.started

    def time_left(self, now: float) -> float:
        """Return the seconds until the time is up; infinite without a timeout."""
        return float("inf") if self.timeout is None else max(0.0, self.started + self.timeout - now)

    def after_look(self, operation: Operation, now: float) -> float:
        """
        Decide when to look again after a look that found the operation running.

        :return: the seconds until then.
        :raises WaitTimeoutError: when the time is up.
        """
        self._failing_since = None
        return self._next(now, "the last look said", operation)

    def after_error(self, error: ServiceError, now: float) -> tuple[float, str]:
        """
        Decide when to look again after a look that failed.

        :return: the seconds until then, and the line for the task's log.
        :raises ServiceError: the same, when it cannot heal or the service is away for too long.
        :raises WaitTimeoutError: when the time is up.
        """
        if self._failing_since is None:
            self._failing_since = now
        hopeless = error.code in PERMANENT if self.max_outage == float("inf") else error.code not in ANY_HICCUP
        if hopeless or now - self._failing_since >= self.max_outage:
            raise error
        outage_left = self._failing_since + self.max_outage - now
        wait = self._next(
            now,
            "the last look failed",
            error,
            at_least=min(error.retry_after or 0.0, outage_left),
            interval=min(self.poll_interval, self.max_outage / 10),
        )
        return wait, f"Could not look at {self.name}: {error}; {_times(now - self.started, wait)}"

    def _next(
        self, now: float, last: str, result: object, at_least: float = 0.0, interval: float | None = None
    ) -> float:
        elapsed = now - self.started
        wait = max(next_interval(elapsed, interval or self.poll_interval, self._jitter()), at_least)
        if self.timeout is None:
            return wait
        if elapsed >= self.timeout:
            raise WaitTimeoutError(f"{self.name} has not ended within {self.timeout:g} s; {last}: {result}")
        return min(wait, self.timeout - elapsed)


def next_interval(elapsed: float, poll_interval: float, jitter: float) -> float:
    """
    Return the seconds until the next look.

    :param elapsed: seconds waited so far.
    :param poll_interval: the most it can be.
    :param jitter: a number from 0 to 1.
    """
    return min(FIRST_INTERVAL + GROWTH * max(elapsed, 0.0), poll_interval) * (1 - JITTER * jitter)


def describe_look(operation: Operation, elapsed: float, wait: float) -> str:
    """Return the log line of one look that found the operation running."""
    return f"{operation}; {_times(elapsed, wait)}"


def check_seconds(parameter: str, value: object, *, zero: bool = False) -> float:
    """
    Return a duration in seconds.

    :param zero: whether 0 is one.
    :raises ValueError: when it is no positive number; the message says what was given and what was expected.
    """
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 <= value <= sys.float_info.max
        and (value or zero)
    ):
        return float(value)
    raise ValueError(
        f"Invalid {parameter} {value!r}: expected a {'non-negative' if zero else 'positive'} number of seconds."
    )


def _times(elapsed: float, wait: float) -> str:
    return f"{elapsed:.0f} s elapsed, next look in {wait:.1f} s"
