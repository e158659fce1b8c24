"""When a wait polls again, driven by a clock that only the test moves."""

import random
from collections.abc import Callable

import pytest

from airflow_dai_provider.api.errors import Code, ServiceError, code_of_http_status
from airflow_dai_provider.api.operation import Operation, OperationState
from airflow_dai_provider.api.polling import (
    MAX_OUTAGE,
    NOT_FOUND_GRACE,
    NOT_FOUND_POLLS,
    Wait,
    WaitTimeoutError,
    check_seconds,
    describe_poll,
    next_interval,
    slot_of_grid,
)

NAME = "operations/a/b"
RUNNING = Operation(NAME, OperationState.RUNNING)
AWAY = ServiceError("operations.get returned 503", Code.UNAVAILABLE)
HEALING = {"NOT_FOUND", "UNKNOWN", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL", "UNAVAILABLE"}

Jitter = Callable[[], float]


def no_jitter() -> float:
    return 0.0


def full_jitter() -> float:
    return 1.0


def make_wait(
    *, started: float = 0.0, poll_interval: float = 30.0, timeout: float | None = None, jitter: Jitter = no_jitter
) -> Wait:
    return Wait(NAME, started=started, poll_interval=poll_interval, timeout=timeout, jitter=jitter)


def poll_times(wait: Wait, until: float) -> list[float]:
    """Return when the polls come, from the start of the wait on, up to the first one at or after ``until``."""
    times = [0.0]
    while times[-1] < until:
        seconds, _ = wait.after_poll(RUNNING, wait.started + times[-1])
        times.append(times[-1] + seconds)
    return times


def failing_until_raised(wait: Wait, error: ServiceError, since: float) -> tuple[int, float, Exception]:
    """Let every look fail; return how many failed, when the last one did, and what ended the wait."""
    now, polls = since, 1
    while True:
        try:
            seconds, _ = wait.after_error(error, now)
        except (ServiceError, WaitTimeoutError) as end:
            return polls, now, end
        now, polls = now + seconds, polls + 1


def seeded_jitter(seed: int) -> Jitter:
    return random.Random(seed).random  # noqa: S311


@pytest.fixture(params=["no", "full", *range(20)])
def jitter(request: pytest.FixtureRequest) -> Jitter:
    return {"no": no_jitter, "full": full_jitter}.get(request.param) or seeded_jitter(request.param)


def test_the_intervals_grow_by_half_up_to_the_poll_interval() -> None:
    times = poll_times(make_wait(), 165)
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert gaps == [1, 1.5, 2.25, 3.375, 5.0625, 7.59375, 11.390625, 17.0859375, 25.62890625, 30, 30, 30, 30]


def test_the_start_of_the_wait_counts_and_not_the_clock_itself() -> None:
    assert make_wait(started=5000.0).after_poll(RUNNING, 5010.0) == make_wait().after_poll(RUNNING, 10.0)


def test_a_short_poll_interval_is_kept_from_the_start() -> None:
    assert poll_times(make_wait(poll_interval=0.25), 1.0) == [0, 0.25, 0.5, 0.75, 1.0]


def test_an_end_is_seen_soon_after_it_came(jitter: Jitter) -> None:
    times = poll_times(make_wait(jitter=jitter), 3600)
    for earlier, later in zip(times, times[1:], strict=False):
        longest = min(1 + earlier / 2, 30.0)
        assert 0.8 * longest - 1e-9 <= later - earlier <= longest + 1e-9


def test_a_wait_of_a_minute_costs_at_most_twelve_polls(jitter: Jitter) -> None:
    assert len(poll_times(make_wait(jitter=jitter), 60)) <= 12


def test_a_wait_that_times_out_after_a_minute_costs_at_most_twelve_polls(jitter: Jitter) -> None:
    times = poll_times(make_wait(jitter=jitter, timeout=60), 60)
    assert len(times) <= 12
    assert times[-1] == 60


def test_waits_that_began_together_spread_out() -> None:
    waits = [make_wait(jitter=seeded_jitter(seed)) for seed in range(10)]
    assert len({wait.after_poll(RUNNING, 0.0)[0] for wait in waits}) == 10


def test_the_jitter_is_random_when_none_is_given() -> None:
    wait = Wait(NAME, started=0.0, poll_interval=30.0)
    assert 0.8 <= wait.after_poll(RUNNING, 0.0)[0] <= 1.0


@pytest.mark.parametrize(
    ("elapsed", "poll_interval", "jitter", "expected"),
    [
        (0, 30, 0, 1.0),
        (0, 30, 1, 0.8),
        (0, 0.5, 0, 0.5),
        (10, 30, 0, 6.0),
        (10, 30, 0.5, 5.4),
        (58, 30, 0, 30.0),
        (1e6, 30, 0, 30.0),
        (1e6, 30, 1, 24.0),
    ],
)
def test_the_next_interval(elapsed: float, poll_interval: float, jitter: float, expected: float) -> None:
    assert next_interval(elapsed, poll_interval, jitter) == pytest.approx(expected)


def test_a_clock_that_is_set_back_makes_polls_no_quicker() -> None:
    wait = make_wait()
    assert poll_times(wait, 100.0)[-1] < 110.0
    assert wait.next_poll(RUNNING, 110.0 - 3600.0) == 30.0
    assert wait.next_poll(RUNNING, 140.0 - 3600.0) == 30.0


@pytest.mark.parametrize("first", [0.0, 2.0, -3600.0])
def test_polls_become_rare_although_the_clock_is_set_back_or_behind(first: float) -> None:
    wait, now = make_wait(), first
    polls = 0
    while now < first + 100.0:
        now += wait.next_poll(RUNNING, now)
        if not polls:
            now, first = now - 3600.0, first - 3600.0
        polls += 1
    assert 8 <= polls <= 12


def test_a_wait_that_another_process_continues_polls_as_rarely_as_before() -> None:
    assert make_wait(started=0.0).next_poll(RUNNING, 3600.0) == 30.0
    assert make_wait(started=0.0).next_poll(RUNNING, 10.0) == 6.0


def test_an_outage_lasts_no_longer_because_the_clock_is_set_back() -> None:
    wait = make_wait()
    wait.after_error(AWAY, 100.0)
    polls, end, _ = failing_until_raised(wait, AWAY, 130.0 - 3600.0)
    assert polls < 20
    assert end + 3600.0 == pytest.approx(130.0 + MAX_OUTAGE, abs=0.1)


def test_the_last_poll_comes_at_the_deadline_and_ends_the_wait() -> None:
    wait = make_wait(timeout=10)
    assert poll_times(wait, 10) == [0, 1, 2.5, 4.75, 8.125, 10]
    with pytest.raises(WaitTimeoutError) as caught:
        wait.after_poll(RUNNING, 10.0)
    assert isinstance(caught.value, TimeoutError)
    assert str(caught.value) == f"{NAME} has not finished within 10 s; the last poll found: {NAME} is RUNNING"


@pytest.mark.parametrize(("timeout", "times"), [(0.25, [0, 0.25]), (1, [0, 1]), (1.5, [0, 1, 1.5])])
def test_a_timeout_shorter_than_the_interval_still_gets_its_last_poll(timeout: float, times: list[float]) -> None:
    assert poll_times(make_wait(timeout=timeout), timeout) == times


def test_a_poll_that_ends_after_the_deadline_is_the_last() -> None:
    with pytest.raises(WaitTimeoutError, match="has not finished within 60 s"):
        make_wait(started=100.0, timeout=60).after_poll(RUNNING, 161.0)


def test_without_a_timeout_the_wait_has_no_end() -> None:
    assert make_wait().after_poll(RUNNING, 1e9)[0] == 30.0


@pytest.mark.parametrize("code", list(Code))
def test_only_a_transient_error_does_not_end_the_wait_at_once(code: Code) -> None:
    error = ServiceError("words", code)
    if code.value in HEALING:
        seconds, line = make_wait().after_error(error, 10.0)
        assert seconds == 1.0
        assert line == f"Could not poll {NAME}: words; 10 s elapsed, next poll in 1.0 s"
    else:
        with pytest.raises(ServiceError) as caught:
            make_wait().after_error(error, 10.0)
        assert caught.value is error


def test_an_outage_ends_the_wait_with_its_error() -> None:
    polls, ended, end = failing_until_raised(make_wait(), AWAY, since=0.0)
    assert end is AWAY
    assert ended == MAX_OUTAGE
    assert polls > 10


def test_an_outage_is_counted_from_its_first_failure_and_not_from_the_start() -> None:
    _, ended, _ = failing_until_raised(make_wait(), AWAY, since=10_000.0)
    assert ended == 10_000 + MAX_OUTAGE


def test_an_outage_just_short_of_the_limit_goes_on() -> None:
    wait = make_wait()
    wait.after_error(AWAY, 50.0)
    assert wait.after_error(AWAY, 50.0 + MAX_OUTAGE - 0.001)[0] == pytest.approx(0.001)
    with pytest.raises(ServiceError):
        wait.after_error(AWAY, 50.0 + MAX_OUTAGE)


def test_a_good_poll_ends_the_outage() -> None:
    wait = make_wait()
    wait.after_error(AWAY, 0.0)
    wait.after_error(AWAY, 299.0)
    wait.after_poll(RUNNING, 310.0)
    wait.after_error(AWAY, 320.0)
    wait.after_error(AWAY, 619.0)
    with pytest.raises(ServiceError):
        wait.after_error(AWAY, 620.0)


def test_an_outage_at_time_zero_of_the_clock_counts() -> None:
    wait = make_wait(started=-100.0)
    wait.after_error(AWAY, 0.0)
    with pytest.raises(ServiceError):
        wait.after_error(AWAY, MAX_OUTAGE)


def test_the_deadline_ends_an_outage_and_the_message_says_what_failed() -> None:
    _, ended, end = failing_until_raised(make_wait(timeout=60), AWAY, since=0.0)
    assert isinstance(end, WaitTimeoutError)
    assert ended == 60
    assert str(end) == f"{NAME} has not finished within 60 s; the last poll failed: operations.get returned 503"


def test_a_permanent_error_is_raised_at_the_deadline_too() -> None:
    gone = ServiceError("words", Code.PERMISSION_DENIED)
    with pytest.raises(ServiceError) as caught:
        make_wait(timeout=60).after_error(gone, 60.0)
    assert caught.value is gone


@pytest.mark.parametrize(
    ("retry_after", "expected"),
    [(None, 1.0), (0.0, 1.0), (0.5, 1.0), (20.0, 20.0), (90.0, 90.0)],
)
def test_the_next_poll_is_no_earlier_than_the_server_asked(retry_after: float | None, expected: float) -> None:
    busy = ServiceError("words", Code.RESOURCE_EXHAUSTED, retry_after=retry_after)
    seconds, line = make_wait().after_error(busy, 10.0)
    assert seconds == expected
    assert line is not None
    assert line.endswith(f"next poll in {expected:.1f} s")


def test_an_error_does_not_lengthen_a_short_interval() -> None:
    assert make_wait(poll_interval=0.25).after_error(AWAY, 0.0)[0] == 0.25


def test_the_line_of_a_failed_poll_counts_from_the_start() -> None:
    _, line = make_wait(started=5000.0).after_error(AWAY, 5010.0)
    assert line is not None
    assert line.endswith("; 10 s elapsed, next poll in 1.0 s")


def test_the_last_poll_comes_at_the_deadline_however_long_the_server_asked_to_wait() -> None:
    busy = ServiceError("words", Code.RESOURCE_EXHAUSTED, retry_after=3600.0)
    assert make_wait(timeout=60).after_error(busy, 50.0)[0] == 10.0


@pytest.mark.parametrize("retry_after", [3600.0, 1e9, float("inf")])
def test_no_server_can_stretch_an_outage(retry_after: float) -> None:
    away = ServiceError("words", Code.UNAVAILABLE, retry_after=retry_after)
    _, ended, end = failing_until_raised(make_wait(), away, since=1000.0)
    assert end is away
    assert ended == 1000 + MAX_OUTAGE


@pytest.mark.parametrize(
    ("elapsed", "wait", "line"),
    [
        (0.0, 1.0, f"{NAME} is RUNNING; 0 s elapsed, next poll in 1.0 s"),
        (61.4, 29.96, f"{NAME} is RUNNING; 61 s elapsed, next poll in 30.0 s"),
    ],
)
def test_the_line_of_a_poll(elapsed: float, wait: float, line: str) -> None:
    assert describe_poll(RUNNING, elapsed, wait) == line


# NOT_FOUND

GONE = ServiceError("operations.get returned 404 NOT_FOUND", Code.NOT_FOUND)


@pytest.mark.parametrize("poll_interval", [0.25, 10.0, 30.0, 3600.0])
@pytest.mark.parametrize("good_polls", [0, 1])
@pytest.mark.parametrize("max_outage", [MAX_OUTAGE, None, 5.0])
def test_not_found_is_believed_when_it_has_lasted_for_ten_seconds(
    jitter: Jitter, poll_interval: float, good_polls: int, max_outage: float | None
) -> None:
    wait = Wait(NAME, started=0.0, poll_interval=poll_interval, max_outage=max_outage, jitter=jitter)
    for _ in range(good_polls):
        wait.after_poll(RUNNING, 0.0)
    polls, ended, end = failing_until_raised(wait, GONE, since=5000.0)
    assert end is GONE
    assert ended == pytest.approx(5000 + NOT_FOUND_GRACE)
    assert polls >= 2


def test_a_good_poll_ends_the_grace() -> None:
    wait = make_wait()
    for second in range(0, 90, 9):
        assert wait.after_error(GONE, second)[0] <= NOT_FOUND_GRACE
        wait.after_poll(RUNNING, second + 1.0)


@pytest.mark.parametrize("between", [AWAY, ServiceError("no token", Code.UNAVAILABLE, None, False)])
def test_other_errors_between_neither_end_the_grace_nor_prove_anything(between: ServiceError) -> None:
    wait = make_wait()
    for second in range(NOT_FOUND_POLLS - 1):
        wait.after_error(GONE, second)
    wait.after_error(between, 11.0)
    with pytest.raises(ServiceError) as caught:
        wait.after_error(GONE, 12.0)
    assert caught.value is GONE


@pytest.mark.parametrize("apart", [12.0, 300.0])
def test_a_few_polls_are_not_believed_however_far_apart(apart: float) -> None:
    """A triggerer that is busy polls late."""
    wait = make_wait()
    for number in range(NOT_FOUND_POLLS - 1):
        pause, _ = wait.after_error(GONE, number * apart)
        assert 0 < pause <= NOT_FOUND_GRACE
    with pytest.raises(ServiceError) as caught:
        wait.after_error(GONE, (NOT_FOUND_POLLS - 1) * apart)
    assert caught.value is GONE


def test_the_polls_are_counted_anew_after_one_that_returns_the_operation() -> None:
    wait = make_wait()
    for second in range(0, 60, 20):
        wait.after_error(GONE, second)
    wait.after_poll(RUNNING, 61.0)
    for second in range(80, 140, 20):
        wait.after_error(GONE, second)


def test_the_grace_begins_with_the_first_not_found_of_a_longer_outage() -> None:
    wait = make_wait()
    wait.after_error(AWAY, 0.0)
    wait.after_error(AWAY, 200.0)
    assert wait.after_error(GONE, 229.0)[0] == NOT_FOUND_GRACE


def test_a_timeout_within_the_grace_is_a_timeout() -> None:
    with pytest.raises(WaitTimeoutError, match="has not finished within 5 s; the last poll failed: .*404"):
        make_wait(timeout=5).after_error(GONE, 5.0)


# Pages of a front end


def page(status: int) -> ServiceError:
    return ServiceError(f"returned {status}", code_of_http_status(status), None, True, True)


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 405, 407, 410, 418, 451, 499, 501])
@pytest.mark.parametrize("max_outage", [MAX_OUTAGE, None])
def test_a_page_of_a_front_end_after_a_response_of_the_api_is_an_outage(status: int, max_outage: float | None) -> None:
    wait = Wait(NAME, started=0.0, poll_interval=30.0, max_outage=max_outage, responded=True, jitter=no_jitter)
    assert wait.after_error(page(status), 0.0)[0] == 1.0
    if max_outage:
        _, ended, end = failing_until_raised(wait, page(status), since=1.0)
        assert ended == MAX_OUTAGE
        assert isinstance(end, ServiceError)
        assert end.rpc_code is Code.UNAVAILABLE
        assert str(end) == f"returned {status}"


