"""The aiohttp session: its connections, its token, and the event loop that it never blocks."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.auth import credentials as google_credentials
from google.auth.credentials import AnonymousCredentials

from airflow_dai_provider.api import rest
from airflow_dai_provider.api.endpoint import Endpoint
from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.emulator import DaiEmulator, SelfSigned
from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
from airflow_dai_provider.transport.aiohttp_session import MAX_CONNECTIONS, AiohttpTransport
from airflow_dai_provider.transport.shared_token import Token
from tests.support.authorities import write_authority
from tests.support.connections import Connect
from tests.support.emulators import bearers
from tests.support.event_loop import Gate, run, until
from tests.support.payloads import NAME
from tests.support.sessions import RevokingServer, look
from tests.support.tiny_server import Exchange, TinyServer, refusing_port
from tests.support.token_server import TokenServer

pytestmark = pytest.mark.usefixtures("few_authorities", "fake_time")


@pytest.mark.parametrize("extra", [{}, {"quota_project_id": "billed-project"}], ids=["none", "quota project"])
def test_both_hooks_send_the_quota_project(connect_key: Connect, emulator: DaiEmulator, extra: dict[str, str]) -> None:
    connect_key(**extra)
    name = emulator.start_ingest()
    look(name)
    look(name, quota_project_id="project-of-the-argument")
    with DaiHook() as hook:
        hook.get_operation(name)
    projects = [request.headers.get("x-goog-user-project") for request in emulator.requests]
    assert projects == [extra.get("quota_project_id"), "project-of-the-argument", extra.get("quota_project_id")]


class Iam:
    """A proxy whose tunnels all end at an account service of its own."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.asked: list[tuple[str, str, Any]] = []

    def respond(self, exchange: Exchange) -> None:
        if exchange.command == "CONNECT":
            exchange.tunnel_to_itself(self.context)
            return
        request = exchange.server.requests[-1]
        self.asked.append((request.path, request.headers["authorization"], json.loads(request.body)))
        exchange.answer(
            200, {"accessToken": f"t0ken-of-the-target-{len(self.asked)}", "expireTime": "2100-01-01T00:00:00Z"}
        )


@pytest.mark.parametrize(
    "chain",
    ["target@p.iam.gserviceaccount.com", ["first@p.iam.gserviceaccount.com", "target@p.iam.gserviceaccount.com"]],
    ids=["one", "chain"],
)
@pytest.mark.parametrize("by", ["argument", "connection"])
def test_both_hooks_impersonate_alike(
    connect_key: Connect,
    emulator: DaiEmulator,
    tokens: TokenServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chain: Any,
    by: str,
) -> None:
    certificate = SelfSigned(["iamcredentials.googleapis.com"])
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(write_authority(tmp_path, certificate)))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    iam = Iam(certificate.context())
    if by == "connection":
        connect_key(impersonation_chain=chain if isinstance(chain, str) else ",".join(chain))
    arguments = {"impersonation_chain": chain} if by == "argument" else {}
    name = emulator.start_ingest()

    with TinyServer(iam.respond) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.endpoint)
        look(name, times=2, **arguments)
        with DaiHook(**arguments) as hook:
            hook.get_operation(name)

    assert bearers(emulator) == ["Bearer t0ken-of-the-target-1"] * 2 + ["Bearer t0ken-of-the-target-2"]
    of_async, of_sync = iam.asked
    assert (
        of_async[0]
        == of_sync[0]
        == "/v1/projects/-/serviceAccounts/target@p.iam.gserviceaccount.com:generateAccessToken"
    )
    assert of_async[1] == f"Bearer {tokens.issued[0]}"
    assert of_async[2] == of_sync[2]
    assert ("first@" in str(of_async[2]["delegates"])) == isinstance(chain, list)


def test_there_are_never_more_connections_than_allowed(emulator: DaiEmulator) -> None:
    name = emulator.start_ingest()

    async def main() -> None:
        transport = await AiohttpTransport(Endpoint(emulator.endpoint), Token(AnonymousCredentials(), 5.0), 10.0).open()
        try:
            for _ in range(2):
                await asyncio.gather(*(transport.call(rest.get_operation(name)) for _ in range(4 * MAX_CONNECTIONS)))
        finally:
            await transport.close()

    run(main())
    assert len(emulator.requests) == 8 * MAX_CONNECTIONS
    assert MAX_CONNECTIONS / 2 < emulator.connections <= MAX_CONNECTIONS


def test_a_closed_session_refuses_calls(emulator: DaiEmulator) -> None:
    async def main() -> None:
        transport = AiohttpTransport(Endpoint(emulator.endpoint), Token(AnonymousCredentials(), 5.0), 10.0)
        with pytest.raises(RuntimeError, match="not open"):
            await transport.call(rest.get_operation(NAME))
        await transport.close()

    run(main())
    assert emulator.requests == []


