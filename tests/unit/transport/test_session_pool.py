"""Who shares a session: many waits with one connection, one endpoint and one event loop, and nobody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError

from airflow_dai_provider.api import rest
from airflow_dai_provider.api.endpoint import Endpoint
from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.hooks.async_calls import LOOKED_UP_FOR
from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
from airflow_dai_provider.transport import google_errors
from airflow_dai_provider.transport.aiohttp_session import MAX_CONNECTIONS, AiohttpTransport
from airflow_dai_provider.transport.session_pool import lease
from airflow_dai_provider.transport.shared_token import Token
from tests.support.clock import Clock
from tests.support.connections import Connect
from tests.support.emulators import bearers
from tests.support.event_loop import Gate, run, until
from tests.support.token_server import TokenServer

pytestmark = pytest.mark.usefixtures("few_authorities", "fake_time")

# Hooks


def test_two_hundred_waits_share_a_session_and_a_token(
    emulator: DaiEmulator, connect: Connect, tokens: TokenServer, clock: Clock
) -> None:
    connect(keyfile_dict=tokens.key, dai_api_endpoint=emulator.endpoint)
    names = [emulator.start_ingest(seconds=5) for _ in range(200)]

    async def wait(name: str) -> str:
        async with DaiAsyncHook() as hook:
            return (await hook.wait_for_operation(name)).name

    async def main() -> list[str]:
        return await asyncio.gather(*map(wait, names))

    clock.slept = NeverTooMany()
    assert run(main()) == names
    assert {request.name for request in emulator.requests if request.method == "operations.get"} == set(names)
    assert len(emulator.requests) > len(names)
    assert 1 < emulator.connections <= MAX_CONNECTIONS
    assert tokens.asked == 1
    assert set(bearers(emulator)) == {f"Bearer {tokens.issued[0]}"}


class NeverTooMany(list[float]):
    """What so many waits sleep is more than the clock of the tests believes."""

    def __len__(self) -> int:
        return 0


def test_two_hundred_waits_with_calls_of_their_own_leave_nothing_open(emulator: DaiEmulator, connect: Connect) -> None:
    """They come and go, so the session is opened and closed in between, perhaps often."""
    connect(is_anonymous=True, dai_api_endpoint=emulator.endpoint)
    name = emulator.start_ingest()

    async def look(number: int) -> None:
        await asyncio.sleep(number % 7 / 1000)
        await DaiAsyncHook().get_operation(name)

    async def main() -> None:
        await asyncio.gather(*map(look, range(200)))

    run(main())
    assert len(emulator.requests) == 200


def test_the_first_lease_opens_the_session_and_the_last_closes_it(
    emulator: DaiEmulator, connect: Connect, tokens: TokenServer
) -> None:
    connect(keyfile_dict=tokens.key, dai_api_endpoint=emulator.endpoint)
    name = emulator.start_ingest()

    async def main() -> None:
        async with AsyncExitStack() as outlasting, DaiAsyncHook() as first:
            await first.get_operation(name)
            second = await outlasting.enter_async_context(DaiAsyncHook())
            await first.__aexit__()
            await second.get_operation(name)
            await first.get_operation(name)
            assert (emulator.connections, tokens.asked) == (1, 1)
        async with DaiAsyncHook() as later:
            await later.get_operation(name)
        assert (emulator.connections, tokens.asked) == (2, 2)

    run(main())


def held_together(emulator: DaiEmulator, *hooks: Callable[[], DaiAsyncHook]) -> None:
    """Let hooks look while all of them are held open."""
    name = emulator.start_ingest()

    async def main() -> None:
        async with AsyncExitStack() as stack:
            for make in hooks:
                hook = await stack.enter_async_context(make())
                await hook.get_operation(name)

    run(main())


@pytest.mark.parametrize(
    ("second", "connections"),
    [
        ({}, 1),
        ({"gcp_conn_id": "the_same"}, 1),
        ({"retry_timeout": 5.0}, 1),
        ({"gcp_conn_id": "another"}, 2),
        ({"timeout": 5.0}, 2),
        ({"quota_project_id": "billed-project"}, 2),
        ({"api_endpoint": "localhost"}, 2),
    ],
    ids=str,
)
def test_equal_settings_share_a_session(
    emulator: DaiEmulator, connect: Connect, tokens: TokenServer, second: dict[str, Any], connections: int
) -> None:
    connect(keyfile_dict=tokens.key, dai_api_endpoint=emulator.endpoint)
    connect("the_same", keyfile_dict=tokens.key, dai_api_endpoint=emulator.endpoint)
    connect("another", keyfile_dict={**tokens.key, "private_key_id": "k2"}, dai_api_endpoint=emulator.endpoint)
    if "api_endpoint" in second:
        second = {"api_endpoint": emulator.endpoint.replace("127.0.0.1", "localhost")}

    held_together(emulator, DaiAsyncHook, lambda: DaiAsyncHook(**second))

    assert emulator.connections == connections
    assert len(set(bearers(emulator))) == connections


def test_another_account_to_impersonate_is_not_shared(
    emulator: DaiEmulator, connect: Connect, tokens: TokenServer
) -> None:
    connect(keyfile_dict=tokens.key, dai_api_endpoint=emulator.endpoint)

    async def keys() -> set[Any]:
        chains = (None, "a@p.iam.gserviceaccount.com", ["a@p.iam.gserviceaccount.com", "b@p.iam.gserviceaccount.com"])
        hooks = [DaiAsyncHook(impersonation_chain=chain) for chain in chains]
        return {(await hook.get_sync_hook()).sharing_key for hook in hooks}

    assert len(run(keys())) == 3


def test_two_endpoints_do_not_share(emulator: DaiEmulator, connect: Connect, tokens: TokenServer) -> None:
    connect(keyfile_dict=tokens.key)

    async def main(other: DaiEmulator) -> None:
        here, there = emulator.start_ingest(), other.start_ingest()
        async with (
            DaiAsyncHook(api_endpoint=emulator.endpoint) as one,
            DaiAsyncHook(api_endpoint=other.endpoint) as two,
        ):
            await one.get_operation(here)
            await two.get_operation(there)

    with DaiEmulator() as other:
        run(main(other))
        assert len(other.requests) == len(emulator.requests) == 1
        assert set(bearers(other)) != set(bearers(emulator))
    assert tokens.asked == 2


def test_a_changed_connection_is_used_a_second_later_while_the_older_wait_goes_on(
    emulator: DaiEmulator, connect: Connect, tokens: TokenServer, clock: Clock
) -> None:
    connect(keyfile_dict=tokens.key, dai_api_endpoint=emulator.endpoint)
    name = emulator.start_ingest()

    async def main(other: DaiEmulator) -> None:
        other.start_ingest(name)
        async with DaiAsyncHook() as older:
            await older.get_operation(name)
            connect(is_anonymous=True, dai_api_endpoint=other.endpoint)
            clock.advance(LOOKED_UP_FOR)
            async with DaiAsyncHook() as newer:
                await newer.get_operation(name)
                await older.get_operation(name)
                with await older.synchronous_hook() as synchronous:
                    await asyncio.to_thread(synchronous.cancel_operation, name)

    with DaiEmulator() as other:
        run(main(other))
        assert set(bearers(other)) == {None}
    assert set(bearers(emulator)) == {f"Bearer {tokens.issued[0]}"}
    assert len(emulator.requests) == 3
    assert emulator.connections == 2, "The synchronous hook has a session of its own."


def test_waits_that_begin_together_look_the_connection_up_once(
    emulator: DaiEmulator, connect: Connect, tokens: TokenServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(keyfile_dict=tokens.key, dai_api_endpoint=emulator.endpoint)
    connect("another", keyfile_dict=tokens.key, dai_api_endpoint=emulator.endpoint)
    look_up, looked_up = DaiHook._look_up, []

    def count(hook: DaiHook) -> dict[str, Any]:
        looked_up.append(hook.gcp_conn_id)
        return look_up(hook)

    monkeypatch.setattr(DaiHook, "_look_up", count)

    async def begin(connection: str) -> None:
        async with DaiAsyncHook(connection):
            pass

    async def main() -> None:
        async with DaiAsyncHook("google_cloud_default"), DaiAsyncHook("another"):
            await asyncio.gather(*(begin(name) for name in ("google_cloud_default", "another") for _ in range(100)))
        assert sorted(looked_up) == ["another", "google_cloud_default"]
        clock.advance(LOOKED_UP_FOR)
        await begin("google_cloud_default")
        assert len(looked_up) == 3

    run(main())


def test_a_look_up_that_hangs_holds_up_no_wait_that_begins_later(
    emulator: DaiEmulator, connect: Connect, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(is_anonymous=True, dai_api_endpoint=emulator.endpoint)
    name = emulator.start_ingest()
    look_up, gate, looked_up = DaiHook._look_up, Gate(), []

    def hang_once(hook: DaiHook) -> dict[str, Any]:
        looked_up.append(hook)
        if len(looked_up) == 1:
            gate.wait()
        return look_up(hook)

    monkeypatch.setattr(DaiHook, "_look_up", hang_once)

    async def main() -> None:
        first = asyncio.create_task(DaiAsyncHook().get_operation(name))
        await until(lambda: gate.entered)
        clock.advance(LOOKED_UP_FOR)
        await DaiAsyncHook().get_operation(name)
        assert not first.done()
        gate.open()
        await first
        await DaiAsyncHook().get_operation(name)

    run(main())
    assert len(emulator.requests) == 3
    assert not gate.blocked


def test_a_look_up_that_fails_is_that_of_the_waits_that_await_it(
    emulator: DaiEmulator, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = emulator.start_ingest()

    async def main() -> None:
        asked = [asyncio.create_task(DaiAsyncHook(retry_timeout=0.0).get_operation(name)) for _ in range(5)]
        errors = await asyncio.gather(*asked, return_exceptions=True)
        assert all("could not be looked up" in str(error) for error in errors)
        connect(is_anonymous=True, dai_api_endpoint=emulator.endpoint)
        assert (await DaiAsyncHook().get_operation(name)).name == name

    run(main())


def test_two_event_loops_do_not_share(emulator: DaiEmulator, connect: Connect, tokens: TokenServer) -> None:
    connect(keyfile_dict=tokens.key, dai_api_endpoint=emulator.endpoint)
    name = emulator.start_ingest()
    both_are_open = threading.Barrier(2, timeout=5)

    async def main() -> None:
        async with DaiAsyncHook() as hook:
            await hook.get_operation(name)
            await asyncio.to_thread(both_are_open.wait)
            await hook.get_operation(name)

    def run_in_thread() -> None:
        asyncio.run(main())

    async def main_here() -> None:
        thread = threading.Thread(target=run_in_thread)
        thread.start()
        await main()
        await asyncio.to_thread(thread.join)

    run(main_here())
    assert len(emulator.requests) == 4
    assert emulator.connections == tokens.asked == 2


def test_a_closed_loop_leaves_no_session_to_the_next(emulator: DaiEmulator, connect: Connect) -> None:
    connect(is_anonymous=True, dai_api_endpoint=emulator.endpoint)
    for _ in range(3):
        held_together(emulator, DaiAsyncHook, DaiAsyncHook)
    assert emulator.connections == 3


def test_a_wait_cancelled_while_a_token_is_fetched_affects_no_other(
    emulator: DaiEmulator, connect: Connect, tokens: TokenServer
) -> None:
    connect(keyfile_dict=tokens.key, dai_api_endpoint=emulator.endpoint)
    name = emulator.start_ingest()
    tokens.gate = Gate()

    async def main() -> None:
        looks = [asyncio.create_task(DaiAsyncHook().get_operation(name)) for _ in range(5)]
        await until(lambda: tokens.asked)
        looks[0].cancel()
        await asyncio.sleep(0.01)
        looks[3].cancel()
        assert tokens.gate
        await tokens.gate.open_after_beats()
        results = await asyncio.gather(*looks, return_exceptions=True)
        cancelled = [isinstance(result, asyncio.CancelledError) for result in results]
        assert cancelled == [True, False, False, True, False]

    run(main())
    assert tokens.asked == 1
    assert len(emulator.requests) == 3


@pytest.mark.parametrize("cancels", [1, 2, 3])
def test_waits_cancelled_while_a_token_is_fetched_leave_nothing_behind(
    emulator: DaiEmulator, connect: Connect, tokens: TokenServer, cancels: int
) -> None:
    """The triggerer cancels what has not ended yet again, about once a second."""
    connect(keyfile_dict=tokens.key, dai_api_endpoint=emulator.endpoint)
    tokens.gate = Gate()

    async def main() -> None:
        before = asyncio.all_tasks()
        look = asyncio.create_task(DaiAsyncHook().get_operation("operations/a"))
        await until(lambda: tokens.asked)
        for _ in range(cancels):
            look.cancel()
            await asyncio.sleep(0.01)
        assert tokens.gate
        tokens.gate.open()
        with pytest.raises(asyncio.CancelledError):
            await look
        await until(lambda: asyncio.all_tasks() <= before)

    run(main())
    assert emulator.requests == []


# The lease itself


class Makes:
    """Makes transports to an emulator, in a thread that a gate can hold up."""

    def __init__(self, emulator: DaiEmulator) -> None:
        self.endpoint = Endpoint(emulator.endpoint)
        self.threads: list[int] = []
        self.gate = Gate()
        self.gate.open()
        self.error: Exception | None = None

    def __call__(self) -> AiohttpTransport:
        self.threads.append(threading.get_ident())
        self.gate.wait()
        if self.error:
            raise self.error
        return AiohttpTransport(self.endpoint, Token(AnonymousCredentials(), 5.0), 5.0)


@pytest.fixture
def make(emulator: DaiEmulator) -> Makes:
    return Makes(emulator)


async def hold(key: str, make: Makes, name: str, release: asyncio.Event | None = None) -> AiohttpTransport:
    async with lease(key, make) as transport:
        await transport.call(rest.get_operation(name))
        if release:
            await release.wait()
    return transport


def test_the_transport_is_made_once_off_the_loop(emulator: DaiEmulator, make: Makes) -> None:
    name = emulator.start_ingest()

    async def main() -> None:
        release = asyncio.Event()
        make.gate = Gate()
        holders = [asyncio.create_task(hold("a", make, name, release)) for _ in range(20)]
        await make.gate.open_after_beats()
        await until(lambda: len(emulator.requests) == 20)
        release.set()
        assert len(set(await asyncio.gather(*holders))) == 1
        assert len(make.threads) == 1
        assert make.threads[0] != threading.get_ident()

    run(main())


def test_another_key_is_another_transport(emulator: DaiEmulator, make: Makes) -> None:
    name = emulator.start_ingest()

    async def main() -> None:
        async with lease("a", make) as a, lease("b", make) as b, lease("a", make) as again:
            assert a is again
            assert a is not b
            await a.call(rest.get_operation(name))

    run(main())


@pytest.mark.parametrize("which", [0, 1, 2], ids=["the opener", "one behind it", "the last"])
def test_a_wait_cancelled_while_the_session_is_opened_affects_no_other(
    emulator: DaiEmulator, make: Makes, which: int
) -> None:
    name = emulator.start_ingest()
    make.gate = Gate()

    async def main() -> None:
        holders = [asyncio.create_task(hold("a", make, name)) for _ in range(3)]
        await until(lambda: make.threads)
        holders[which].cancel()
        await asyncio.sleep(0.01)
        make.gate.open()
        results = await asyncio.gather(*holders, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [i == which for i in range(3)]

    run(main())
    assert len(emulator.requests) == 2


def test_waits_cancelled_while_the_session_is_opened_leave_nothing_behind(emulator: DaiEmulator, make: Makes) -> None:
    make.gate = Gate()

    async def main() -> None:
        holders = [asyncio.create_task(hold("a", make, "operations/a")) for _ in range(3)]
        await until(lambda: make.threads)
        for holder in holders:
            holder.cancel()
        await asyncio.gather(*holders, return_exceptions=True)
        make.gate.open()
        await hold("a", make, emulator.start_ingest())

    run(main())
    assert len(emulator.requests) == 1


def test_a_failed_opening_fails_each_wait_and_leaves_nothing_behind(emulator: DaiEmulator, make: Makes) -> None:
    name = emulator.start_ingest()
    make.error = DefaultCredentialsError("no key")

    async def main() -> None:
        results = await asyncio.gather(*(hold("a", make, name) for _ in range(5)), return_exceptions=True)
        assert [str(result) for result in results] == ["no key"] * 5
        make.error = None
        await hold("a", make, name)

    run(main())
    assert len(emulator.requests) == 1


def test_a_lease_during_the_last_close_opens_another_session(emulator: DaiEmulator, make: Makes) -> None:
    name = emulator.start_ingest()

    async def main() -> None:
        closing = asyncio.Event()
        async with lease("a", make) as first:
            await first.call(rest.get_operation(name))
            close = first.close

            async def slow_close() -> None:
                closing.set()
                await asyncio.sleep(0.01)
                await close()

            first.close = slow_close  # type: ignore[method-assign]
            last = asyncio.create_task(_use_when(closing, make, name))
        assert await last is not first

    run(main())
    assert emulator.connections == 2


def test_a_close_that_is_cancelled_leaves_no_session_open(make: Makes) -> None:
    async def main() -> None:
        transport = await make().open()
        poll = asyncio.create_task(transport.polls.ask({"operations/a": None}, 30.0, 30.0))
        await asyncio.sleep(0)
        closing = asyncio.create_task(transport.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(closing, poll, return_exceptions=True)
        assert closing.cancelled()

    run(main())  # which fails on an open session


async def _use_when(closing: asyncio.Event, make: Makes, name: str) -> AiohttpTransport:
    await closing.wait()
    return await hold("a", make, name)


def test_bad_credentials_fail_each_wait_cleanly(emulator: DaiEmulator, connect: Connect) -> None:
    connect(key_path="/nowhere/key.json", num_retries=0, dai_api_endpoint=emulator.endpoint)

    async def main() -> list[Any]:
        hooks = [DaiAsyncHook() for _ in range(5)]
        return await asyncio.gather(*(hook.get_operation("operations/a") for hook in hooks), return_exceptions=True)

    assert {type(error) for error in run(main())} == {google_errors.Unauthenticated}
    connect(is_anonymous=True, dai_api_endpoint=emulator.endpoint)
    held_together(emulator, DaiAsyncHook)
    assert len(emulator.requests) == 1