@pytest.mark.parametrize("status", [400, 401, 403, 405, 418, 499, 501])
def test_a_page_of_a_front_end_before_any_response_of_the_api_is_permanent(status: int) -> None:
    error = page(status)
    with pytest.raises(ServiceError) as caught:
        make_wait().after_error(error, 0.0)
    assert caught.value is error


def test_a_good_poll_makes_later_pages_an_outage() -> None:
    wait = make_wait()
    wait.after_poll(RUNNING, 0.0)
    assert wait.after_error(page(403), 1.0)[0] == 1.0


@pytest.mark.parametrize("code", [Code.PERMISSION_DENIED, Code.UNIMPLEMENTED, Code.UNAUTHENTICATED])
def test_an_error_of_the_api_itself_is_permanent_after_a_good_poll_too(code: Code) -> None:
    wait = make_wait()
    wait.after_poll(RUNNING, 0.0)
    with pytest.raises(ServiceError):
        wait.after_error(ServiceError("words", code), 1.0)


# The log


def lines_of(wait: Wait, errors: list[ServiceError], since: float = 0.0) -> list[str | None]:
    """Return the lines of failed polls, ten seconds apart, and of the good one after them."""
    times = [since + 10 * index for index in range(len(errors) + 1)]
    failed = [wait.after_error(error, now)[1] for error, now in zip(errors, times, strict=False)]
    return [*failed, wait.after_response(times[-1])]


