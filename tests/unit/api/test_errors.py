"""Codes, waits between attempts, and the header that asks for a longer one."""

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.rpc import code_pb2

from airflow_dai_provider.api import rest
from airflow_dai_provider.api.errors import Code, ServiceError, code_of_http_status
from airflow_dai_provider.api.parameters import MAX_SECONDS
from airflow_dai_provider.api.retry import backoff, may_have_acted, may_retry, read_retry_after
from tests.support.rpc_codes import RPC_CODES

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_the_codes_are_those_of_google_rpc_without_ok() -> None:
    numbers = dict(code_pb2.Code.items())
    assert numbers.pop("OK") == 0
    assert {name: code.number for name, code in RPC_CODES.items()} == numbers
    assert {code.value for code in Code} == set(numbers)
    assert all(code.name == code.value for code in Code)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (302, "UNKNOWN"),
        (400, "INVALID_ARGUMENT"),
        (401, "UNAUTHENTICATED"),
        (402, "FAILED_PRECONDITION"),
        (403, "PERMISSION_DENIED"),
        (404, "NOT_FOUND"),
        (405, "FAILED_PRECONDITION"),
        (408, "DEADLINE_EXCEEDED"),
        (409, "ABORTED"),
        (412, "FAILED_PRECONDITION"),
        (418, "FAILED_PRECONDITION"),
        (429, "RESOURCE_EXHAUSTED"),
        (498, "FAILED_PRECONDITION"),
        (499, "CANCELLED"),
        (500, "INTERNAL"),
        (501, "UNIMPLEMENTED"),
        (502, "UNAVAILABLE"),
        (503, "UNAVAILABLE"),
        (504, "DEADLINE_EXCEEDED"),
        (505, "INTERNAL"),
        (599, "INTERNAL"),
    ],
)
def test_every_http_status_stands_for_a_code(status: int, code: str) -> None:
    assert code_of_http_status(status) == code


def test_a_service_error_says_what_it_is() -> None:
    plain = ServiceError("words", Code.INTERNAL)
    assert (str(plain), plain.rpc_code, plain.retry_after, plain.sent) == ("words", Code.INTERNAL, None, True)
    full = ServiceError("words", Code.UNAVAILABLE, retry_after=3.0, sent=False)
    assert (full.retry_after, full.sent) == (3.0, False)


@pytest.mark.parametrize(
    ("codes", "code", "sent", "expected"),
    [
        ({Code.UNAVAILABLE}, Code.UNAVAILABLE, True, True),
        ({Code.UNAVAILABLE}, Code.INTERNAL, True, False),
        (set(), Code.UNAVAILABLE, True, False),
        (set(), Code.UNAVAILABLE, False, True),
        ({Code.UNAVAILABLE}, Code.UNAVAILABLE, False, True),
    ],
)
def test_a_retry_needs_a_listed_code_or_a_request_that_never_left(
    codes: set[Code], code: Code, sent: bool, expected: bool
) -> None:
    assert may_retry(frozenset(codes), ServiceError("x", code, sent=sent)) is expected


