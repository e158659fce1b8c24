"""The pause that the service has asked for, with DaiAsyncHook: whom it holds, on which clock, and for how long."""

from __future__ import annotations

import asyncio

import pytest
from google.api_core import exceptions

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.many_wait import ManyWait
from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.api.polling import MAX_OUTAGE, WaitTimeoutError
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiAsyncHook
from tests.support.clock import Clock
from tests.support.connections import Connect
from tests.support.emulators import count
from tests.support.event_loop import run

GET, CANCEL = "operations.get", "operations.cancel"


@pytest.fixture(autouse=True)
def _time(connect: Connect, fake_time: Clock) -> None:
    connect(is_anonymous=True)


def test_a_call_waits_in_a_pause_no_longer_than_its_retries_may_last(emulator: DaiEmulator, clock: Clock) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(GET, status=429, retry_after=20))
    began = clock.now

    async def main() -> None:
        async with DaiAsyncHook(api_endpoint=emulator.endpoint, retry_timeout=5) as hook:
            for message in ("returned 429", "was not sent: the service has asked for a pause, of which 20 s are left"):
                with pytest.raises(exceptions.ResourceExhausted, match=message):
                    await hook.get_operation(name)

    run(main())
    assert (clock.now - began, count(emulator, GET)) == (0, 1)


def test_one_response_that_asks_for_a_long_pause_ends_no_wait_that_shares_the_session(
    emulator: DaiEmulator, clock: Clock
) -> None:
    names = [emulator.start_ingest(seconds=30) for _ in range(3)]
    emulator.inject(Fault(GET, status=503, retry_after=3600))

    async def main() -> list[Operation]:
        async with DaiAsyncHook(api_endpoint=emulator.endpoint) as hook:
            return await asyncio.gather(*map(hook.wait_for_operation, names))

    began = clock.now
    assert [operation.state for operation in run(main())] == ["SUCCEEDED"] * 3
    assert clock.now - began <= 2 * MAX_OUTAGE  # all sleep on one clock


def test_a_pause_after_an_attempt_keeps_the_error_of_the_service(emulator: DaiEmulator, clock: Clock) -> None:
    name = emulator.start_ingest()

    async def main() -> ServiceError:
        async with DaiAsyncHook(api_endpoint=emulator.endpoint) as hook:
            sleep = hook._sleep

            async def meet_a_pause(seconds: float) -> None:
                emulator.inject(Fault(GET, status=429, retry_after=1000))
                with pytest.raises(exceptions.ResourceExhausted):
                    await hook.get_operation(name)
                await sleep(seconds)

            hook._sleep = meet_a_pause
            emulator.inject(Fault(CANCEL, status=503))
            with pytest.raises(exceptions.ServiceUnavailable, match="returned 503 .*; it was not retried: ") as caught:
                await hook.cancel_operation(name)
            assert isinstance(caught.value, ServiceError)
            return caught.value

    error = run(main())
    assert (error.rpc_code, error.sent, count(emulator, CANCEL)) == (Code.UNAVAILABLE, True, 1)


def test_a_clock_that_steps_back_does_not_prolong_a_pause(emulator: DaiEmulator, clock: Clock) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(GET, status=429, retry_after=5))
    hour = 0.0
    began = clock.now

    async def main() -> None:
        nonlocal hour
        hook = DaiAsyncHook(api_endpoint=emulator.endpoint, retry_timeout=10)
        hook._clock = lambda: clock.now - hour
        sleep = hook._sleep

        async def step_back(seconds: float) -> None:
            nonlocal hour
            hour = 3600.0
            await sleep(seconds)

        hook._sleep = step_back
        assert (await hook.get_operation(name)).state == "RUNNING"

    run(main())
    assert clock.now - began == 5


@pytest.mark.parametrize("number", [1, 3])
def test_a_pause_does_not_prolong_a_wait(emulator: DaiEmulator, clock: Clock, number: int) -> None:
    names = [emulator.start_ingest() for _ in range(number)]
    emulator.inject(Fault(GET, status=429, retry_after=25, times=None))
    began = clock.now

    async def main() -> None:
        hook = DaiAsyncHook(api_endpoint=emulator.endpoint)
        if number == 1:
            await hook.wait_for_operation(names[0], timeout=10)
        else:
            await hook.wait_for_many(ManyWait(names, hook.make_wait("the operations", timeout=10)))

    with pytest.raises(WaitTimeoutError):
        run(main())
    assert clock.now - began == pytest.approx(10)