def test_an_outage_is_told_once_and_counted() -> None:
    first, *others, last = lines_of(make_wait(), [AWAY] * 25)
    assert first == f"Could not poll {NAME}: {AWAY}; 0 s elapsed, next poll in 1.0 s"
    assert set(others) == {None}
    assert last == f"The service responded again for {NAME} after 25 failed polls in 250 s"


def test_one_failed_poll_needs_no_second_line() -> None:
    wait = make_wait()
    assert [bool(line) for line in lines_of(wait, [AWAY])] == [True, False]
    assert [bool(line) for line in lines_of(wait, [AWAY], since=100)] == [True, False]


def test_an_error_that_changes_is_told_once_per_code() -> None:
    errors = [ServiceError("words", code) for code in [Code.UNAVAILABLE, Code.INTERNAL, Code.UNKNOWN] * 8]
    assert [bool(line) for line in lines_of(make_wait(), errors)] == [True] * 3 + [False] * 21 + [True]


NO_DURATIONS = [
    -1,
    -0.5,
    float("inf"),
    float("-inf"),
    float("nan"),
    True,
    False,
    None,
    "5",
    b"5",
    [5],
    pytest.param(10**400, id="beyond a float"),
]


@pytest.mark.parametrize("value", [0, 0.0, *NO_DURATIONS])
def test_what_is_no_positive_duration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^Invalid poll_interval .*: expected a positive number of seconds"):
        check_seconds("poll_interval", value)