@pytest.mark.parametrize(
    ("attempt", "longest"),
    [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 8.0), (6, 10.0), (7, 10.0), (100, 10.0), (10**6, 10.0)],
)
def test_the_backoff_doubles_to_ten_seconds_and_jitter_takes_at_most_half(attempt: int, longest: float) -> None:
    assert backoff(attempt, None, 0.0) == longest
    assert backoff(attempt, None, 1.0) == longest / 2
    assert backoff(attempt, None, 0.5) == longest * 0.75


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("attempt", [1, 5, 50])
def test_the_backoff_is_never_shorter_than_the_server_asked_for(attempt: int, jitter: float) -> None:
    own = backoff(attempt, None, jitter)
    assert backoff(attempt, 60.0, jitter) == 60.0
    assert backoff(attempt, 0.0, jitter) == own
    assert backoff(attempt, own / 2, jitter) == own


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("0", 0.0, id="zero"),
        pytest.param("7", 7.0, id="seconds"),
        pytest.param(" 120 ", 120.0, id="seconds with spaces"),
        pytest.param("Thu, 01 Jan 2026 00:00:30 GMT", 30.0, id="date"),
        pytest.param("Thursday, 01-Jan-26 00:00:30 GMT", 30.0, id="date of RFC 850"),
        pytest.param("Thu Jan  1 00:00:30 2026", 30.0, id="date of asctime"),
        pytest.param("Thu, 01 Jan 2026 00:00:30", 30.0, id="date without a zone"),
        pytest.param("Thu, 01 Jan 2026 00:00:30 -0000", 30.0, id="date of unknown zone"),
        pytest.param("Thu, 01 Jan 2026 02:00:30 +0200", 30.0, id="date of another zone"),
        pytest.param("Thu, 01 Jan 2026 00:00:00 GMT", 0.0, id="now"),
        pytest.param("Wed, 31 Dec 2025 23:59:59 GMT", 0.0, id="in the past"),
        pytest.param("Mon, 01 Jan 0001 00:00:00 GMT", 0.0, id="long ago"),
        pytest.param(None, None, id="no header"),
        pytest.param("", None, id="empty"),
        pytest.param("  ", None, id="blank"),
        pytest.param("-5", None, id="negative"),
        pytest.param("+5", None, id="signed"),
        pytest.param("1.5", None, id="fraction"),
        pytest.param("1e3", None, id="exponent"),
        pytest.param("nan", None, id="not a number"),
        pytest.param("inf", None, id="infinity"),
        pytest.param("\u00b2", None, id="superscript digit"),
        pytest.param("5, 6", None, id="two values"),
        pytest.param("soon", None, id="word"),
        pytest.param("\0", None, id="NUL"),
        pytest.param("Wed, 99 Foo", None, id="no date"),
        pytest.param("Wed, 99 Jan 2026 00:00:00 GMT", None, id="no such day"),
        pytest.param("Thu, 01 Jan 2026 25:00:00 GMT", None, id="no such hour"),
        pytest.param("Thu, 01 Jan 99999 00:00:00 GMT", None, id="year out of range"),
        pytest.param("Thu, 01 Jan 99999999999999 00:00:00 GMT", None, id="year beyond a machine integer"),
        pytest.param("Thu, 01 Jan 2026 00:00:00 +999999999999999999", None, id="zone beyond a machine integer"),
    ],
)
def test_retry_after_is_read_in_both_forms_and_ignored_in_any_other(value: str | None, expected: float | None) -> None:
    assert read_retry_after(value, NOW) == expected


def test_an_absolute_retry_after_is_counted_from_now_in_any_zone() -> None:
    there = NOW.astimezone(timezone(timedelta(hours=-8)))
    assert read_retry_after("Thu, 01 Jan 2026 00:00:30 GMT", there) == 30.0


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        pytest.param("Thu, 01 Jan 2026 01:00:10 GMT", 20.0, id="the service is an hour ahead"),
        pytest.param("Wed, 31 Dec 2025 23:00:00 GMT", 7230.0, id="it is behind"),
        pytest.param("Thu, 01 Jan 2026 02:00:00 GMT", 0.0, id="in the past"),
        pytest.param("yesterday", 3630.0, id="no date"),
        pytest.param(None, 3630.0, id="none"),
    ],
)
def test_an_absolute_retry_after_is_counted_from_the_date_of_the_response(date: str | None, expected: float) -> None:
    assert read_retry_after("Thu, 01 Jan 2026 01:00:30 GMT", NOW, date) == expected


def test_a_service_whose_clock_is_an_hour_ahead_asks_for_no_longer_pause() -> None:
    headers = {"retry-after": "Thu, 01 Jan 2026 01:00:05 GMT", "date": "Thu, 01 Jan 2026 01:00:00 GMT"}
    with pytest.raises(ServiceError) as caught:
        rest.read_response(rest.get_operation("operations/a"), rest.Response(503, headers, b""), NOW)
    assert caught.value.retry_after == 5.0


@pytest.mark.parametrize("digits", [10, 400, 5000])
def test_a_huge_retry_after_does_not_become_infinite(digits: int) -> None:
    seconds = read_retry_after("9" * digits, NOW)
    assert seconds is None or math.isfinite(seconds)


@pytest.mark.parametrize("value", ["1000000001", "9999999999", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_no_retry_after_is_longer_than_a_sleep_holds(value: str) -> None:
    assert read_retry_after(value, NOW) == MAX_SECONDS


@pytest.mark.parametrize("code", list(Code))
def test_after_which_errors_the_service_may_have_acted(code: Code) -> None:
    """The others are refusals; see the table of the API's facts for creatives.create."""
    doubtful = {"CANCELLED", "UNKNOWN", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
    assert may_have_acted(ServiceError("x", code)) == (code.value in doubtful)
    assert not may_have_acted(ServiceError("x", code, sent=False))
