"""Which polls the list answers and which get does: decisions on pages that the test makes up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from airflow_dai_provider.api.batched_polls import (
    GET_EVERY,
    GETS_AFTER_ERROR,
    GETS_FOR,
    MIN_POLLS_PER_PAGE,
    BatchedPolls,
    Reading,
    is_checked_by_get,
)
from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.operation import Operation, OperationState
from airflow_dai_provider.api.rest import LIST_PAGE_SIZE

AWAY = ServiceError("operations.list returned 503", Code.UNAVAILABLE)


def names_of(number: int, kind: str = "ours") -> list[str]:
    return [f"operations/{kind}-{each}" for each in range(number)]


def pages(names: Iterable[str], **fields: Any) -> list[dict[str, Any]]:
    """Return the pages of a list of operations."""
    items = [{"name": name, **fields} for name in names]
    every = [items[start : start + LIST_PAGE_SIZE] for start in range(0, len(items), LIST_PAGE_SIZE)] or [[]]
    tokens = [*(f"page-{number}" for number in range(1, len(every))), ""]
    return [{"operations": page, "nextPageToken": token} for page, token in zip(every, tokens, strict=True)]


def read(polls: BatchedPolls, names: Iterable[str], listed: list[dict[str, Any]], now: float = 0.0) -> Reading | None:
    """Read the list as a driver does."""
    reading = polls.begin(dict.fromkeys(names), now)
    if reading:
        each: Iterator[dict[str, Any]] = iter(listed)
        while reading.is_useful:
            reading.take(reading.request.read(next(each)))
        polls.end(reading, now)
    return reading


def counts(reading: Reading | None) -> tuple[int, int, int]:
    assert reading
    return reading.pages, reading.answered, len(reading.left)


# A reading


def test_ten_pages_answer_a_thousand_polls() -> None:
    names = names_of(1_000)
    assert counts(read(BatchedPolls(), names, pages(names))) == (10, 1_000, 0)


def test_the_pages_are_requested_in_the_order_of_their_tokens() -> None:
    reading = Reading(dict.fromkeys(names_of(300)))
    paths = []
    for page in pages(names_of(300)):
        paths.append(reading.request.path)
        reading.take(reading.request.read(page))
    first = f"/v1/operations?pageSize={LIST_PAGE_SIZE}"
    assert paths == [first, f"{first}&pageToken=page-1", f"{first}&pageToken=page-2"]


def test_what_has_finished_is_no_answer() -> None:
    names = names_of(100)
    reading = Reading(dict.fromkeys(names))
    items = [{"name": name, "done": True, "response": {}} for name in names[:40]] + [{"name": n} for n in names[40:]]
    page = reading.request.read({"operations": items})
    assert (set(page.running), page.others) == (set(names[40:]), set(names[:40]))
    reading.take(page)
    assert (reading.answered, reading.left) == (60, {})


@pytest.mark.parametrize(
    "item", [{"done": "no"}, {"done": 0}, {"metadata": "text"}, {"done": True, "response": {}, "error": {"code": 1}}]
)
def test_what_cannot_be_read_is_no_answer_and_hides_no_other(item: dict[str, Any]) -> None:
    odd, other = names_of(2)
    page = Reading({odd: None, other: None}).request.read(
        {"operations": [None, {"name": odd, **item}, {"name": other}]}
    )
    assert (set(page.running), page.others) == ({other}, {odd})


def test_one_that_is_listed_twice_is_done_if_it_is_once() -> None:
    (name,) = names_of(1)
    for items in ([{"name": name}, {"name": name, "done": True}], [{"name": name, "done": True}, {"name": name}]):
        page = Reading({name: None}).request.read({"operations": items})
        assert (page.running, page.others) == ({}, {name})


def test_one_that_has_not_changed_is_the_one_seen_before() -> None:
    (name,) = names_of(1)
    seen = Operation(name, OperationState.RUNNING, metadata={"progress": 1})
    request = Reading({name: seen}).request
    assert request.read({"operations": [{"name": name, "metadata": {"progress": 1}}]}).running[name] is seen
    changed = request.read({"operations": [{"name": name, "metadata": {"progress": 2}}]}).running[name]
    assert changed.metadata == {"progress": 2}


def test_reading_ends_when_too_few_polls_are_left_to_be_worth_a_page() -> None:
    names = names_of(100)
    listed = pages(
        names[: 100 - MIN_POLLS_PER_PAGE + 1] + names_of(99, "foreign") + names[100 - MIN_POLLS_PER_PAGE + 1 :]
    )
    assert counts(read(BatchedPolls(), names, listed)) == (1, 100 - MIN_POLLS_PER_PAGE + 1, MIN_POLLS_PER_PAGE - 1)


def test_finished_operations_in_front_are_read_past_when_many_polls_wait() -> None:
    names = names_of(1_000)
    listed = pages(names_of(1_000, "finished") + names)
    assert counts(read(BatchedPolls(), names, listed)) == (20, 1_000, 0)


@pytest.mark.parametrize("number", [20, 100, 1_000, 10_000])
@pytest.mark.parametrize("every", [None, 3])
def test_a_list_in_vain_costs_at_most_a_twentieth_more_than_gets(number: int, every: int | None) -> None:
    """Fifty thousand finished operations; or those that run lie far from one another."""
    names = names_of(number)
    foreign = names_of(50_000, "finished")
    if every:
        for place, name in enumerate(names[: len(foreign) // (every * LIST_PAGE_SIZE)]):
            foreign[place * every * LIST_PAGE_SIZE] = name
    reading = read(BatchedPolls(), names, pages(foreign))
    assert reading
    assert reading.pages - reading.answered <= max(1, number / 20 + 1)


def test_a_list_that_returns_the_same_page_again_and_again_is_not_read_forever() -> None:
    names = names_of(1_000)
    listed = [{**pages(names)[0], "nextPageToken": "the same"}] * 1_000
    read_pages, answered, left = counts(read(BatchedPolls(), names, listed))
    assert (answered, left) == (100, 900)
    assert read_pages <= 1 + 900 / 20 + 1


# When the list is read


def test_few_polls_are_gets() -> None:
    polls = BatchedPolls()
    assert not polls.is_worthwhile(MIN_POLLS_PER_PAGE - 1, 0.0)
    assert polls.is_worthwhile(MIN_POLLS_PER_PAGE, 0.0)


def test_a_list_of_ten_pages_is_not_read_for_fifty_polls() -> None:
    polls, names = BatchedPolls(), names_of(1_000)
    read(polls, names, pages(names))
    assert not polls.is_worthwhile(50, 30.0)
    assert polls.is_worthwhile(100, 30.0)
    assert polls.is_worthwhile(50, GETS_FOR), "It can have become shorter."


def test_a_list_that_was_too_long_is_left_alone_for_a_while_except_for_more_polls() -> None:
    polls, names = BatchedPolls(), names_of(1_000)
    read(polls, names, pages(names_of(50_000, "finished") + names))
    assert polls.begin(dict.fromkeys(names), GETS_FOR - 1) is None
    assert polls.is_worthwhile(2_000, GETS_FOR - 1)
    assert polls.begin(dict.fromkeys(names), GETS_FOR)


@pytest.mark.parametrize("code", [Code.UNIMPLEMENTED, Code.PERMISSION_DENIED, Code.INVALID_ARGUMENT, Code.NOT_FOUND])
def test_a_refused_list_is_left_alone_for_a_while_and_fails_no_poll(code: Code) -> None:
    polls = BatchedPolls()
    is_outcome, line = polls.fail(ServiceError("operations.list was refused", code), 0.0)
    assert not is_outcome
    assert line == "Polling by operations.get only for the next 300 s: operations.list was refused"
    assert not polls.is_worthwhile(10_000, GETS_FOR - 1)
    assert polls.is_worthwhile(MIN_POLLS_PER_PAGE, GETS_FOR)


@pytest.mark.parametrize(
    ("error", "is_outcome"),
    [
        (AWAY, True),
        (ServiceError("the list takes too long", Code.DEADLINE_EXCEEDED), False),
        (ServiceError("no token", Code.UNAVAILABLE, sent=False), True),
        (ServiceError("a page of a proxy", Code.UNAVAILABLE, from_front_end=True), False),
        (ServiceError("a page that cannot be read", Code.UNKNOWN), False),
        (ServiceError("a mistake in the list", Code.INTERNAL), False),
    ],
    ids=lambda value: str(value),
)
def test_an_error_that_may_pass_pauses_the_list_and_is_the_outcome_of_all_polls_if_gets_would_meet_it(
    error: ServiceError, is_outcome: bool
) -> None:
    polls = BatchedPolls()
    assert polls.fail(error, 0.0)[0] is is_outcome
    assert not polls.is_worthwhile(10_000, GETS_AFTER_ERROR - 1)
    assert polls.is_worthwhile(10_000, GETS_AFTER_ERROR)


def test_the_pause_after_errors_in_a_row_grows_up_to_that_after_a_refusal() -> None:
    polls, now, pauses = BatchedPolls(), 0.0, []
    for _ in range(6):
        polls.fail(AWAY, now)
        paused = next(seconds for seconds in range(1_000) if polls.is_worthwhile(MIN_POLLS_PER_PAGE, now + seconds))
        pauses.append(paused)
        now += paused
    assert pauses == [30, 60, 120, 240, 300, 300]
    read(polls, names_of(100), pages(names_of(100)), now)
    polls.fail(AWAY, now)
    assert polls.is_worthwhile(MIN_POLLS_PER_PAGE, now + GETS_AFTER_ERROR)


def test_a_pause_that_the_service_has_asked_for_says_nothing_of_the_list() -> None:
    polls = BatchedPolls()
    pause = ServiceError("operations.list was not sent", Code.RESOURCE_EXHAUSTED, 20.0, sent=False)
    assert polls.fail(pause, 0.0) == (True, None)
    assert polls.is_worthwhile(MIN_POLLS_PER_PAGE, 0.0)


def test_only_the_second_pause_in_a_row_is_held_against_the_list() -> None:
    polls, busy = BatchedPolls(), ServiceError("slow down", Code.RESOURCE_EXHAUSTED, retry_after=5.0)
    assert polls.fail(busy, 0.0) == (True, None)
    read(polls, names_of(100), pages(names_of(100)), 5.0)
    assert polls.fail(busy, 30.0) == (True, None)
    assert polls.is_worthwhile(MIN_POLLS_PER_PAGE, 35.0)
    assert polls.fail(busy, 35.0)[0]
    assert not polls.is_worthwhile(10_000, 35.0 + GETS_AFTER_ERROR - 1)


def test_a_list_that_was_too_slow_is_read_again_if_it_was_worth_it_nevertheless() -> None:
    for answered, is_worthwhile in ((0, False), (100, True)):
        polls, names = BatchedPolls(), names_of(1_000)
        reading = polls.begin(dict.fromkeys(names), 0.0)
        assert reading
        if answered:
            reading.take(reading.request.read(pages(names)[0]))
        polls.end_late(reading, 10.0)
        assert polls.is_worthwhile(1_000, 30.0) is is_worthwhile


def test_the_log_is_told_once_that_the_list_is_not_read() -> None:
    polls = BatchedPolls()
    lines = [polls.fail(AWAY, now)[1] for now in (0.0, 30.0, 90.0)]
    assert [bool(line) for line in lines] == [True, False, False]
    read(polls, names_of(100), pages(names_of(100)), 300.0)
    assert polls.fail(AWAY, 600.0)[1]


# Checks by get


def test_every_twentieth_poll_of_an_operation_is_a_get() -> None:
    for name in names_of(50):
        checked = [number for number in range(100) if is_checked_by_get(name, number)]
        assert len(checked) == 100 / GET_EVERY
        assert {later - earlier for earlier, later in zip(checked, checked[1:], strict=False)} == {GET_EVERY}


def test_any_name_can_be_checked() -> None:
    assert sum(is_checked_by_get("operations/\ud800", number) for number in range(GET_EVERY)) == 1


def test_the_checks_of_many_operations_are_spread() -> None:
    share: Callable[[int], float] = lambda number: sum(is_checked_by_get(n, number) for n in names_of(10_000)) / 10_000  # noqa: E731
    assert all(0.5 / GET_EVERY < share(number) < 1.5 / GET_EVERY for number in range(GET_EVERY))
