"""
Errors of the service: their rpc codes, and after which of them a request may be sent again.

Pure: no I/O, no clock and no randomness of its own. Source: ``google/rpc/code.proto`` and the retry defaults of
Google's own client for ``google.longrunning``.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum

#: Backoff before the first repeat, and the most that it grows to (Google's own defaults), in seconds.
FIRST_BACKOFF = 0.5
MAX_BACKOFF = 10.0
#: More than this is not believed, in seconds.
MAX_RETRY_AFTER = 1e10


class Code(StrEnum):
    """The names of ``google.rpc.Code`` that an error can carry."""

    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    DATA_LOSS = "DATA_LOSS"
    UNAUTHENTICATED = "UNAUTHENTICATED"


_CODE_BY_HTTP_STATUS = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    408: Code.DEADLINE_EXCEEDED,
    409: Code.ABORTED,
    429: Code.RESOURCE_EXHAUSTED,
    499: Code.CANCELLED,
    500: Code.INTERNAL,
    501: Code.UNIMPLEMENTED,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}

# After these the server has certainly not acted, or acting twice is the same as acting once.
BUSY = frozenset({Code.RESOURCE_EXHAUSTED})
BUSY_OR_AWAY = BUSY | {Code.UNAVAILABLE}
ANY_HICCUP = BUSY_OR_AWAY | {Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.ABORTED, Code.INTERNAL}

#: After these, whoever asks again meets the same error again.
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

#: After these the service has certainly not acted on the request.
REFUSALS = PERMANENT | BUSY


class ServiceError(Exception):
    """
    A request that did not get the answer it asked for.

    :param message: who was asked for what, and what came back; holds no secret.
    :param code: the rpc code, which decides everything.
    :param retry_after: seconds the server asked to wait, or None.
    :param sent: False when the request certainly did not reach the service.
    """

    def __init__(self, message: str, code: Code, *, retry_after: float | None = None, sent: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after
        self.sent = sent


def may_repeat(repeat_after: frozenset[Code], error: ServiceError) -> bool:
    """
    Whether a request that may be repeated after these codes may be sent again after this error.

    A renewed token after 401 is the hook's own matter and not counted here.
    """
    return not error.sent or error.code in repeat_after


def may_have_acted(error: ServiceError) -> bool:
    """Whether the service may have done what it was asked for, although the answer was this error."""
    return error.sent and error.code not in REFUSALS


class Repeats:
    """
    How a call goes on after its errors; whoever calls brings the clock and does the waiting.

    :param repeat_after: the codes after which the request may be repeated.
    :param num_retries: how many repeats there are at most.
    :param retry_timeout: seconds after which there are no more.
    :param started: when the call began, in seconds of the caller's clock.
    :param jitter: gives numbers from 0 to 1.
    """

    def __init__(
        self,
        repeat_after: frozenset[Code],
        *,
        num_retries: int,
        retry_timeout: float,
        started: float,
        jitter: Callable[[], float],
    ) -> None:
        self._repeat_after = repeat_after
        self._num_retries = num_retries
        self._until = started + retry_timeout
        self._jitter = jitter
        #: How many attempts have failed so far.
        self.attempts = 0

    def after(self, error: ServiceError, now: float) -> float:
        """
        Return the seconds to wait before the next attempt.

        :raises ServiceError: the same, when there is to be no other attempt.
        """
        self.attempts += 1
        seconds = backoff(self.attempts, error.retry_after, self._jitter())
        allowed = self.attempts <= self._num_retries and now + seconds < self._until
        if allowed and may_repeat(self._repeat_after, error):
            return seconds
        raise error


def backoff(attempt: int, retry_after: float | None, random: float) -> float:
    """
    Return the seconds to wait before the next attempt: doubling, with jitter, ``Retry-After`` obeyed.

    :param attempt: how many attempts have been made, from 1.
    :param retry_after: seconds that the server asked for, or None.
    :param random: a number from 0 to 1; the jitter takes away at most half.
    """
    wait = min(FIRST_BACKOFF * 2.0 ** min(attempt - 1, 10), MAX_BACKOFF) * (1 - random / 2)
    return max(wait, retry_after or 0.0)


def read_retry_after(value: str | None, now: datetime) -> float | None:
    """
    Read the header ``Retry-After``, in seconds or as a date.

    :return: seconds from ``now``, never negative; None where there is no header that can be read.
    """
    if value is None:
        return None
    if value.strip().isdecimal():
        return min(float(value), MAX_RETRY_AFTER)
    try:
        time = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return max(0.0, ((time if time.tzinfo else time.replace(tzinfo=UTC)) - now).total_seconds())


def code_of_http_status(status: int) -> Code:
    """Return the rpc code that an HTTP status stands for where the answer names none."""
    fallback = Code.FAILED_PRECONDITION if 400 <= status < 500 else Code.INTERNAL if status >= 500 else Code.UNKNOWN
    return _CODE_BY_HTTP_STATUS.get(status, fallback)