@pytest.mark.parametrize("value", NO_DURATIONS)
def test_what_is_no_duration_is_refused_where_zero_is_one(value: object) -> None:
    with pytest.raises(ValueError, match=r"^Invalid latency .*: expected a non-negative number of seconds, a"):
        check_seconds("latency", value, zero=True)


@pytest.mark.parametrize("value", [1, 0.001, 30, 86400.5])
def test_a_duration_is_returned_as_a_float(value: float) -> None:
    assert check_seconds("x", value) == value
    assert type(check_seconds("x", value)) is float
    assert check_seconds("x", value, zero=True) == value


def test_zero_is_a_duration_where_that_is_said() -> None:
    assert check_seconds("x", 0, zero=True) == 0.0


@pytest.mark.parametrize(
    ("poll_interval", "timeout", "parameter"),
    [(0, None, "poll_interval"), ("30", None, "poll_interval"), (30, -1, "timeout")],
)
def test_a_wait_refuses_what_is_no_duration(poll_interval: float, timeout: float | None, parameter: str) -> None:
    with pytest.raises(ValueError, match=f"^Invalid {parameter} "):
        make_wait(poll_interval=poll_interval, timeout=timeout)


def test_outage_is_several_polls_even_with_a_long_interval() -> None:
    wait = Wait("operations/a", started=0.0, poll_interval=3600.0, jitter=lambda: 0.0)
    down = ServiceError("down", Code.UNAVAILABLE)
    now, polls = 5000.0, 0
    while polls < 100:
        polls += 1
        try:
            now += wait.after_error(down, now)[0]
        except ServiceError:
            break
    assert 10 <= polls < 20
    assert now == pytest.approx(5000.0 + MAX_OUTAGE)


