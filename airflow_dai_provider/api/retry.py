"""Retry: after which errors a request may be sent again, and when. Pure: the caller brings clock and randomness.

Source: ``google/rpc/code.proto``, and the retry defaults of Google's own client for ``google.longrunning``.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.parameters import MAX_SECONDS

#: Seconds of backoff before the first retry, and at most (Google's own defaults).
FIRST_BACKOFF = 0.5
MAX_BACKOFF = 10.0
#: The most seconds for which the response to one request delays the others: less than an outage is tolerated.
MAX_HELD = 120.0

#: The server was too busy to act on the request.
THROTTLED = frozenset({Code.RESOURCE_EXHAUSTED})
#: The server has not acted on the request, or was going away.
THROTTLED_OR_UNAVAILABLE = THROTTLED | {Code.UNAVAILABLE}
#: The fault passes. The server may have acted on the request, so only a request that can be sent twice is retried.
TRANSIENT = THROTTLED_OR_UNAVAILABLE | {Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.ABORTED, Code.INTERNAL}

#: The same request gets the same error again.
PERMANENT = frozenset(
    {
        Code.UNIMPLEMENTED,
        Code.PERMISSION_DENIED,
        Code.INVALID_ARGUMENT,
        Code.UNAUTHENTICATED,
        Code.NOT_FOUND,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.ALREADY_EXISTS,
    }
)

#: The server has certainly not acted on the request.
NOT_PROCESSED = PERMANENT | THROTTLED


def may_retry(retryable_codes: frozenset[Code], error: ServiceError) -> bool:
    """Return whether a request that may be sent again after these codes may be sent again after this error.

    A fresh token after 401 is the transport's own matter and not counted here.
    """
    return error.rpc_code in retryable_codes or (not error.sent and error.rpc_code not in PERMANENT)


def as_outage(
    error: ServiceError, responded: bool, retryable_codes: frozenset[Code] = THROTTLED_OR_UNAVAILABLE
) -> ServiceError:
    """Return an error with ``from_front_end`` as an outage if the API has responded before; others unchanged.

    :param responded: whether the API has responded before.
    :param retryable_codes: the codes after which the request may be sent again. One that may not be sent again after an
        outage, and may have been received, keeps the page's own code.
    """
    if not (responded and error.from_front_end and (Code.UNAVAILABLE in retryable_codes or not error.sent)):
        return error
    return ServiceError(str(error), Code.UNAVAILABLE, error.retry_after, error.sent, from_front_end=True)


def may_have_acted(error: ServiceError) -> bool:
    """Return whether the service may have done what it was asked for, although it responded with this error."""
    return error.sent and error.rpc_code not in NOT_PROCESSED


def not_begun(error: ServiceError) -> bool:
    """Return whether this is the error of a call that was not begun: the task was killed, or the time is up."""
    return error.rpc_code is Code.CANCELLED and not error.sent


def is_pause(error: ServiceError) -> bool:
    """Return whether this is the error of a request that was not sent, because the service has asked for a pause."""
    return error.rpc_code in THROTTLED and not error.sent


class Retry:
    """The retries of one call.

    :param retryable_codes: the codes after which the request may be sent again.
    :param num_retries: the most retries.
    :param retry_timeout: seconds after which there are no more.
    :param started: when the call began, in seconds of the caller's clock.
    :param jitter: returns a random number from 0 to 1.
    """

    def __init__(
        self,
        retryable_codes: frozenset[Code],
        *,
        num_retries: int,
        retry_timeout: float,
        started: float,
        jitter: Callable[[], float],
    ) -> None:
        self._retryable_codes = retryable_codes
        self._num_retries = num_retries
        self._until = started + retry_timeout
        self._jitter = jitter
        self._attempts = 0
        self._may_have_acted = False
        #: The error of the last attempt, as it is raised when there is no other.
        self.failure: ServiceError | None = None

    def after(self, error: ServiceError, now: float) -> tuple[float, str]:
        """Decide when to send the request again after an attempt that failed.

        :return: the seconds until then, and the line for the log.
        :raises ServiceError: this error, if there is no further attempt; with ``sent`` set if the service may have
            acted on an earlier attempt.
        """
        self._attempts += 1
        self._may_have_acted = self._may_have_acted or may_have_acted(error)
        failure = error
        if self.failure and is_pause(error):
            failure = not_retried(self.failure, str(error), error.retry_after)
        elif self._may_have_acted and not error.sent:
            # A copy, since threads can share the error of a token.
            failure = copy(error)
            failure.sent = True
            failure.__cause__ = error.__cause__
        if not is_pause(error):
            self.failure = failure
        seconds = backoff(self._attempts, error.retry_after, self._jitter())
        allowed = self._attempts <= self._num_retries and now + seconds < self._until
        if allowed and may_retry(self._retryable_codes, error):
            return seconds, f"{error}; attempt {self._attempts}, next in {seconds:.1f} s"
        raise failure


def not_retried(error: ServiceError, reason: str, retry_after: float | None = None) -> ServiceError:
    """Return the error of a request that could have been sent again, with the reason why it was not."""
    message = f"{error}; it was not retried: {reason}"
    return ServiceError(message, error.rpc_code, retry_after, error.sent, error.from_front_end)


class Pause:
    """The pause that the service has asked for; it delays the requests of all hooks that share it.

    It is cut to :data:`MAX_HELD`, less than an outage is tolerated: the pause can be a mistake, and each wait should
    poll again before it ends. Thread-safe, since it holds only one number.
    """

    def __init__(self) -> None:
        self._until = float("-inf")

    def note(self, error: ServiceError, now: float) -> None:
        """Hold the requests for as long as an error asks for; at least briefly, when the service is too busy."""
        if error.retry_after is not None or error.rpc_code in THROTTLED:
            self._until = max(self._until, now + min(max(error.retry_after or 0.0, FIRST_BACKOFF), MAX_HELD))

    @staticmethod
    def error(request: object, delay: float, failure: ServiceError | None = None) -> ServiceError:
        """Return the error for a request that cannot wait as long as the service has asked for.

        :param failure: the error of its last attempt, if there was one.
        """
        reason = f"the service has asked for a pause, of which {delay:.0f} s are left"
        if failure:
            return not_retried(failure, reason, delay)
        return ServiceError(f"{request} was not sent: {reason}", Code.RESOURCE_EXHAUSTED, delay, sent=False)

    def delay(self, now: float) -> float:
        """Return the seconds until the next request may be sent."""
        return max(0.0, self._until - now)


class ServiceState:
    """The state of the service, as a hook and its siblings have learned it from responses. Thread-safe."""

    def __init__(self) -> None:
        #: Whether the API has responded: the endpoint is right, and the account has access.
        self.responded = False
        #: The pause that the service has asked for.
        self.pause = Pause()


def backoff(attempt: int, retry_after: float | None, random: float) -> float:
    """Return the seconds to wait before the next attempt: doubling, with jitter, ``Retry-After`` obeyed.

    :param attempt: how many attempts have been made, from 1.
    :param retry_after: seconds that the server asked for, or None.
    :param random: a number from 0 to 1; the jitter takes away at most half.
    """
    wait = min(FIRST_BACKOFF * 2.0 ** min(attempt - 1, 10), MAX_BACKOFF) * (1 - random / 2)
    return max(wait, retry_after or 0.0)


def read_retry_after(value: str | None, now: datetime, date: str | None = None) -> float | None:
    """Read the header ``Retry-After``, in seconds or as a date.

    :param date: the header ``Date`` of the response: both are times of the service's clock.
    :return: seconds from that, or else from ``now``, never negative, and no more than a sleep holds; None where there
        is no header that can be read.
    """
    if value is None:
        return None
    if value.strip().isdecimal():
        return min(float(value), MAX_SECONDS)
    time = _read_date(value)
    if time is None:
        return None
    seconds = (time - (_read_date(date or "") or now)).total_seconds()
    return min(max(0.0, seconds), MAX_SECONDS)


def _read_date(value: str) -> datetime | None:
    """Read an HTTP date; None for anything else."""
    try:
        time = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
