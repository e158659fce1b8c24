"""Polls of many operations by both hooks: the list answers for those that run, and get has the last word."""

from __future__ import annotations

import asyncio
import heapq
import json
import time
from collections import Counter
from collections.abc import Awaitable
from random import Random
from typing import Any, TypeVar

import pytest

from airflow_dai_provider import metrics
from airflow_dai_provider.api import rest
from airflow_dai_provider.api.batched_polls import GET_EVERY, GETS_FOR, MIN_POLLS, BatchedPolls, Reading
from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.many_wait import ManyWait
from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.api.operation_page import PolledPage
from airflow_dai_provider.api.polling import WaitTimeoutError
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
from airflow_dai_provider.transport.aiohttp_session import AiohttpTransport
from tests.support.clock import Clock
from tests.support.connections import Connect
from tests.support.emulators import count
from tests.support.event_loop import run
from tests.support.hooks import WaitForMany
from tests.support.log import Log
from tests.support.payloads import large_url

GET, LIST = "operations.get", "operations.list"
T = TypeVar("T")


def gets(emulator: DaiEmulator) -> Counter[str | None]:
    """Return by name how often get was asked."""
    return Counter(request.name for request in emulator.requests if request.method == GET)


def test_the_list_answers_while_they_run_and_get_tells_how_each_has_finished(
    emulator: DaiEmulator, wait: WaitForMany
) -> None:
    names = [emulator.start_ingest(seconds=300) for _ in range(200)]
    many = wait(emulator.endpoint, names)
    assert {operation.state for operation in many.finished.values()} == {"SUCCEEDED"}
    assert len(many.finished) == 200
    rounds = count(emulator, LIST) / 2
    assert rounds >= 10
    assert len(emulator.requests) < 0.2 * rounds * 200
    assert set(gets(emulator)) == set(names)