def test_a_timeout_of_zero_is_one_poll() -> None:
    wait = Wait("operations/a", started=0.0, poll_interval=30.0, timeout=0)
    with pytest.raises(WaitTimeoutError, match="operations/a has not finished within 0 s"):
        wait.after_poll(Operation("operations/a", OperationState.RUNNING), 0.0)


# The grid


def on_the_grid(started: float, poll_interval: float = 30.0, phase: float = 7.0, timeout: float | None = None) -> Wait:
    def slot(now: float, interval: float, longest: float) -> float:
        return slot_of_grid(now, interval, longest, phase)

    return Wait(NAME, started=started, poll_interval=poll_interval, timeout=timeout, jitter=full_jitter, slot=slot)


def slots_of(wait: Wait, until: float, late: float = 0.0) -> list[float]:
    """Return the times at which a wait polls on a grid, whose polls take a moment each."""
    slots, now = [], wait.started
    while now < until:
        seconds = wait.next_poll(RUNNING, now)
        assert wait.slot == pytest.approx(now + seconds)
        slots.append(wait.slot)
        now = wait.slot + late
    return slots


@pytest.mark.parametrize("started", [0.0, 3.3, 11.0, 29.99])
@pytest.mark.parametrize("late", [0.0, 0.4, 5.0])
def test_waits_that_begin_at_any_time_come_to_poll_together(started: float, late: float) -> None:
    later = [slot for slot in slots_of(on_the_grid(started), 400, late) if slot > 120]
    assert later[:3] == pytest.approx([127.0, 157.0, 187.0])


