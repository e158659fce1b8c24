"""The token that all waits of an event loop share."""

from __future__ import annotations

import asyncio

import pytest
from google.api_core import exceptions

from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.hooks.dai import DaiAsyncHook
from airflow_dai_provider.transport.google_errors import Unauthenticated
from tests.support.authentication import live_on
from tests.support.clock import Clock
from tests.support.connections import Connect
from tests.support.emulators import bearers
from tests.support.event_loop import Gate, run
from tests.support.payloads import NAME
from tests.support.sessions import RevokingServer, error_of, look
from tests.support.tiny_server import refusing_port
from tests.support.token_server import TokenServer

pytestmark = pytest.mark.usefixtures("few_authorities", "fake_time")


def test_a_token_is_used_until_it_is_old(connect_key: Connect, emulator: DaiEmulator, tokens: TokenServer) -> None:
    look(emulator.start_ingest(), times=5)
    assert bearers(emulator) == [f"Bearer {tokens.issued[0]}"] * 5
    assert tokens.asked == 1


@pytest.mark.parametrize(
    ("expires_in", "seconds", "renewed"),
    [
        (3600, 3600 - 226, False),
        (3600, 3600 - 224, True),
        (1000, 899, False),  # a short-lived one in its last tenth
        (1000, 901, True),
        (4, 3, False),
        (4, 3.7, True),
    ],
)
def test_a_token_is_renewed_before_it_expires(
    connect_key: Connect,
    emulator: DaiEmulator,
    tokens: TokenServer,
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
    expires_in: float,
    seconds: float,
    renewed: bool,
) -> None:
    live_on(monkeypatch, clock)
    name = emulator.start_ingest()
    tokens.expires_in = expires_in

    async def main() -> None:
        async with DaiAsyncHook() as hook:
            await hook.get_operation(name)
            clock.advance(seconds)
            await asyncio.gather(*(hook.get_operation(name) for _ in range(10)))

    run(main())
    assert tokens.asked == 1 + renewed
    assert bearers(emulator) == [f"Bearer {tokens.issued[0]}"] + [f"Bearer {tokens.issued[-1]}"] * 10


def test_fifty_polls_that_are_refused_renew_the_token_once(
    revoking_server: RevokingServer, tokens: TokenServer, slept: list[float]
) -> None:
    async def main() -> None:
        async with DaiAsyncHook() as hook:
            await hook.get_operation(NAME)
            revoking_server.revoked = {f"Bearer {tokens.issued[0]}"}
            await asyncio.gather(*(hook.get_operation(NAME) for _ in range(50)))

    run(main())
    assert tokens.asked == 2
    assert revoking_server.seen.count(f"Bearer {tokens.issued[0]}") == 51
    assert revoking_server.seen.count(f"Bearer {tokens.issued[1]}") == 50
    assert slept == []


def test_a_second_401_is_an_error(revoking_server: RevokingServer, tokens: TokenServer, slept: list[float]) -> None:
    revoking_server.revoked = {"everything"}

    async def main() -> None:
        with pytest.raises(exceptions.Unauthenticated, match="401"):
            await DaiAsyncHook().get_operation(NAME)

    run(main())
    assert tokens.asked == 2
    assert revoking_server.seen == [f"Bearer {token}" for token in tokens.issued]
    assert slept == []


def test_anonymous_sends_no_header_and_renews_nothing(
    revoking_server: RevokingServer, tokens: TokenServer, connect: Connect
) -> None:
    connect(is_anonymous=True, dai_api_endpoint=revoking_server.endpoint)
    look()
    revoking_server.revoked = {"everything"}
    with pytest.raises(exceptions.Unauthenticated):
        look()
    assert revoking_server.seen == [None, None]
    assert tokens.asked == 0


def test_a_refusal_of_the_token_server_fails_all_calls_at_once(
    connect_key: Connect, tokens: TokenServer, emulator: DaiEmulator
) -> None:
    """They do not queue to ask one after the other."""
    connect_key(num_retries=0)
    tokens.refusal = (400, {"error": "invalid_grant", "error_description": "Account disabled."})
    tokens.gate = Gate()

    async def main() -> None:
        async with DaiAsyncHook() as hook:
            looks = [asyncio.create_task(hook.get_operation(NAME)) for _ in range(100)]
            assert tokens.gate
            await tokens.gate.open_after_beats()
            errors = await asyncio.gather(*looks, return_exceptions=True)
        assert {type(error) for error in errors} == {Unauthenticated}
        assert {f"{error}" for error in errors} == {
            f"operations.get of {NAME} was not sent: no access token: invalid_grant: Account disabled. "
            f"(token service: {tokens.key['token_uri'].split('/')[2]})"
        }

    run(main())
    assert tokens.asked == 1
    assert emulator.requests == []


def test_a_token_server_that_is_down_is_retried(
    connect_key: Connect, tokens: TokenServer, emulator: DaiEmulator, slept: list[float]
) -> None:
    with refusing_port() as port:
        connect_key(num_retries=2, keyfile_dict={**tokens.key, "token_uri": f"http://127.0.0.1:{port}/token"})
        with pytest.raises(exceptions.ServiceUnavailable, match="was not sent: no access token"):
            look()
    assert slept == [0.5, 1.0]
    assert emulator.requests == []


def test_after_a_failure_a_token_is_fetched_again(
    connect_key: Connect, tokens: TokenServer, emulator: DaiEmulator
) -> None:
    tokens.refusal = (400, {"error": "invalid_grant"})
    name = emulator.start_ingest()

    async def main() -> None:
        async with DaiAsyncHook() as hook:
            error, text = await error_of(hook.get_operation(name))
            assert isinstance(error, exceptions.Unauthenticated)
            tokens.assert_nothing_secret_in(text)
            tokens.refusal = None
            await hook.get_operation(name)

    run(main())
    assert (tokens.asked, len(emulator.requests)) == (2, 1)


def test_a_renewal_that_fails_ends_the_poll(revoking_server: RevokingServer, tokens: TokenServer) -> None:
    async def main() -> None:
        async with DaiAsyncHook() as hook:
            await hook.get_operation(NAME)
            revoking_server.revoked = {"everything"}
            tokens.refusal = (400, {"error": "invalid_grant"})
            error, text = await error_of(hook.get_operation(NAME))
        assert isinstance(error, exceptions.Unauthenticated)
        assert "no access token: invalid_grant" in str(error)
        tokens.assert_nothing_secret_in(text)

    run(main())
    assert len(revoking_server.seen) == 2


@pytest.mark.parametrize(
    "body", [b"<html>Sign in</html>", {}, [], {"access_token": None}, {"access_token": 5}], ids=str
)
def test_a_token_service_that_returns_nonsense(connect_key: Connect, tokens: TokenServer, body: object) -> None:
    """A captive portal, for example; whatever it says, the error is one of the service's classes."""
    tokens.refusal = (200, body)
    connect_key(num_retries=1)
    with pytest.raises(exceptions.GoogleAPICallError, match=f"operations.get of {NAME}"):
        look()


def test_the_time_for_a_token_is_bounded(connect_key: Connect, tokens: TokenServer) -> None:
    connect_key(num_retries=0)
    tokens.gate = Gate()
    with pytest.raises(exceptions.ServiceUnavailable, match="no access token"):
        look(timeout=0.05)
    tokens.gate.open()
