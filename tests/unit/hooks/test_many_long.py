"""Long lists of operations with both hooks: what breaks off a round, and what does not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.many_wait import ManyWait
from airflow_dai_provider.api.polling import WaitTimeoutError
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
from airflow_dai_provider.transport.aiohttp_session import MAX_CONNECTIONS
from airflow_dai_provider.transport.threads import CONCURRENCY
from tests.support.clock import Clock
from tests.support.connections import Connect
from tests.support.hooks import WaitForMany

GET = "operations.get"
UNDER_WAY = max(CONCURRENCY, MAX_CONNECTIONS)


@pytest.mark.parametrize(
    ("limits", "raised"),
    [({"max_outage": 5.0}, ServiceError), ({"timeout": 5.0}, WaitTimeoutError)],
    ids=["outage", "timeout"],
)
def test_a_round_ends_when_the_time_is_up(
    emulator: DaiEmulator, wait: WaitForMany, clock: Clock, limits: dict[str, float], raised: type[Exception]
) -> None:
    names = [emulator.start_ingest() for _ in range(1_000)]
    emulator.inject(Fault(status=503, times=None))
    clock.step = 0.1
    with pytest.raises(raised):
        wait(emulator.endpoint, names, **limits)
    assert len(emulator.requests) < 3 * UNDER_WAY


@pytest.mark.parametrize("status", [404, 403])
def test_the_page_of_one_first_poll_neither_ends_nor_drops_anything(
    emulator: DaiEmulator, wait: WaitForMany, status: int
) -> None:
    names = [emulator.start_ingest(seconds=0) for _ in range(200)]
    emulator.inject(Fault(GET, status=status, html=True, name=names[0], times=2))
    assert len(wait(emulator.endpoint, names).finished) == 200


def test_an_unexpected_error_of_one_poll_is_that_of_its_operation_only(
    emulator: DaiEmulator, wait: WaitForMany, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [emulator.start_ingest(seconds=0) for _ in range(3)]
    get, send = DaiHook._get_once, DaiAsyncHook._send
    broken: list[str] = []

    def fail_once(path: str) -> None:
        if names[1] in path and not broken:
            broken.append(path)
            raise KeyError("a mistake")

    def in_a_thread(hook: DaiHook, name: str) -> Any:
        fail_once(name)
        return get(hook, name)

    async def on_a_loop(hook: DaiAsyncHook, request: Any, until: float) -> Any:
        fail_once(request.path)
        return await send(hook, request, until)

    monkeypatch.setattr(DaiHook, "_get_once", in_a_thread)
    monkeypatch.setattr(DaiAsyncHook, "_send", on_a_loop)
    many = wait(emulator.endpoint, names)
    assert broken
    assert len(many.finished) == 3


def test_a_connection_that_is_away_is_looked_up_once_a_round(
    emulator: DaiEmulator, connect: Connect, clock: Clock, fake_time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(is_anonymous=True)
    names = [emulator.start_ingest(seconds=0) for _ in range(100)]
    looked_up: list[float] = []
    look_up = DaiHook._look_up

    def away(hook: DaiHook) -> dict[str, Any]:
        looked_up.append(clock.now)
        if len(looked_up) <= 3:
            raise ServiceError("The connection could not be looked up", Code.UNAVAILABLE, sent=False)
        return look_up(hook)

    monkeypatch.setattr(DaiHook, "_look_up", away)

    async def main() -> None:
        hook = DaiAsyncHook(api_endpoint=emulator.endpoint)
        many = ManyWait(names, hook.make_wait("the operations"))
        await hook.wait_for_many(many)
        assert len(many.finished) == 100

    asyncio.run(main())
    assert len(looked_up) == 4
    assert len(set(looked_up)) == 4