def test_a_request_that_was_not_sent_is_marked_so() -> None:
    """A create may be repeated then; the asynchronous hook has none yet, but the rule is the same for both."""

    async def main(port: int) -> ServiceError:
        transport = await AiohttpTransport(
            Endpoint(f"http://127.0.0.1:{port}"), Token(AnonymousCredentials(), 5.0), 5.0
        ).open()
        try:
            with pytest.raises(ServiceError) as caught:
                await transport.call(rest.create_creative({}))
        finally:
            await transport.close()
        return caught.value

    with refusing_port() as port:
        error = run(main(port))
    assert (error.rpc_code, error.sent) == (Code.UNAVAILABLE, False)


def test_a_token_that_does_not_expire_is_kept(emulator: DaiEmulator) -> None:
    class Unending(google_credentials.Credentials):  # type: ignore[misc]
        refreshed = 0

        def refresh(self, _: Any) -> None:
            self.refreshed += 1
            self.token, self.expiry = "unending", None

    credentials = Unending()
    name = emulator.start_ingest()

    async def main() -> None:
        transport = await AiohttpTransport(Endpoint(emulator.endpoint), Token(credentials, 10.0), 10.0).open()
        for _ in range(3):
            await transport.call(rest.get_operation(name))
        await transport.close()

    run(main())
    assert credentials.refreshed == 1
    assert bearers(emulator) == ["Bearer unending"] * 3


def test_a_failed_fetch_after_a_cancelled_call_logs_nothing(
    connect_key: Connect, tokens: TokenServer, emulator: DaiEmulator
) -> None:
    tokens.gate = Gate()
    tokens.refusal = (400, {"error": "invalid_grant"})

    async def main() -> None:
        async with DaiAsyncHook() as hook:
            looking = asyncio.create_task(hook.get_operation(NAME))
            await until(lambda: tokens.asked)
            looking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await looking
            assert tokens.gate
            tokens.gate.open()

    run(main())
    assert emulator.requests == []


def test_looking_up_a_connection_does_not_block_the_loop(
    connect_key: Connect, emulator: DaiEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    get_connection = DaiHook.get_connection

    def slow(conn_id: str) -> Any:
        gate.wait()
        return get_connection(conn_id)

    monkeypatch.setattr(DaiHook, "get_connection", staticmethod(slow))
    name = emulator.start_ingest()

    async def main() -> None:
        await asyncio.gather(DaiAsyncHook().get_operation(name), gate.open_after_beats())

    run(main())
    assert len(emulator.requests) == 1


def test_fetching_a_token_does_not_block_the_loop(
    connect_key: Connect, emulator: DaiEmulator, tokens: TokenServer
) -> None:
    tokens.gate = Gate()
    name = emulator.start_ingest()

    async def main() -> None:
        assert tokens.gate
        await asyncio.gather(DaiAsyncHook().get_operation(name), tokens.gate.open_after_beats())

    run(main())
    assert len(emulator.requests) == 1


def test_renewing_a_token_does_not_block_the_loop(revoking_server: RevokingServer, tokens: TokenServer) -> None:
    async def main() -> None:
        async with DaiAsyncHook() as hook:
            await hook.get_operation(NAME)
            revoking_server.revoked = {f"Bearer {tokens.issued[0]}"}
            tokens.gate = Gate()
            await asyncio.gather(hook.get_operation(NAME), tokens.gate.open_after_beats())

    run(main())


def test_reading_authorities_does_not_block_the_loop(
    connect_key: Connect, emulator: DaiEmulator, monkeypatch: Any
) -> None:
    gate = Gate()
    create = ssl.create_default_context

    def slow(**arguments: Any) -> ssl.SSLContext:
        gate.wait()
        return create(**arguments)

    monkeypatch.setattr(ssl, "create_default_context", slow)

    async def main() -> None:
        looking = asyncio.create_task(DaiAsyncHook().get_operation(emulator.start_ingest()))
        await gate.open_after_beats()
        await looking

    run(main())


def test_the_trigger_imports_the_hook_in_a_thread() -> None:
    """In a process of its own, where nothing has imported it yet."""
    script = """
import asyncio, sys, threading
from airflow_dai_provider.triggers.dai import DaiOperationTrigger

on_loop = {}

class Watch:
    def find_spec(self, name, path=None, target=None):
        on_loop.setdefault(name, threading.current_thread() is threading.main_thread())

async def main():
    return [event async for event in DaiOperationTrigger("no name").run()]

sys.meta_path.insert(0, Watch())
(event,) = asyncio.run(main())
assert event.payload["code"] == "INVALID_ARGUMENT", event
assert on_loop["airflow_dai_provider.hooks.dai"] is False, "imported on the event loop"
heavy = ("airflow_dai_provider.hooks", "airflow.providers.google", "google.auth", "aiohttp", "requests")
assert not [name for name, blocking in on_loop.items() if blocking and name.startswith(heavy)]
"""
    environment = {**os.environ, "DAI_EMULATOR_HOST": "127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]
