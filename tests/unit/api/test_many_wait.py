"""One wait until each of many operations has finished, in rounds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.many_wait import LAST_ROUND, MANY_PAGES, MAX_LISTED, ManyWait, some_of
from airflow_dai_provider.api.operation import Operation, OperationState
from airflow_dai_provider.api.polling import MAX_OUTAGE, NOT_FOUND_GRACE, Wait, WaitTimeoutError

A, B, C = "operations/a", "operations/b", "operations/c"
END: dict[str, Any] = {"done": True, "response": {}}
#: What a service responds to a poll at a time: fields of the operation, or an error.
Service = Callable[[str, float], "dict[str, Any] | ServiceError"]


def error(code: Code = Code.UNAVAILABLE, **fields: Any) -> ServiceError:
    return ServiceError(f"no: {code}", code, **fields)


PAUSE = error(Code.RESOURCE_EXHAUSTED, retry_after=5.0, sent=False)


class Waiting:
    """Drive a wait as the hooks do, on a clock of its own."""

    def __init__(
        self, names: Iterable[str], *, expected: Collection[OperationState] | None = None, **limits: Any
    ) -> None:
        wait = Wait("the operations", **{"started": 0.0, "poll_interval": 30.0, "jitter": lambda: 0.0, **limits})
        self.many = ManyWait(names, wait, expected)
        self.now = 0.0
        self.seconds_per_poll = 0.0
        self.polls = 0
        self.rounds: list[tuple[float, list[str]]] = []
        self.lines: list[str] = []
        self.told: list[int | str] = []

    def round(self, service: Service) -> None:
        many = self.many
        names = many.due(self.now)
        complete = len(names) == len(many.left)
        self.rounds.append((self.now, names))
        for name in names:
            result = service(name, self.now)
            self.now += self.seconds_per_poll
            self.polls += 1
            if isinstance(result, ServiceError):
                if many.after_error(name, result, self.now):
                    self.told.append(name)
            elif level := many.after_poll(Operation.from_api({"name": name, **result}), self.now):
                self.told.append(level)
            if many.is_round_over(self.now, complete=complete):
                break
        if many.left:
            seconds, line, _ = many.after_round(self.now, complete=complete)
            self.lines += [line] if line else []
            assert seconds > 0 or not many.left
            self.now += seconds

    def to_the_end(self, service: Service) -> ManyWait:
        while self.many.left:
            self.round(service)
            assert len(self.rounds) < 3_000
        return self.many


def at(seconds: float, then: Any = END) -> Service:
    """Return a service whose operations all finish after these seconds."""
    return lambda _, now: then if now >= seconds else {}


def test_nothing_is_waited_for_in_an_empty_list() -> None:
    many = ManyWait([], Wait("none", started=0.0, poll_interval=30.0))
    assert (dict(many.left), many.progress) == ({}, "0 of 0 finished")


def test_one_that_comes_twice_is_polled_once() -> None:
    waiting = Waiting([B, A, B])
    assert list(waiting.to_the_end(at(0)).finished) == [B, A]
    assert waiting.rounds == [(0.0, [B, A])]


def test_rounds_come_as_the_polls_of_one_wait() -> None:
    waiting = Waiting([A, B], poll_interval=10.0)
    waiting.to_the_end(at(60))
    assert [round(now, 2) for now, _ in waiting.rounds] == [
        0,
        1,
        2.5,
        4.75,
        8.12,
        13.19,
        20.78,
        30.78,
        40.78,
        50.78,
        60.78,
    ]


def test_what_has_finished_is_polled_no_more() -> None:
    waiting = Waiting([A, B])
    waiting.to_the_end(lambda name, now: END if name == A or now >= 2 else {})
    assert [names for _, names in waiting.rounds] == [[A, B], [B], [B]]


def test_the_progress_says_how_many_have_finished_and_how() -> None:
    names = [f"operations/{number}" for number in range(1_000)]
    waiting = Waiting(names)
    cancelled = {"done": True, "error": {"code": 1}}
    number_of = {name: number for number, name in enumerate(names)}
    waiting.round(lambda name, _: cancelled if number_of[name] < 790 else END if number_of[name] < 812 else {})
    assert waiting.lines == ["812 of 1,000 finished: 790 cancelled, 22 succeeded; 0 s elapsed, next poll in 1.0 s"]


@pytest.mark.parametrize(("number", "level"), [(MAX_LISTED, logging.INFO), (MAX_LISTED + 1, None)])
def test_each_end_is_told_where_there_are_few(number: int, level: int | None) -> None:
    waiting = Waiting([f"operations/{one}" for one in range(number)], expected={OperationState.SUCCEEDED})
    waiting.to_the_end(at(0))
    assert waiting.told == ([level] * number if level else [])


def test_an_unexpected_end_is_always_told() -> None:
    waiting = Waiting([f"operations/{one}" for one in range(100)], expected={OperationState.CANCELLED})
    waiting.to_the_end(lambda name, _: END if name.endswith("7") else {"done": True, "error": {"code": 1}})
    assert waiting.told == [logging.WARNING] * 10


# Errors of one


@pytest.mark.parametrize("code", [Code.PERMISSION_DENIED, Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION])
def test_a_permanent_error_ends_the_wait_for_that_one_only(code: Code) -> None:
    waiting = Waiting([A, B, C])
    many = waiting.to_the_end(lambda name, now: error(code) if name == B else at(3)(name, now))
    assert {name: failed.rpc_code for name, failed in many.failed.items()} == {B: code}
    assert sorted(many.finished) == [A, C]
    assert waiting.told[0] == B
    assert not many.errors
    assert many.progress == "3 of 3 finished: 2 succeeded, 1 could not be polled"


def test_an_operation_that_is_unknown_is_believed_after_the_grace_period() -> None:
    waiting = Waiting([A, B])
    many = waiting.to_the_end(lambda name, now: error(Code.NOT_FOUND) if name == B else at(2)(name, now))
    assert many.failed[B].rpc_code is Code.NOT_FOUND
    assert waiting.now == pytest.approx(NOT_FOUND_GRACE)


@pytest.mark.parametrize("news_only", [True, False])
def test_the_log_is_told_of_each_round_or_of_changes_of_the_progress_only(news_only: bool) -> None:
    waiting = Waiting([A, B])
    waiting.many.news_only = news_only
    waiting.to_the_end(lambda name, now: END if now >= (100 if name == A else 300) else {})
    assert len(waiting.rounds) > 10
    told = [line.split(";")[0] for line in waiting.lines]
    assert list(dict.fromkeys(told)) == ["0 of 2 finished", "1 of 2 finished: 1 succeeded"]
    assert (len(told) == 2) is news_only


@pytest.mark.parametrize("others_finish", [2.0, 1_000.0])
def test_one_that_is_unavailable_is_believed_as_long_as_a_wait_for_it_would(others_finish: float) -> None:
    waiting = Waiting([A, B, C])
    many = waiting.to_the_end(lambda name, now: error() if name == B else at(others_finish)(name, now))
    assert many.failed[B].rpc_code is Code.UNAVAILABLE
    assert sorted(many.finished) == [A, C]
    last = max(now for now, names in waiting.rounds if B in names)
    assert last == pytest.approx(MAX_OUTAGE)
    assert len([line for line in waiting.lines if "Could not poll no: UNAVAILABLE" in line]) == 1


def test_between_two_rounds_only_those_are_polled_whose_poll_has_failed() -> None:
    """Otherwise, at an error rate of one per mill, ten thousand operations would be polled once a second."""
    waiting = Waiting([A, B, C])
    waiting.now = 100.0
    waiting.round(lambda name, now: error() if name == B and now == 100 else {})
    waiting.round(lambda *_: {})
    waiting.round(lambda *_: {})
    (first, every), (second, retried), (third, every_again) = waiting.rounds
    assert (every, retried, every_again) == ([A, B, C], [B], [A, B, C])
    assert (second - first, third - first) == (pytest.approx(1.0), pytest.approx(30.0))
    assert len(waiting.lines) == 2, "A retry of a few is no news."


def test_a_poll_that_succeeds_ends_the_outage_of_one() -> None:
    waiting = Waiting([A, B])
    flapping = lambda name, now: error() if name == B and int(now) % 2 else at(2_000)(name, now)  # noqa: E731
    assert sorted(waiting.to_the_end(flapping).finished) == [A, B]


def test_unimplemented_holds_for_all_at_once() -> None:
    waiting = Waiting([A, B, C])
    with pytest.raises(ServiceError) as caught:
        waiting.round(lambda *_: error(Code.UNIMPLEMENTED))
    assert caught.value.rpc_code is Code.UNIMPLEMENTED


def test_of_many_errors_only_some_are_told() -> None:
    waiting = Waiting([f"operations/{one}" for one in range(1_000)])
    many = waiting.to_the_end(lambda *_: error(Code.PERMISSION_DENIED))
    assert len(many.failed) == 1_000
    assert len(waiting.told) == MAX_LISTED


# Errors of the service


@pytest.mark.parametrize("before", [0.0, 40.0])
def test_an_outage_of_the_service_ends_the_wait_with_its_error(before: float) -> None:
    waiting = Waiting([f"operations/{one}" for one in range(100)])
    with pytest.raises(ServiceError) as caught:
        waiting.to_the_end(lambda _, now: {} if now < before else error())
    assert caught.value.rpc_code is Code.UNAVAILABLE
    assert waiting.many.failed == {}
    assert waiting.told == [], "One error, and not one for each operation."
    assert MAX_OUTAGE <= waiting.now - before < MAX_OUTAGE + 40


def test_a_short_outage_is_borne_and_told() -> None:
    waiting = Waiting([A, B])
    waiting.to_the_end(lambda name, now: error() if 20 < now < 250 else at(400)(name, now))
    assert sorted(waiting.many.finished) == [A, B]
    assert len([line for line in waiting.lines if "Could not poll the operations: no: UNAVAILABLE" in line]) == 1
    assert any("The service responded again for the operations after" in line for line in waiting.lines)


def test_an_outage_that_begins_while_one_fails_alone_counts_from_its_own_begin() -> None:
    waiting = Waiting([A, B])
    with pytest.raises(ServiceError):
        waiting.to_the_end(lambda name, now: error() if name == B or now > 200 else {})
    assert waiting.now >= 200 + MAX_OUTAGE


def test_a_front_end_s_page_is_no_answer_about_an_operation() -> None:
    page = error(Code.NOT_FOUND, from_front_end=True)
    waiting = Waiting([A, B], responded=True)
    waiting.to_the_end(lambda name, now: page if now < 100 else at(200)(name, now))
    assert sorted(waiting.many.finished) == [A, B]
    waiting = Waiting([A, B], responded=True)
    with pytest.raises(ServiceError):
        waiting.to_the_end(lambda *_: page)
    assert waiting.many.failed == {}


def test_one_s_page_of_a_front_end_is_an_outage_once_the_service_has_responded_for_another() -> None:
    page = error(Code.NOT_FOUND, from_front_end=True)
    waiting = Waiting([A, B])
    waiting.to_the_end(lambda name, now: page if name == B and now < 60 else at(100)(name, now))
    assert sorted(waiting.many.finished) == [A, B]


@pytest.mark.parametrize("code", [Code.UNIMPLEMENTED, Code.PERMISSION_DENIED, Code.NOT_FOUND])
def test_the_page_of_the_first_poll_is_judged_when_the_others_of_its_round_are_known(code: Code) -> None:
    page = error(code, from_front_end=True)
    waiting = Waiting([A, B, C])
    many = waiting.to_the_end(lambda name, now: page if name == A and now < 60 else at(100)(name, now))
    assert sorted(many.finished) == [A, B, C]
    assert not many.failed


def test_a_page_is_an_outage_also_of_one_that_was_unavailable_before_the_api_responded() -> None:
    page = error(Code.PERMISSION_DENIED, from_front_end=True)
    waiting = Waiting([A, B])
    waiting.round(lambda *_: error())
    assert sorted(waiting.to_the_end(lambda name, now: page if name == A and now < 60 else END).finished) == [A, B]


def test_a_round_of_nothing_but_pages_is_believed() -> None:
    names = [f"operations/{one}" for one in range(30)]
    waiting = Waiting(names)
    many = waiting.to_the_end(lambda *_: error(Code.PERMISSION_DENIED, from_front_end=True))
    assert (len(many.failed), len(waiting.rounds)) == (30, 1)
    waiting = Waiting(names)
    with pytest.raises(ServiceError) as caught:
        waiting.round(lambda *_: error(Code.UNIMPLEMENTED, from_front_end=True))
    assert caught.value.rpc_code is Code.UNIMPLEMENTED
    assert waiting.polls == 30


def test_a_page_of_one_says_nothing_of_others_that_are_unavailable() -> None:
    page = error(Code.PERMISSION_DENIED, from_front_end=True)
    waiting = Waiting([A, B])
    many = waiting.to_the_end(lambda name, now: page if name == B else error() if now < 60 else END)
    assert (sorted(many.finished), sorted(many.failed)) == ([A], [B])


# Long rounds


def test_an_outage_lasts_no_longer_for_a_long_list() -> None:
    waiting = Waiting([f"operations/{one}" for one in range(10_000)])
    waiting.seconds_per_poll = 0.2  # that of 64 threads whose requests take 13 s
    with pytest.raises(ServiceError) as caught:
        waiting.to_the_end(lambda *_: error(Code.DEADLINE_EXCEEDED))
    assert caught.value.rpc_code is Code.DEADLINE_EXCEEDED
    assert waiting.now == pytest.approx(MAX_OUTAGE, abs=1)


def test_a_response_in_a_long_round_shows_that_there_is_no_outage() -> None:
    names = [f"operations/{one}" for one in range(10_000)]
    gone = frozenset(names[:5_000])
    waiting = Waiting(names)
    waiting.round(lambda name, _: error() if name in gone else {})
    waiting.now = 100.0
    waiting.seconds_per_poll = 0.1
    waiting.round(lambda name, now: error() if name in gone else at(0)(name, now))
    assert len(waiting.many.finished) == 5_000


@pytest.mark.parametrize("result", [{}, error(), error(Code.NOT_FOUND)], ids=["running", "unavailable", "unknown"])
def test_a_timeout_breaks_off_a_long_round(result: Any) -> None:
    waiting = Waiting([f"operations/{one}" for one in range(10_000)], timeout=100.0)
    waiting.seconds_per_poll = 0.125
    with pytest.raises(
        WaitTimeoutError, match="10,000 of 10,000 operations have not .* 9,200 of them had not been polled again$"
    ):
        waiting.to_the_end(lambda *_: result)
    assert waiting.now == pytest.approx(100, abs=1)


def test_the_round_that_begins_when_the_time_is_up_may_find_all_that_have_finished() -> None:
    names = [f"operations/{one}" for one in range(100)]
    waiting = Waiting(names, timeout=100.0)
    waiting.now = 100.0
    waiting.seconds_per_poll = LAST_ROUND / 101
    assert len(waiting.to_the_end(lambda *_: END).finished) == 100


# A pause


def quota(number: int, pause: float, finish: Callable[[str, float], Any]) -> Service:
    """Return a service that takes this many polls, and asks for a pause then; polls in it are not sent."""
    taken, until = 0, 0.0

    def respond(name: str, now: float) -> Any:
        nonlocal taken, until
        if now < until:
            return error(Code.RESOURCE_EXHAUSTED, retry_after=until - now, sent=False)
        taken += 1
        if taken > number:
            taken, until = 0, now + pause
            return error(Code.RESOURCE_EXHAUSTED, retry_after=pause)
        return finish(name, now)

    return respond


def test_a_pause_never_hits_the_same_operations_again_and_again() -> None:
    """Those behind the first hundred would never be polled, and be given up after five minutes."""
    names = [f"operations/{number}" for number in range(1_000)]
    polled: dict[str, list[float]] = {name: [] for name in names}

    def finish(name: str, now: float) -> Any:
        polled[name].append(now)
        return END if now >= 900 else {}

    waiting = Waiting(names)
    many = waiting.to_the_end(quota(100, 5.0, finish))
    assert many.failed == {}
    assert len(many.finished) == 1_000
    assert max(times[0] for times in polled.values()) <= 60
    gaps = [later - sooner for times in polled.values() for sooner, later in zip(times, times[1:], strict=False)]
    assert max(gaps) < 120


def test_what_was_not_sent_because_of_a_pause_is_polled_after_it() -> None:
    waiting = Waiting([A, B])
    waiting.now = 100.0
    waiting.round(lambda name, _: {} if name == A else PAUSE)
    assert waiting.now == 105
    assert waiting.many.progress == "0 of 2 finished (1 could not be polled yet)"
    waiting.to_the_end(at(0))
    assert waiting.rounds[1] == (105, [B])


def test_a_service_that_is_always_too_busy_ends_the_wait() -> None:
    waiting = Waiting([A, B])
    with pytest.raises(ServiceError) as caught:
        waiting.to_the_end(lambda name, _: error(Code.RESOURCE_EXHAUSTED, retry_after=5.0) if name == A else PAUSE)
    assert caught.value.rpc_code is Code.RESOURCE_EXHAUSTED
    assert caught.value.sent


# The end of the time


def test_a_timeout_names_some_that_have_not_finished() -> None:
    names = [f"operations/{one}" for one in range(30)]
    waiting = Waiting(names, timeout=60.0)
    with pytest.raises(WaitTimeoutError) as caught:
        waiting.to_the_end(lambda name, _: END if name in names[:5] else {})
    message = str(caught.value)
    assert message.startswith("25 of 30 operations have not finished within 60 s: operations/5; ")
    assert message.endswith("operations/14; and 15 more")
    assert waiting.now == 60, "One last poll is made then."


@pytest.mark.parametrize("failing", [[A, B], [B]])
def test_a_timeout_comes_in_time_also_while_polls_fail(failing: list[str]) -> None:
    waiting = Waiting([A, B], timeout=60.0)
    with pytest.raises(
        WaitTimeoutError, match="2 of 2 operations have not finished within 60 s: operations/a; operations/b"
    ):
        waiting.to_the_end(lambda name, _: error() if name in failing else {})
    assert 60 <= waiting.now <= 61


def test_without_a_limit_of_outages_only_permanent_errors_end_it() -> None:
    waiting = Waiting([A, B], max_outage=None)
    many = waiting.to_the_end(lambda name, now: error() if now < 5_000 else at(6_000)(name, now))
    assert sorted(many.finished) == [A, B]


@pytest.mark.parametrize(("number", "text"), [(0, ""), (1, "0"), (2, "0; 1"), (10, "0; 1; 2; 3; 4; 5; 6; 7; 8; 9")])
def test_few_are_joined(number: int, text: str) -> None:
    assert some_of(range(number)) == text


def test_of_many_the_first_are_joined() -> None:
    assert some_of(range(1_234)).endswith("8; 9; and 1,224 more")


def test_the_last_that_cannot_be_polled_is_no_timeout() -> None:
    waiting = Waiting([A, B], timeout=MAX_OUTAGE)
    many = waiting.to_the_end(lambda name, now: error() if name == B else at(2)(name, now))
    assert (sorted(many.finished), sorted(many.failed)) == ([A], [B])


def test_a_fast_error_does_not_keep_the_others_of_the_last_round_from_telling() -> None:
    """The first outcome of the round at the deadline is an error; the responses for the others are under way."""
    waiting = Waiting([A, B, C], timeout=100.0)
    with pytest.raises(WaitTimeoutError, match=f"1 of 3 operations have not finished within 100 s: {A}"):
        waiting.to_the_end(lambda name, now: (error() if name == A else END) if now >= 100 else {})
    assert list(waiting.many.finished) == [B, C]


def test_one_that_is_slow_to_recover_does_not_prolong_an_outage_that_is_over() -> None:
    waiting = Waiting([A, B, C], max_outage=60.0)
    waiting.to_the_end(lambda name, now: error() if now < 60 or name == A else END)
    assert (set(waiting.many.finished), set(waiting.many.failed)) == ({B, C}, {A})


def test_many_pages_and_no_response_of_the_api_end_a_long_round() -> None:
    waiting = Waiting([f"operations/{number}" for number in range(1_000)])
    page = ServiceError("a page", Code.UNIMPLEMENTED, from_front_end=True)
    with pytest.raises(ServiceError) as caught:
        waiting.to_the_end(lambda *_: page)
    assert caught.value.rpc_code is Code.UNIMPLEMENTED
    assert waiting.polls == MANY_PAGES + 1


def test_the_number_of_a_round_leaves_out_rounds_of_failed_polls() -> None:
    waiting = Waiting([A, B], started=-1000.0)
    waiting.round(lambda name, _: error() if name == A else {})
    waiting.round(lambda *_: {})
    waiting.round(lambda *_: {})
    assert [names for _, names in waiting.rounds] == [[A, B], [A], [A, B]]
    assert waiting.many.number == 2


def test_a_round_of_failed_polls_is_not_on_the_grid_but_the_next_of_all_is() -> None:
    waiting = Waiting([A, B], started=-1000.0, slot=lambda now, *_: 30.0 * (now // 30.0 + 1))
    wait = waiting.many.wait
    waiting.now = 3.0
    waiting.round(lambda *_: {})
    assert (waiting.now, wait.slot) == (30.0, 30.0)
    waiting.round(lambda name, _: error() if name == A else {})
    assert (waiting.now, wait.slot) == (31.0, None)
    waiting.round(lambda *_: {})
    assert (waiting.now, wait.slot) == (60.0, 60.0)


def test_a_clock_that_is_set_back_delays_no_round() -> None:
    waiting = Waiting([A, B, C])
    service: Service = lambda name, _: error() if name == A else {}  # noqa: E731
    for _ in range(10):
        waiting.round(service)
    waiting.now -= 3600.0
    first = waiting.now
    while waiting.now < first + 60.0:
        waiting.round(service)
    assert len([names for now, names in waiting.rounds if now < 0 and len(names) == 3]) >= 2
