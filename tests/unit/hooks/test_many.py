"""Polling many operations with DaiHook: its threads, their shared pause, and what ends a wait."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.many_wait import ManyWait
from airflow_dai_provider.api.polling import MAX_OUTAGE, NOT_FOUND_GRACE
from airflow_dai_provider.api.retry import MAX_HELD
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.transport.threads import CONCURRENCY
from tests.support.clock import Clock
from tests.support.log import Log

GET = "operations.get"
Poll = Callable[..., ManyWait]


@pytest.fixture(params=["wait_for_many", "poll_many"])
def poll(hook: DaiHook, request: pytest.FixtureRequest) -> Poll:
    """Give a function that polls operations with one of the two methods."""

    def run(names: list[str]) -> ManyWait:
        many = ManyWait(names, hook.make_wait("the operations"))
        with hook.workers(len(names)) as workers:
            getattr(hook, request.param)(workers, many)
        return many

    return run


def test_there_are_as_many_threads_as_operations_up_to_a_limit(hook: DaiHook) -> None:
    for number, threads in ((0, 1), (1, 1), (3, 3), (10_000, CONCURRENCY)):
        with hook.workers(number) as workers:
            assert len(workers._threads) == threads


def test_nothing_is_polled_for_an_empty_list(emulator: DaiEmulator, poll: Poll) -> None:
    assert poll([]).finished == {}
    assert emulator.requests == []


def test_a_pause_that_the_service_asks_for_holds_every_poll(emulator: DaiEmulator, poll: Poll) -> None:
    names = [emulator.start_ingest(seconds=0) for _ in range(400)]
    emulator.inject(Fault(method=GET, headers={"X-Fine": "yes"}, times=100))
    emulator.inject(Fault(method=GET, status=429, retry_after=20))
    assert len(poll(names).finished) == 400
    times = [request.time for request in emulator.requests if request.method == GET]
    under_way = [time for time in times[101:] if time < times[100] + 20]
    assert len(under_way) < 2 * CONCURRENCY, "Only what was under way, or sent before the response was read."
    assert len(times) <= 400 + 1


@pytest.mark.parametrize("seconds", [200, 3600, 1e9])
def test_one_response_that_asks_for_a_long_pause_ends_no_wait(
    emulator: DaiEmulator, poll: Poll, seconds: float, clock: Clock
) -> None:
    names = [emulator.start_ingest(seconds=0) for _ in range(100)]
    # Others get a response before it. Without any, the pause lasts as long as an outage may.
    emulator.inject(Fault(method=GET, headers={"X-Fine": "yes"}, times=10))
    emulator.inject(Fault(method=GET, status=429, retry_after=int(seconds)))
    began = clock.now
    many = poll(names)
    assert (len(many.finished), many.failed) == (100, {})
    assert MAX_HELD <= clock.now - began < MAX_OUTAGE


def test_one_that_is_unknown_is_believed_in_time(emulator: DaiEmulator, poll: Poll, clock: Clock) -> None:
    known = emulator.start_ingest(seconds=0)
    began = clock.now
    many = poll([known, "operations/gone"])
    assert (list(many.finished), list(many.failed), dict(many.left)) == ([known], ["operations/gone"], {})
    assert NOT_FOUND_GRACE <= clock.now - began < 2 * NOT_FOUND_GRACE


@pytest.mark.parametrize("code", [Code.UNIMPLEMENTED, Code.UNAVAILABLE])
def test_what_holds_for_all_is_one_error(emulator: DaiEmulator, poll: Poll, code: Code) -> None:
    names = [emulator.start_ingest() for _ in range(10)]
    emulator.inject(Fault(method=GET, rpc_status=code, times=None))
    with pytest.raises(ServiceError) as caught:
        poll(names)
    assert caught.value.rpc_code is code


def test_a_wait_tells_of_its_first_round_also_after_a_poll(emulator: DaiEmulator, hook: DaiHook, log: Log) -> None:
    names = [emulator.start_ingest(seconds=100) for _ in range(3)]
    many = ManyWait(names, hook.make_wait("the operations"))
    with hook.workers(3) as workers:
        hook.poll_many(workers, many)
        assert log.ours == []
        hook.wait_for_many(workers, many)
    assert len(log.lines("0 of 3 finished; 0 s elapsed")) == 1
    assert len(log.lines("3 of 3 finished: 3 succeeded")) == 1


def test_a_hook_that_is_stopped_polls_no_more(emulator: DaiEmulator, hook: DaiHook) -> None:
    names = [emulator.start_ingest() for _ in range(10)]
    many = ManyWait(names, hook.make_wait("the operations"))
    hook.stopped = lambda: "the task was killed" if len(emulator.requests) >= 10 else None
    with hook.workers(10) as workers, pytest.raises(ServiceError, match="the task was killed") as caught:
        hook.wait_for_many(workers, many)
    assert (caught.value.rpc_code, caught.value.sent) == (Code.CANCELLED, False)
    assert len(emulator.requests) == 10