def test_a_page_that_is_too_large_is_asked_for_again_with_half_as_many(
    emulator: DaiEmulator, wait: WaitForMany
) -> None:
    large = large_url(rest.MAX_RESPONSE_BYTES // 90)
    names = [emulator.start_ingest(seconds=20, creative_url=large) for _ in range(100)]
    many = wait(emulator.endpoint, names)
    assert {operation.state for operation in many.finished.values()} == {"SUCCEEDED"}
    sizes = [request.query["pageSize"] for request in emulator.requests if request.method == LIST]
    assert sizes[:2] == ["100", "50"]
    assert sizes == sorted(sizes, key=int, reverse=True), "The size stays until the list has not been read for a while."
    assert sizes.count("50") > 5
    assert sum(gets(emulator).values()) < 3 * 100


def test_a_list_of_pages_that_are_always_too_large_is_left_to_gets(emulator: DaiEmulator, wait: WaitForMany) -> None:
    emulator.inject(Fault(LIST, padding=rest.MAX_RESPONSE_BYTES, times=None))
    names = [emulator.start_ingest(seconds=20) for _ in range(100)]
    many = wait(emulator.endpoint, names)
    assert {operation.state for operation in many.finished.values()} == {"SUCCEEDED"}
    sizes = [request.query["pageSize"] for request in emulator.requests if request.method == LIST]
    assert sizes == ["100", "50", "25", "12"]


def test_every_poll_is_counted_however_it_is_answered(
    emulator: DaiEmulator, wait: WaitForMany, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: Counter[str] = Counter()
    monkeypatch.setattr(metrics, "_incr", lambda name, number=1: counted.update({name: number}))
    names = [emulator.start_ingest(seconds=2) for _ in range(50)]
    wait(emulator.endpoint, names)
    rounds = count(emulator, LIST)
    assert counted["dai.polls"] == rounds * 50 > len(emulator.requests)


def test_few_operations_are_polled_by_get(emulator: DaiEmulator, wait: WaitForMany) -> None:
    names = [emulator.start_ingest(seconds=60) for _ in range(MIN_POLLS - 1)]
    wait(emulator.endpoint, names)
    assert count(emulator, LIST) == 0


def test_a_list_that_says_running_forever_is_found_out(emulator: DaiEmulator, wait: WaitForMany) -> None:
    names = [emulator.start_ingest(seconds=0) for _ in range(100)]
    page = json.dumps({"operations": [{"name": name} for name in names]}).encode()
    emulator.inject(Fault(LIST, status=200, body=page, times=None))
    many = wait(emulator.endpoint, names)
    assert len(many.finished) == 100
    assert count(emulator, LIST) <= GET_EVERY


def test_a_deleted_operation_that_the_list_shows_forever_is_given_up(emulator: DaiEmulator, wait: WaitForMany) -> None:
    names = [emulator.start_ingest(seconds=1_000) for _ in range(50)]
    emulator.inject(Fault(LIST, listed=[{"name": "operations/gone"}], times=None))
    with pytest.raises(WaitTimeoutError, match="50 of 51 operations have not finished within 100 s"):
        wait(emulator.endpoint, [*names, "operations/gone"], poll_interval=2.0, timeout=100)


def test_a_server_without_list_costs_one_request_in_a_while(
    emulator: DaiEmulator, wait: WaitForMany, clock: Clock
) -> None:
    names = [emulator.start_ingest(seconds=200) for _ in range(30)]
    emulator.unimplement(LIST)
    began = clock.now
    assert len(wait(emulator.endpoint, names).finished) == 30
    assert clock.now - began < GETS_FOR
    assert count(emulator, LIST) == 1


def test_what_the_list_leaves_out_or_does_not_know_is_polled_by_get(emulator: DaiEmulator, wait: WaitForMany) -> None:
    names = [emulator.start_ingest(seconds=20) for _ in range(50)]
    emulator.inject(Fault(LIST, omitted=names[0], times=None))
    many = wait(emulator.endpoint, [*names, "operations/gone"])
    assert len(many.finished) == 50
    assert {name: error.rpc_code for name, error in many.failed.items()} == {"operations/gone": Code.NOT_FOUND}
    assert gets(emulator)[names[0]] >= 5


def test_a_list_that_is_away_alone_ends_no_wait(emulator: DaiEmulator, wait: WaitForMany, log: Log) -> None:
    names = [emulator.start_ingest(seconds=1_000) for _ in range(30)]
    emulator.inject(Fault(LIST, status=503, times=None))
    many = wait(emulator.endpoint, names)
    assert (len(many.finished), many.failed) == (30, {})
    assert 2 <= count(emulator, LIST) <= 10
    assert len(log.lines("Polling by operations.get only for the next 30 s")) == 1


def test_a_mistake_in_reading_the_list_ends_no_wait(
    emulator: DaiEmulator, wait: WaitForMany, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    monkeypatch.delattr(Reading, "take")
    names = [emulator.start_ingest(seconds=10) for _ in range(30)]
    assert len(wait(emulator.endpoint, names).finished) == 30
    assert len(log.lines("Polling by operations.get only for the next 30 s: AttributeError")) == 1


def test_a_list_that_is_away_is_not_the_last_word_when_the_time_is_up(
    emulator: DaiEmulator, wait: WaitForMany, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [emulator.start_ingest(seconds=0) for _ in range(30)]
    emulator.inject(Fault(LIST, status=503, times=None))
    fail = BatchedPolls.fail

    def slowly(decisions: BatchedPolls, error: ServiceError, now: float) -> tuple[bool, str | None]:
        clock.advance(10.0)
        return fail(decisions, error, now)

    monkeypatch.setattr(BatchedPolls, "fail", slowly)
    assert len(wait(emulator.endpoint, names, timeout=5.0).finished) == 30
    assert count(emulator, LIST) == 1


def test_no_list_is_read_when_the_time_is_up(emulator: DaiEmulator, wait: WaitForMany) -> None:
    names = [emulator.start_ingest(seconds=0) for _ in range(30)]
    assert len(wait(emulator.endpoint, names, timeout=0.0).finished) == 30
    assert count(emulator, LIST) == 0


@pytest.mark.parametrize("seconds", [0.0, 4.0], ids=["before", "during"])
def test_a_list_that_is_behind_is_not_the_last_word_when_the_time_is_up(
    emulator: DaiEmulator, wait: WaitForMany, clock: Clock, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    names = [emulator.start_ingest(seconds=15) for _ in range(100)]
    page = json.dumps({"operations": [{"name": name} for name in names]}).encode()
    emulator.inject(Fault(LIST, status=200, body=page, times=None))
    take = Reading.take

    def slowly(reading: Reading, page: PolledPage) -> None:
        take(reading, page)
        clock.advance(seconds)

    monkeypatch.setattr(Reading, "take", slowly)
    many = wait(emulator.endpoint, names, poll_interval=10.0, timeout=19.0)
    assert Counter(operation.state for operation in many.finished.values()) == {"SUCCEEDED": 100}
    assert count(emulator, LIST) >= 3


def test_what_runs_when_the_time_is_up_is_named(emulator: DaiEmulator, wait: WaitForMany) -> None:
    names = [emulator.start_ingest() for _ in range(30)]
    with pytest.raises(WaitTimeoutError, match="30 of 30 operations have not finished within 5 s"):
        wait(emulator.endpoint, names, timeout=5.0)


def test_polls_that_are_not_repeated_never_believe_the_list(emulator: DaiEmulator, hook: DaiHook) -> None:
    names = [emulator.start_ingest(seconds=0) for _ in range(50)]
    emulator.inject(Fault(LIST, listed=[{"name": names[0]}], omitted=names[0], times=None))
    many = ManyWait(names, hook.make_wait("the operations"))
    with hook.workers(len(names)) as workers:
        hook.poll_many(workers, many)
    assert len(many.finished) == 50
    assert count(emulator, LIST) == 0


def test_polls_that_are_repeated_read_the_list(emulator: DaiEmulator, hook: DaiHook) -> None:
    names = [emulator.start_ingest(seconds=60) for _ in range(50)]
    many = ManyWait(names, hook.make_wait("the operations"))
    with hook.workers(len(names)) as workers:
        hook.poll_many(workers, many, by_list=True)
    assert (many.left, count(emulator, LIST)) == (dict.fromkeys(names), 1)


def test_a_page_has_only_the_time_that_is_left_of_one_request(
    emulator: DaiEmulator, hook: DaiHook, clock: Clock, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    names = [emulator.start_ingest() for _ in range(300)]
    take = Reading.take

    def slowly(reading: Reading, page: PolledPage) -> None:
        take(reading, page)
        clock.advance(hook.timeout - 0.2)
        emulator.inject(Fault(LIST, delay=float("inf")))

    monkeypatch.setattr(Reading, "take", slowly)
    many = ManyWait(names, hook.make_wait("the operations"))
    began = time.monotonic()
    with hook.workers(len(names)) as workers:
        hook.poll_many(workers, many, by_list=True)
    assert time.monotonic() - began < hook.timeout - 1
    assert (set(many.running), count(emulator, LIST)) == (set(names), 2)
    assert log.lines("Polling by operations.get only") == [], "The first page was worth its cost."


def test_each_process_of_a_rescheduled_wait_checks_others_by_get(
    hook: DaiHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DaiHook, "_random", staticmethod(Random(1).random))  # noqa: S311 - no secret
    assert {hook.make_wait("one", elapsed=60.0).number for _ in range(400)} == set(range(GET_EVERY))
    assert hook.make_wait("one").number == 0


# Waits for one operation each


class IdleTime:
    """Time that passes only while all waits sleep and no request is under way: to the next that wakes.

    :param pages_take: seconds that each page of the list takes.
    """

    def __init__(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pages_take = 0.0
        self._clock = clock
        self._under_way = 0
        self._sleeping: list[tuple[float, int, asyncio.Future[None]]] = []
        self._slept = 0
        exchange = AiohttpTransport._exchange

        async def timed(transport: AiohttpTransport, request: rest.Request[Any], headers: Any) -> rest.Response:
            self._under_way += 1
            try:
                response = await exchange(transport, request, headers)
            finally:
                self._under_way -= 1
            if request.method == LIST:
                clock.advance(self.pages_take)
            return response

        monkeypatch.setattr(AiohttpTransport, "_exchange", timed)

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.get_running_loop().create_future()
        self._slept += 1
        heapq.heappush(self._sleeping, (self._clock.now + seconds, self._slept, woken))
        await woken

    async def outlast(self, *waits: Awaitable[T]) -> list[T]:
        """Return what waits return, and let time pass until then."""
        passing = asyncio.create_task(self._pass())
        try:
            return await asyncio.gather(*waits)
        finally:
            passing.cancel()

    async def _pass(self) -> None:
        while True:
            for _ in range(20):
                await asyncio.sleep(0)
            if self._under_way or not self._sleeping:
                await asyncio.sleep(0.001)
                continue
            at, _, woken = heapq.heappop(self._sleeping)
            self._clock.now = max(self._clock.now, at)
            if not woken.done():
                woken.set_result(None)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch, connect: Connect, fake_time: Clock) -> IdleTime:
    connect(is_anonymous=True)
    idle = IdleTime(fake_time, monkeypatch)
    monkeypatch.setattr(DaiAsyncHook, "_sleep", staticmethod(idle.sleep))
    return idle


@pytest.mark.parametrize("number", [MIN_POLLS - 1, 100])
def test_many_waits_for_one_operation_each_share_their_polls(
    idle: IdleTime, emulator: DaiEmulator, number: int
) -> None:
    names = [emulator.start_ingest(seconds=60) for _ in range(number)]

    async def wait(name: str) -> Operation:
        async with DaiAsyncHook(api_endpoint=emulator.endpoint) as hook:
            return await hook.wait_for_operation(name, poll_interval=10.0)

    operations = run(idle.outlast(*map(wait, names)))
    assert [(operation.name, operation.state) for operation in operations] == [(name, "SUCCEEDED") for name in names]
    assert bool(count(emulator, LIST)) is (number >= MIN_POLLS)
    assert all(number >= 2 for number in gets(emulator).values()), "The first poll and the last are gets."
    if number >= MIN_POLLS:
        assert count(emulator, GET) < 6 * number, "Without the list it would be ten."


@pytest.mark.parametrize("number", [1, MIN_POLLS - 1])
def test_many_waits_for_a_few_operations_each_share_their_polls(
    idle: IdleTime, emulator: DaiEmulator, number: int
) -> None:
    each = MIN_POLLS - 1
    names = [emulator.start_ingest(seconds=60) for _ in range(number * each)]

    async def wait(names: list[str]) -> ManyWait:
        async with DaiAsyncHook(api_endpoint=emulator.endpoint) as hook:
            many = ManyWait(names, hook.make_wait("the operations", poll_interval=10.0))
            await hook.wait_for_many(many)
        return many

    waits = run(idle.outlast(*(wait(names[start : start + each]) for start in range(0, len(names), each))))
    assert sorted(name for many in waits for name in many.finished) == sorted(names)
    assert bool(count(emulator, LIST)) is (number > 1)
    if number > 1:
        assert count(emulator, GET) < 6 * len(names), "Without the list it would be ten."


def test_a_wait_that_is_over_counts_no_operations(emulator: DaiEmulator, connect: Connect, fake_time: Clock) -> None:
    connect(is_anonymous=True)
    names = [emulator.start_ingest(seconds=3) for _ in range(MIN_POLLS)]

    async def main() -> None:
        async with DaiAsyncHook(api_endpoint=emulator.endpoint) as other:
            polls = (await other._open()).polls
            hook = DaiAsyncHook(api_endpoint=emulator.endpoint)
            await hook.wait_for_many(ManyWait(names, hook.make_wait("the operations")))
            assert polls._operations == 1

    run(main())


def test_a_list_that_answers_when_the_time_is_up_is_not_the_last_word(idle: IdleTime, emulator: DaiEmulator) -> None:
    names = [emulator.start_ingest(seconds=15) for _ in range(MIN_POLLS)]
    page = json.dumps({"operations": [{"name": name} for name in names]}).encode()
    emulator.inject(Fault(LIST, status=200, body=page, times=None))
    idle.pages_take = 10.0

    async def wait(name: str) -> Operation:
        async with DaiAsyncHook(api_endpoint=emulator.endpoint) as hook:
            return await hook.wait_for_operation(name, poll_interval=10.0, timeout=20.0)

    assert {operation.state for operation in run(idle.outlast(*map(wait, names)))} == {"SUCCEEDED"}
    assert count(emulator, LIST) >= 1
