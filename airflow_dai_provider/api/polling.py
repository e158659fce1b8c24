"""Polling: when to poll an operation again, and when to stop waiting.

Pure: the caller (a worker that sleeps, a trigger that awaits) polls, and brings its own clock.
"""

from __future__ import annotations

from collections.abc import Callable
from math import floor
from random import random

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.api.parameters import Duration, check_seconds
from airflow_dai_provider.api.retry import PERMANENT, TRANSIENT, as_outage

#: Seconds between the first poll, which comes at once, and the second.
FIRST_INTERVAL = 1.0
#: The interval grows by this share of the time waited so far, which makes it grow 1.5-fold from poll to poll.
GROWTH = 0.5
#: The largest share of an interval that jitter takes away.
JITTER = 0.2
#: The share of a step of the grid by which a poll may come too early and still be the one that was due.
_EARLY = 0.01
#: Seconds that a service may be unavailable before the wait fails with its error; it is polled ten times in them.
MAX_OUTAGE = 300.0
#: Seconds for which polls must return NOT_FOUND, and no poll the operation, before it is believed: a service can take
#: as long until all its servers know an operation that one of them has just created, and one server can be behind.
NOT_FOUND_GRACE = 10.0
#: The number of polls that must return it: in a busy triggerer, two can be ten seconds apart.
NOT_FOUND_POLLS = 4


class WaitTimeoutError(TimeoutError):
    """The operation was still running when the time was up; nothing has been cancelled."""


