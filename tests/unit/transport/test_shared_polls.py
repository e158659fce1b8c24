"""Polls of many waits that are due together, over real HTTP: who is answered by a page, and who is to ask by get."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials

from airflow_dai_provider.api import rest
from airflow_dai_provider.api.batched_polls import GETS_FOR, MIN_POLLS, MIN_POLLS_PER_PAGE, is_checked_by_get
from airflow_dai_provider.api.endpoint import Endpoint
from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.transport.aiohttp_session import AiohttpTransport
from airflow_dai_provider.transport.shared_polls import SharedPolls
from airflow_dai_provider.transport.shared_token import Token
from tests.support.clock import Clock
from tests.support.emulators import count
from tests.support.event_loop import run, until
from tests.support.log import Log

pytestmark = pytest.mark.usefixtures("few_authorities", "fake_time")

LIST = "operations.list"
SLOT = 30.0


class Time:
    """A sleep that lasts until the time has come."""

    def __init__(self) -> None:
        self.asleep: list[float] = []
        self._come = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.asleep.append(seconds)
        await self._come.wait()

    def comes(self) -> None:
        self._come.set()
        self._come = asyncio.Event()


class Waits:
    """Waits that share a session.

    :param hold: is awaited after each page, before it is used.
    """

    def __init__(self, transport: AiohttpTransport, clock: Clock, time: Time, timeout: float = 5.0) -> None:
        self.transport = transport
        self.time = time
        self.hold: Callable[[], Coroutine[Any, Any, object]] | None = None
        self.polls = SharedPolls(self._call, timeout, clock, time.sleep, transport._short_pause)

    async def _call(self, request: rest.Request[Any], until: float) -> Any:
        page = await self.transport.call(request, until)
        if self.hold:
            await self.hold()
        return page

    def begin(self, names: Iterable[str], slot: float = SLOT) -> list[asyncio.Task[Mapping[str, Operation]]]:
        """Begin to wait for the polls of each, which are due at the same time."""
        return [asyncio.create_task(self.polls.ask({name: None}, slot, SLOT)) for name in names]

    def hold_pages(self) -> asyncio.Event:
        """Let each page be used only once the returned event is set."""
        held = asyncio.Event()
        self.hold = held.wait
        return held

    async def come_due(self) -> None:
        """Let the polls that were begun come due."""
        await beats()
        self.time.comes()

    async def poll(self, names: Iterable[str], slot: float = SLOT) -> list[Any]:
        """Return the answers to polls that are due together, and errors in their place."""
        asked = self.begin(names, slot)
        await self.come_due()
        return await asyncio.gather(*asked, return_exceptions=True)


async def beats() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@asynccontextmanager
async def waits_at(emulator: DaiEmulator, clock: Clock, timeout: float = 5.0) -> AsyncIterator[Waits]:
    transport = AiohttpTransport(Endpoint(emulator.endpoint), Token(AnonymousCredentials(), 5.0), 5.0, clock)
    await transport.open()
    waits = Waits(transport, clock, Time(), timeout)
    try:
        yield waits
    finally:
        await waits.polls.close()
        await transport.close()


def with_waits(emulator: DaiEmulator, clock: Clock, main: Callable[[Waits], Any], timeout: float = 5.0) -> Any:
    async def session() -> Any:
        async with waits_at(emulator, clock, timeout) as waits:
            return await main(waits)

    return run(session())


def test_one_page_answers_a_hundred_waits(emulator: DaiEmulator, clock: Clock) -> None:
    names = [emulator.start_ingest() for _ in range(100)]
    answers = with_waits(emulator, clock, lambda waits: waits.poll(names))
    assert [list(answer) for answer in answers] == [[name] for name in names]
    assert {operation.state for answer in answers for operation in answer.values()} == {"RUNNING"}
    assert [request.method for request in emulator.requests] == [LIST]


def test_one_timer_serves_all_that_are_due_together(emulator: DaiEmulator, clock: Clock) -> None:
    names = [emulator.start_ingest() for _ in range(50)]

    async def main(waits: Waits) -> None:
        await waits.poll(names)
        assert waits.time.asleep == [SLOT]

    with_waits(emulator, clock, main)


def test_what_has_finished_or_is_not_listed_is_to_be_asked_by_get(emulator: DaiEmulator, clock: Clock) -> None:
    running = [emulator.start_ingest() for _ in range(50)]
    done, hidden = emulator.start_ingest(seconds=0), emulator.start_ingest()
    emulator.inject(Fault(LIST, omitted=hidden, times=None))
    answers = with_waits(emulator, clock, lambda waits: waits.poll([done, hidden, "operations/gone", *running]))
    assert answers[:3] == [{}, {}, {}]
    assert all(answers[3:])


def test_too_few_polls_are_gets(emulator: DaiEmulator, clock: Clock) -> None:
    names = [emulator.start_ingest() for _ in range(MIN_POLLS_PER_PAGE - 1)]
    assert with_waits(emulator, clock, lambda waits: waits.poll(names)) == [{}] * len(names)
    assert emulator.requests == []


def test_two_waits_for_one_operation_are_both_answered(emulator: DaiEmulator, clock: Clock) -> None:
    names = [emulator.start_ingest() for _ in range(20)]
    answers = with_waits(emulator, clock, lambda waits: waits.poll(names + names))
    assert [list(answer) for answer in answers] == [[name] for name in names + names]
    assert len(emulator.requests) == 1


def test_a_wait_for_many_shares_the_pages_with_waits_for_one(emulator: DaiEmulator, clock: Clock) -> None:
    names = [emulator.start_ingest() for _ in range(60)]

    async def main(waits: Waits) -> None:
        many = asyncio.create_task(waits.polls.ask(dict.fromkeys([*names[:40], "operations/gone"]), SLOT, SLOT))
        single = await waits.poll(names[30:])
        assert set(await many) == set(names[:40])
        assert [list(answer) for answer in single] == [[name] for name in names[30:]]

    with_waits(emulator, clock, main)
    assert len(emulator.requests) == 1


@pytest.mark.parametrize("cancelled", [5, 45])
def test_waits_that_are_cancelled_count_no_more(emulator: DaiEmulator, clock: Clock, cancelled: int) -> None:
    names = [emulator.start_ingest() for _ in range(50)]

    async def main(waits: Waits) -> None:
        asked = waits.begin(names)
        await beats()
        for one in asked[:cancelled]:
            one.cancel()
        await waits.come_due()
        answers = await asyncio.gather(*asked[cancelled:])
        assert all(answers) is (cancelled == 5)

    with_waits(emulator, clock, main)
    assert len(emulator.requests) == (cancelled == 5)


def test_the_list_is_read_no_further_for_waits_that_are_cancelled_meanwhile(
    emulator: DaiEmulator, clock: Clock
) -> None:
    names = [emulator.start_ingest() for _ in range(300)]

    async def main(waits: Waits) -> None:
        held = waits.hold_pages()
        asked = waits.begin(names)
        again = waits.begin(names[-1:])
        await waits.come_due()
        await until(lambda: emulator.requests and emulator.requests[0].status)
        for one in asked[105:]:
            one.cancel()
        await beats()
        held.set()
        answers = await asyncio.gather(*asked[:105], *again)
        assert list(map(bool, answers)) == [True] * 100 + [False] * 6

    with_waits(emulator, clock, main)
    assert count(emulator, LIST) == 1


def test_the_list_is_not_read_for_waits_that_are_cancelled_while_another_reading_goes_on(
    emulator: DaiEmulator, clock: Clock
) -> None:
    names = [emulator.start_ingest() for _ in range(50)]

    async def main(waits: Waits) -> None:
        held = waits.hold_pages()
        first = waits.begin(names)
        await waits.come_due()
        await until(lambda: emulator.requests)
        late = waits.begin(names)
        await waits.come_due()
        await beats()
        for one in late[5:]:
            one.cancel()
        await beats()
        held.set()
        assert all(await asyncio.gather(*first))
        assert not any(await asyncio.gather(*late[:5]))

    with_waits(emulator, clock, main)
    assert count(emulator, LIST) == 1


def test_a_poll_is_answered_by_no_page_that_was_requested_before_it_was_due(
    emulator: DaiEmulator, clock: Clock
) -> None:
    names = [emulator.start_ingest(seconds=100) for _ in range(50)]

    async def main(waits: Waits) -> None:
        held = waits.hold_pages()
        first = waits.begin(names)
        await waits.come_due()
        await until(lambda: emulator.requests)
        await until(lambda: emulator.requests[0].status)
        clock.advance(200)
        late = waits.begin(names)
        await waits.come_due()
        await beats()
        held.set()
        assert all(await asyncio.gather(*first))
        assert not any(await asyncio.gather(*late))

    with_waits(emulator, clock, main)
    assert count(emulator, LIST) == 2


def test_a_server_without_list_is_asked_once_in_a_while(emulator: DaiEmulator, clock: Clock, log: Log) -> None:
    names = [emulator.start_ingest() for _ in range(50)]
    emulator.inject(Fault(LIST, rpc_status="UNIMPLEMENTED", times=None))

    async def main(waits: Waits) -> None:
        for _ in range(3):
            assert await waits.poll(names) == [{}] * 50
        assert len(emulator.requests) == 1
        clock.advance(GETS_FOR)
        assert await waits.poll(names) == [{}] * 50

    with_waits(emulator, clock, main)
    assert len(emulator.requests) == 2
    assert len(log.lines("Polling by operations.get only for the next 300 s")) == 1


def test_an_outage_is_the_outcome_of_every_poll_that_waits(emulator: DaiEmulator, clock: Clock) -> None:
    names = [emulator.start_ingest() for _ in range(50)]
    emulator.inject(Fault(LIST, status=503))

    async def main(waits: Waits) -> None:
        assert all(isinstance(answer, exceptions.ServiceUnavailable) for answer in await waits.poll(names))
        assert await waits.poll(names) == [{}] * 50, "The next polls are gets, which tell the list from the service."

    with_waits(emulator, clock, main)
    assert len(emulator.requests) == 1


def test_an_outage_after_the_first_page_takes_no_answer_away(emulator: DaiEmulator, clock: Clock) -> None:
    names = [emulator.start_ingest() for _ in range(200)]

    async def main(waits: Waits) -> None:
        async def fail_next() -> None:
            emulator.inject(Fault(LIST, status=503))

        waits.hold = fail_next
        many = asyncio.create_task(waits.polls.ask(dict.fromkeys(names), SLOT, SLOT))
        single = await waits.poll(names)
        assert len(await many) == 100
        assert [bool(answer) and not isinstance(answer, Exception) for answer in single] == [True] * 100 + [False] * 100
        assert all(isinstance(answer, exceptions.ServiceUnavailable) for answer in single[100:])

    with_waits(emulator, clock, main)


def test_a_pause_that_the_list_is_asked_for_holds_gets_too(emulator: DaiEmulator, clock: Clock) -> None:
    names = [emulator.start_ingest() for _ in range(50)]
    emulator.inject(Fault(LIST, status=429, retry_after=40))

    async def main(waits: Waits) -> None:
        answers = await waits.poll(names)
        assert all(isinstance(answer, exceptions.ResourceExhausted) for answer in answers)
        assert {answer.retry_after for answer in answers} == {40}
        with pytest.raises(exceptions.ResourceExhausted, match="the service has asked for a pause"):
            await waits.transport.call(rest.get_operation(names[0]), clock.now + 10)

    with_waits(emulator, clock, main)
    assert len(emulator.requests) == 1


@pytest.mark.parametrize("pauses", [1, 2])
def test_the_list_is_read_on_after_one_pause(emulator: DaiEmulator, clock: Clock, pauses: int) -> None:
    names = [emulator.start_ingest() for _ in range(50)]
    emulator.inject(Fault(LIST, status=429, retry_after=20, times=pauses))

    async def main(waits: Waits) -> None:
        asked = waits.begin(names)
        await waits.come_due()
        await until(lambda: waits.time.asleep == [SLOT, 20.0])
        clock.advance(20)
        waits.time.comes()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert len(emulator.requests) == 2
        if pauses == 1:
            assert all(answers)
        else:
            assert all(isinstance(answer, exceptions.ResourceExhausted) for answer in answers)
            assert await waits.poll(names) == [{}] * 50

    with_waits(emulator, clock, main)


def test_a_pause_does_not_count_as_time_that_the_list_takes(emulator: DaiEmulator, clock: Clock) -> None:
    names = [emulator.start_ingest() for _ in range(50)]
    emulator.inject(Fault("operations.get", status=429, retry_after=8))

    async def main(waits: Waits) -> None:
        with pytest.raises(exceptions.ResourceExhausted):
            await waits.transport.call(rest.get_operation(names[0]))
        asked = waits.begin(names)
        await waits.come_due()
        await until(lambda: waits.time.asleep == [SLOT, 8.0] or all(one.done() for one in asked))
        await asyncio.sleep(0.2)
        clock.advance(8)
        waits.time.comes()
        assert all(await asyncio.gather(*asked))

    with_waits(emulator, clock, main, timeout=0.1)
    assert count(emulator, LIST) == 1


def test_polls_that_have_waited_for_as_long_as_a_request_may_take_are_gets(emulator: DaiEmulator, clock: Clock) -> None:
    names = [emulator.start_ingest() for _ in range(50)]
    emulator.inject(Fault(LIST, delay=float("inf")))
    assert with_waits(emulator, clock, lambda waits: waits.poll(names), timeout=1.0) == [{}] * 50
    assert len(emulator.requests) == 1


def test_a_list_that_was_not_reached_in_time_is_not_called_slow(emulator: DaiEmulator, clock: Clock, log: Log) -> None:
    names = [emulator.start_ingest() for _ in range(50)]
    emulator.inject(Fault(LIST, delay=float("inf")))

    async def main(waits: Waits) -> None:
        waits.polls._timeout = 60.0
        first = asyncio.create_task(waits.poll(names))
        await until(lambda: emulator.requests)
        waits.polls._timeout = 0.1
        assert await waits.poll(names) == [{}] * 50
        with waits.polls.joined() as note:
            note(MIN_POLLS)
            assert waits.polls.slot(1000.0, 30.0, 30.0) is not None
        first.cancel()

    with_waits(emulator, clock, main)
    assert log.lines("Polling by operations.get only") == []


def test_a_reading_that_waits_for_one_that_fails_is_not_begun(emulator: DaiEmulator, clock: Clock) -> None:
    names = [emulator.start_ingest() for _ in range(50)]
    emulator.inject(Fault(LIST, rpc_status="UNIMPLEMENTED", delay=0.3, times=None))

    async def main(waits: Waits) -> None:
        first = asyncio.create_task(waits.poll(names))
        await until(lambda: waits.polls._reading.locked())
        assert await waits.poll(names) == await first == [{}] * 50

    with_waits(emulator, clock, main)
    assert len(emulator.requests) == 1


def test_the_log_of_a_batch_is_that_of_no_wait(emulator: DaiEmulator, clock: Clock) -> None:
    names = [emulator.start_ingest() for _ in range(50)]
    task: ContextVar[str | None] = ContextVar("task", default=None)
    seen: list[str | None] = []

    async def main(waits: Waits) -> None:
        async def see() -> None:
            seen.append(task.get())

        waits.hold = see
        task.set("the first wait")
        assert all(await waits.poll(names))

    with_waits(emulator, clock, main)
    assert seen == [None]


def test_whatever_goes_wrong_no_wait_waits_forever(emulator: DaiEmulator, clock: Clock, log: Log) -> None:
    names = [emulator.start_ingest() for _ in range(50)]

    async def main(waits: Waits) -> None:
        async def break_down() -> None:
            raise KeyError("a mistake")

        waits.hold = break_down
        assert await waits.poll(names) == [{}] * 50

    with_waits(emulator, clock, main)
    assert len(log.lines("KeyError('a mistake')")) == 1, "It is not hidden either."


def test_the_last_wait_leaves_no_timer_behind(emulator: DaiEmulator, clock: Clock) -> None:
    async def main(waits: Waits) -> None:
        (asked,) = waits.begin(["operations/a"])
        await beats()
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)

    with_waits(emulator, clock, main)  # which fails on a task that goes on


def test_waits_poll_together_when_they_are_many_and_the_list_is_worth_it(emulator: DaiEmulator, clock: Clock) -> None:
    names = [emulator.start_ingest() for _ in range(50)]
    emulator.inject(Fault(LIST, rpc_status="UNIMPLEMENTED"))

    async def main(waits: Waits) -> None:
        polls = waits.polls
        joined = [polls.joined() for _ in range(MIN_POLLS)]
        for one in joined:
            one.__enter__()
        slot = polls.slot(1000.0, 30.0, 30.0)
        assert slot is not None
        assert 1000 < slot <= 1030.3
        assert polls.slot(slot - 3.0, 30.0, 30.0) == pytest.approx(slot)
        await waits.poll(names)
        assert polls.slot(1000.0, 30.0, 30.0) is None
        clock.advance(GETS_FOR - 30)
        assert polls.slot(1000.0, 30.0, 30.0) == slot, "By then, the list is read again."
        for one in joined:
            one.__exit__(None, None, None)
        assert polls.slot(1000.0, 30.0, 30.0) is None

    with_waits(emulator, clock, main)


def test_the_operations_of_all_waits_count_together(emulator: DaiEmulator, clock: Clock) -> None:
    async def main(waits: Waits) -> None:
        polls = waits.polls
        with polls.joined() as note:
            note(MIN_POLLS - 1)
            assert polls.slot(1000.0, 30.0, 30.0) is None
            with polls.joined() as note_other:
                assert polls.slot(1000.0, 30.0, 30.0) is not None, "The other is for one operation."
                note(5)
                assert polls.slot(1000.0, 30.0, 30.0) is None
                note_other(MIN_POLLS - 5)
                assert polls.slot(1000.0, 30.0, 30.0) is not None
            assert polls.slot(1000.0, 30.0, 30.0) is None

    with_waits(emulator, clock, main)


def test_polls_are_due_together_only_if_the_list_is_then_read(emulator: DaiEmulator, clock: Clock) -> None:
    names = [f"operations/{number}" for number in range(1_000)]
    batches = [sum(not is_checked_by_get(name, number) for name in names) for number in range(20)]

    async def main(waits: Waits) -> None:
        decisions, polls = waits.polls._decisions, waits.polls
        decisions._believed_until = float("inf")
        with polls.joined() as note:
            note(len(names))
            for needed in range(800, 1_001, 5):
                decisions._needed = needed
                if polls.slot(1000.0, 30.0, 30.0) is not None:
                    assert all(decisions.is_worthwhile(batch, clock.now) for batch in batches), needed
            decisions._needed = 900
            assert polls.slot(1000.0, 30.0, 30.0) is not None

    with_waits(emulator, clock, main)