@pytest.mark.parametrize("poll_interval", [0.7, 1.0, 10.0, 30.0, 45.0, 600.0])
def test_the_grid_only_shortens_an_interval_and_by_less_than_a_step(poll_interval: float) -> None:
    for number in range(500):
        now = number * 0.37
        interval = next_interval(now / 5, poll_interval, 0.0)
        seconds = slot_of_grid(now, interval, poll_interval, 3.0) - now
        assert 0 < seconds <= interval + 0.01 * poll_interval + 1e-9


def test_quick_polls_cost_few_more_on_the_grid() -> None:
    assert len([slot for slot in slots_of(on_the_grid(0.5), 60) if slot < 60]) <= 14


def test_the_grid_of_quick_polls_holds_that_of_later_ones() -> None:
    assert slot_of_grid(29.5, 1.0, 30.0, 0.0) == slot_of_grid(3.0, 30.0, 30.0, 0.0) == 30.0


@pytest.mark.parametrize("early", [0.0, 0.002, 0.2])
def test_a_poll_that_comes_a_little_early_is_not_made_twice(early: float) -> None:
    assert slot_of_grid(60.0 - early, 30.0, 30.0, 0.0) == 90.0


def test_a_failed_poll_and_the_last_one_are_not_on_the_grid() -> None:
    wait = on_the_grid(-100.0, timeout=200.0)
    wait.next_poll(RUNNING, 40.0)
    assert wait.slot == 67.0
    wait.jitter = no_jitter
    wait.after_error(AWAY, 67.0)
    assert wait.slot is None
    assert wait.next_poll(RUNNING, 68.0) == pytest.approx(29.0)
    assert wait.slot == 97.0
    assert wait.next_poll(RUNNING, 97.5) == pytest.approx(2.5)
    assert wait.slot is None


def test_the_number_of_a_poll_counts_those_that_have_found_the_operation() -> None:
    wait = make_wait()
    for now in range(3):
        wait.next_poll(RUNNING, float(now))
        wait.after_error(AWAY, float(now))
    assert wait.number == 3