class Wait:
    """One wait until an operation is done.

    Polls come at 0 s, 1 s and then 1.5-fold later each time, up to ``poll_interval``: a quick end is seen soon, a
    slow one costs one poll per interval. Jitter only shortens, so that waits that began together spread out. Where
    polls cost less when they are due together, they come at the times of a grid instead, which only shortens intervals
    too. A poll that has failed is made again after 1 s, and then in growing intervals as at the start.

    The log has a line for the first failed poll, for each new rpc code after it, and, when the service responds again,
    for the number of failed polls.

    :param name: the operation's name, for messages.
    :param started: when the wait began, in seconds of the caller's clock.
    :param poll_interval: the longest time between two polls, in seconds.
    :param timeout: seconds after which the wait ends, with one last poll; None for no limit.
    :param max_outage: seconds that the service may be unavailable; None for no limit: then only a permanent error or
        the timeout ends the wait early.
    :param responded: whether the API has responded before at this endpoint. From then on the error page of a front end
        or a proxy says nothing of the API or of the operation: whatever its status, 501 included, it is an outage.
        Before that, it is the sign of a wrong endpoint or of a lack of access, and permanent as its status is.
    :param jitter: returns a random number from 0 to 1.
    :param slot: takes the current time, an interval and the poll interval; returns the next time on the shared grid, or
        None if this wait polls at its own times.
    """

    def __init__(
        self,
        name: str,
        *,
        started: float,
        poll_interval: Duration,
        timeout: Duration | None = None,
        max_outage: Duration | None = MAX_OUTAGE,
        responded: bool = False,
        jitter: Callable[[], float] = random,
        slot: Callable[[float, float, float], float | None] = lambda *_: None,
    ) -> None:
        self.name = name
        self.started = started
        self.poll_interval = check_seconds("poll_interval", poll_interval)
        self.timeout = timeout if timeout is None else check_seconds("timeout", timeout, zero=True)
        self.max_outage = float("inf") if max_outage is None else check_seconds("max_outage", max_outage)
        self.responded = responded
        self.jitter = jitter
        #: The number of the next poll, which counts those that have found the operation running.
        self.number = 0
        #: The time of the grid at which the next poll is due, or None.
        self.slot: float | None = None
        self._find_slot = slot
        self._latest = started
        self._set_back = 0.0
        self._failing_since: float | None = None
        self._missing_since: float | None = None
        self._missing_polls = 0
        self._failures = 0
        self._told: set[Code] = set()

    def begin_outage(self, now: float) -> float:
        """Note that polls are failing; return the time at which they began to fail."""
        now = self._steady(now)
        if self._failing_since is None:
            self._failing_since = now
        return self._failing_since

    def _steady(self, now: float) -> float:
        """Return the time of a clock that is not set back.

        That of a deferred wait can be, and can be behind that of an earlier triggerer. Without this, the wait would
        poll every second until the clock has caught up, and tolerate an outage for as long.
        """
        self._set_back += max(self._latest - now, 0.0)
        self._latest = now
        return now + self._set_back

    def is_over(self, now: float, *, outage: bool) -> bool:
        """Return whether the time is up.

        :param outage: whether ``max_outage`` counts as well as ``timeout``.
        """
        if self.timeout is not None and now >= self.started + self.timeout:
            return True
        return outage and self._failing_since is not None and self._steady(now) >= self._failing_since + self.max_outage

    @property
    def is_missing(self) -> bool:
        """Whether NOT_FOUND was returned, and the operation has not been returned since; it is not believed yet."""
        return self._missing_since is not None

    def after_poll(self, operation: Operation | str, now: float) -> tuple[float, str]:
        """Decide when to poll again after a poll that found the operation running.

        :param operation: what was seen; a text where the wait is for many operations.
        :return: the seconds until then, and the line for the log.
        :raises WaitTimeoutError: when the time is up.
        """
        wait = self.next_poll(operation, now)
        return wait, describe_poll(operation, now - self.started, wait)

    def next_poll(self, operation: Operation | str, now: float) -> float:
        """Decide as :meth:`after_poll`, without building the log line, which costs more than the decision."""
        self.after_response(now)
        self.number += 1
        elapsed = self._steady(now) - self.started
        slot = self._find_slot(now, next_interval(elapsed, self.poll_interval, 0.0), self.poll_interval)
        wait = next_interval(elapsed, self.poll_interval, self.jitter()) if slot is None else slot - now
        left = self._next(now, wait, "the last poll found", operation)
        self.slot = slot if left == wait else None
        return left

    def after_response(self, now: float) -> str | None:
        """Note that a poll has returned the operation.

        :return: the line for the log when several polls had failed before it.
        """
        failures, since, steady = self._failures, self._failing_since, self._steady(now)
        self.responded = True
        self._failing_since = self._missing_since = None
        self._failures = self._missing_polls = 0
        self._told.clear()
        if since is None or failures < 2:
            return None
        return f"The service responded again for {self.name} after {failures} failed polls in {steady - since:.0f} s"

    def after_error(self, error: ServiceError, now: float) -> tuple[float, str | None]:
        """Decide when to poll again after a poll that failed.

        :return: the seconds until then, and the line for the log, if it is to be told of this failure.
        :raises ServiceError: this error, if it is permanent or the service has been unavailable for too long; with the
            code UNAVAILABLE if it is from a front end although the API has responded before.
        :raises WaitTimeoutError: when the time is up.
        """
        error = as_outage(error, self.responded)
        failing_since, steady = self.begin_outage(now), self._steady(now)
        self._failures += 1
        patience = self._patience(error, steady)
        if patience <= 0:
            raise error
        self.slot = None
        interval = next_interval(steady - failing_since, min(self.poll_interval, self.max_outage / 10), self.jitter())
        wait = self._next(now, min(max(interval, error.retry_after or 0.0), patience), "the last poll failed", error)
        if error.rpc_code in self._told:
            return wait, None
        self._told.add(error.rpc_code)
        return wait, describe_poll(f"Could not poll {self.name}: {error}", now - self.started, wait)

    def _patience(self, error: ServiceError, now: float) -> float:
        """Return for how many seconds the wait goes on while polls fail with this error; none when it is permanent."""
        if error.rpc_code is Code.NOT_FOUND:
            if self._missing_since is None:
                self._missing_since = now
            self._missing_polls += 1
            left = self._missing_since + NOT_FOUND_GRACE - now
            return left if self._missing_polls >= NOT_FOUND_POLLS else max(left, FIRST_INTERVAL)
        if self.max_outage == float("inf"):
            return 0.0 if error.rpc_code in PERMANENT else self.max_outage
        failing_since = now if self._failing_since is None else self._failing_since
        return failing_since + self.max_outage - now if error.rpc_code in TRANSIENT else 0.0

    def _next(self, now: float, wait: float, last: str, result: object) -> float:
        if self.timeout is None:
            return wait
        elapsed = now - self.started
        if elapsed >= self.timeout:
            raise WaitTimeoutError(f"{self.name} has not finished within {self.timeout:g} s; {last}: {result}")
        return min(wait, self.timeout - elapsed)


def next_interval(elapsed: float, poll_interval: float, jitter: float) -> float:
    """Return the seconds until the next poll.

    :param elapsed: seconds waited so far.
    :param poll_interval: the most it can be.
    :param jitter: a number from 0 to 1.
    """
    return min(FIRST_INTERVAL + GROWTH * elapsed, poll_interval) * (1 - JITTER * jitter)


def slot_of_grid(now: float, interval: float, poll_interval: float, phase: float) -> float:
    """Return the last time within an interval from now that is on the grid, which all waits with this phase share.

    Its steps are those of ``poll_interval``, halved until one fits into the interval, so that the grid of quick polls
    holds that of the later ones.

    :param phase: any time of the grid.
    """
    step = poll_interval
    while step > interval:
        step /= 2
    return phase + floor((now - phase + interval) / step + _EARLY) * step


def describe_poll(result: object, elapsed: float, wait: float) -> str:
    """Return the log line of one poll after which the wait goes on.

    :param result: the operation, or what went wrong.
    :param elapsed: seconds waited so far.
    :param wait: seconds until the next poll.
    """
    return f"{result}; {elapsed:.0f} s elapsed, next poll in {wait:.1f} s"
