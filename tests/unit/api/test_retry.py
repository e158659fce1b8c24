"""How a call goes on after its errors, for both hooks alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.retry import (
    FIRST_BACKOFF,
    MAX_BACKOFF,
    THROTTLED,
    THROTTLED_OR_UNAVAILABLE,
    TRANSIENT,
    Pause,
    Retry,
)


def make(
    retryable_codes: frozenset[Code] = TRANSIENT,
    *,
    num_retries: int = 5,
    retry_timeout: float = 60.0,
    started: float = 1000.0,
    jitter: Callable[[], float] = lambda: 0.0,
) -> Retry:
    return Retry(retryable_codes, num_retries=num_retries, retry_timeout=retry_timeout, started=started, jitter=jitter)


def error(code: Code = Code.UNAVAILABLE, *, retry_after: float | None = None, sent: bool = True) -> ServiceError:
    return ServiceError("no", code, retry_after=retry_after, sent=sent)


def waits(retry: Retry, failing: ServiceError, started: float = 1000.0) -> list[float]:
    """Let every attempt fail; return the waits between them."""
    now, seconds = started, []
    with pytest.raises(ServiceError) as end:  # noqa: PT012 - which of them ends it is what is asked
        while True:
            seconds.append(retry.after(failing, now)[0])
            now += seconds[-1]
    assert end.value is failing
    return seconds


def test_the_waits_double() -> None:
    assert waits(make(), error()) == [0.5, 1, 2, 4, 8]


def test_the_waits_have_a_limit() -> None:
    assert waits(make(num_retries=9, retry_timeout=1e9), error()) == [0.5, 1, 2, 4, 8, 10, 10, 10, 10]
    assert (FIRST_BACKOFF, MAX_BACKOFF) == (0.5, 10)


def test_jitter_takes_away_at_most_half() -> None:
    assert waits(make(jitter=lambda: 1.0), error()) == [0.25, 0.5, 1, 2, 4]


@pytest.mark.parametrize("num_retries", [0, 1, 3])
def test_there_are_as_many_retries_as_told(num_retries: int) -> None:
    assert len(waits(make(num_retries=num_retries), error())) == num_retries


@pytest.mark.parametrize(("retry_timeout", "repeats"), [(0, 0), (0.5, 0), (0.6, 1), (1.5, 1), (1.6, 2), (60, 5)])
def test_no_retry_comes_after_the_time(retry_timeout: float, repeats: int) -> None:
    assert len(waits(make(retry_timeout=retry_timeout), error())) == repeats


def test_the_time_counts_from_the_start_of_the_call() -> None:
    retry = make(retry_timeout=10, started=0)
    assert retry.after(error(), 9)[0] == 0.5
    with pytest.raises(ServiceError):
        retry.after(error(), 9.5)


def test_what_the_server_asks_for_is_obeyed_where_it_is_longer() -> None:
    assert make().after(error(retry_after=7), 1000)[0] == 7
    assert make().after(error(retry_after=0.1), 1000)[0] == 0.5
    assert make(jitter=lambda: 1.0).after(error(retry_after=7), 1000)[0] == 7


def test_what_the_server_asks_for_is_not_waited_for_beyond_the_time() -> None:
    assert waits(make(), error(retry_after=60)) == []
    assert waits(make(), error(retry_after=59)) == [59]


@pytest.mark.parametrize("retryable_codes", [THROTTLED, THROTTLED_OR_UNAVAILABLE, TRANSIENT, frozenset()], ids=len)
@pytest.mark.parametrize("code", Code)
def test_only_these_codes_are_retried(retryable_codes: frozenset[Code], code: Code) -> None:
    assert bool(waits(make(retryable_codes), error(code))) == (code in retryable_codes)


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED])
def test_what_was_not_sent_can_always_be_sent_again(code: Code) -> None:
    assert len(waits(make(frozenset()), error(code, sent=False))) == 5


def test_each_error_counts_whatever_it_is() -> None:
    retry = make(num_retries=2)
    assert [retry.after(error(code), 1000)[0] for code in (Code.UNAVAILABLE, Code.ABORTED)] == [0.5, 1]
    with pytest.raises(ServiceError):
        retry.after(error(), 1000)


# The pause that those who work side by side share


@pytest.mark.parametrize(
    ("failing", "seconds"),
    [
        (error(Code.RESOURCE_EXHAUSTED), FIRST_BACKOFF),
        (error(Code.RESOURCE_EXHAUSTED, retry_after=7), 7),
        (error(Code.RESOURCE_EXHAUSTED, retry_after=0), FIRST_BACKOFF),
        (error(Code.UNAVAILABLE, retry_after=20), 20),
        (error(Code.UNAVAILABLE), 0),
        (error(Code.PERMISSION_DENIED), 0),
    ],
)
def test_an_error_that_asks_for_a_pause_holds_all(failing: ServiceError, seconds: float) -> None:
    pause = Pause()
    assert pause.delay(1000) == 0
    pause.note(failing, 1000)
    assert [pause.delay(now) for now in (1000, 1000 + seconds / 2, 1000 + seconds, 2000)] == [
        seconds,
        seconds / 2,
        0,
        0,
    ]


def test_the_longest_pause_counts() -> None:
    pause = Pause()
    for now, seconds in ((1000, 5), (1001, 30), (1002, 1)):
        pause.note(error(Code.RESOURCE_EXHAUSTED, retry_after=seconds), now)
    assert pause.delay(1002) == 29
