"""The aiohttp session: connections, proxies, TLS, and where a token may go."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.api_core import exceptions
from google.auth import credentials as google_credentials
from google.auth.credentials import AnonymousCredentials

from airflow_dai_provider.api import rest
from airflow_dai_provider.api.endpoint import Endpoint
from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.emulator import DaiEmulator, SelfSigned
from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
from airflow_dai_provider.transport.aiohttp_session import MAX_CONNECTIONS, AiohttpTransport
from tests.support.authorities import write_authority
from tests.support.connections import Connect
from tests.support.emulators import bearers
from tests.support.event_loop import Gate, run, until
from tests.support.log import Log
from tests.support.payloads import NAME
from tests.support.sessions import RevokingServer, error_of, look
from tests.support.tiny_server import Exchange, TinyServer, refusing_port
from tests.support.token_server import PROXY_PASSWORD, TokenServer

pytestmark = pytest.mark.usefixtures("few_authorities", "fake_time")


def look_synchronously() -> None:
    with DaiHook() as hook:
        hook.get_operation(NAME)


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


@pytest.mark.parametrize("host", ["dai.example", "192.0.2.1:8080", "[2001:db8::1]", "127.0.0.1.dai.example"])
def test_credentials_do_not_leave_over_plain_http(
    connect_key: Connect, tokens: TokenServer, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    connect_key(dai_api_endpoint=f"http://{host}")
    with TinyServer(lambda exchange: exchange.answer(200, {"name": NAME})) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.endpoint)
        with pytest.raises(ValueError, match="Refusing to send credentials to http://"):
            look()
    assert proxy.requests == []
    assert tokens.asked == 0


def test_the_netrc_is_not_used(
    connect_key: Connect,
    connect: Connect,
    emulator: DaiEmulator,
    tokens: TokenServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login me password of-netrc\ndefault login me password of-netrc\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    name = emulator.start_ingest()
    look(name)
    connect(is_anonymous=True)
    look(name, api_endpoint=emulator.endpoint)
    assert bearers(emulator) == [f"Bearer {tokens.issued[0]}", None]


def operation_server() -> TinyServer:
    return TinyServer(lambda exchange: exchange.answer(200, {"name": NAME}))


@pytest.mark.parametrize("form", ["http://{host}", "{host}", "http://user:" + PROXY_PASSWORD + "@{host}"])
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_proxy_carries_what_leaves_this_machine(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, kind: str, variable: str, form: str
) -> None:
    connect(is_anonymous=True, num_retries=0, dai_api_endpoint="http://dai.example:8080")
    with operation_server() as proxy:
        monkeypatch.setenv(variable, form.format(host=proxy.host))
        {"sync": look_synchronously, "async": look}[kind]()
    assert [request.path for request in proxy.requests] == [f"http://dai.example:8080/v1/{NAME}"]
    assert "authorization" not in proxy.requests[0].headers
    assert ("proxy-authorization" in proxy.requests[0].headers) == ("user" in form)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_proxy_sees_what_stays_on_this_machine(
    connect: Connect, emulator: DaiEmulator, monkeypatch: pytest.MonkeyPatch, variable: str, host: str
) -> None:
    connect(is_anonymous=True, num_retries=0, dai_api_endpoint=emulator.endpoint.replace("127.0.0.1", host))
    name = emulator.start_ingest()
    with operation_server() as proxy:
        monkeypatch.setenv(variable, proxy.endpoint)
        look(name)
    assert proxy.requests == []
    assert len(emulator.requests) == 1


def test_no_proxy_is_used_where_the_environment_says_so(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(is_anonymous=True, num_retries=0, dai_api_endpoint="http://dai.invalid")
    monkeypatch.setenv("NO_PROXY", ".invalid")
    with operation_server() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.endpoint)
        with pytest.raises(exceptions.ServiceUnavailable, match="got no response from http://dai.invalid"):
            look()
    assert proxy.requests == []


def test_https_goes_through_the_tunnel_of_a_proxy(
    connect_key: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: TokenServer
) -> None:
    certificate = SelfSigned(["dai.example"])
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(write_authority(tmp_path, certificate)))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def respond(exchange: Exchange) -> None:
        if exchange.command == "CONNECT":
            exchange.tunnel_to_itself(certificate.context())
        else:
            exchange.answer(200, {"name": NAME})

    connect_key(dai_api_endpoint="https://dai.example", num_retries=0)
    with TinyServer(respond) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.endpoint)
        look()
    connect, get = proxy.requests
    assert (connect.http_method, connect.path) == ("CONNECT", "dai.example:443")
    assert "authorization" not in connect.headers
    assert (get.path, get.headers["authorization"]) == (f"/v1/{NAME}", f"Bearer {tokens.issued[0]}")


@pytest.mark.parametrize("status", [403, 407, 502])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_refused_tunnel_is_an_error(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, kind: str, status: int
) -> None:
    connect(is_anonymous=True, num_retries=0, dai_api_endpoint="https://dai.example")
    with TinyServer(lambda exchange: exchange.answer(status)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.endpoint)
        look_as = {"sync": look_synchronously, "async": look}[kind]
        with pytest.raises(
            exceptions.ServiceUnavailable, match=f"got no response from https://dai.example: .*{status}"
        ):
            look_as()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_password_of_a_proxy_is_not_shown(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, log: Log, scheme: str
) -> None:
    connect(is_anonymous=True, num_retries=1, dai_api_endpoint=f"{scheme}://dai.example")

    async def main() -> None:
        error, text = await error_of(DaiAsyncHook().get_operation(NAME))
        assert isinstance(error, exceptions.ServiceUnavailable)
        assert PROXY_PASSWORD not in text

    with refusing_port() as port:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://user:{PROXY_PASSWORD}@127.0.0.1:{port}")
        run(main())
    assert PROXY_PASSWORD not in log.text


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[tuple[TinyServer, Path]]:
    """Give a server that speaks TLS, and the file of the authority that vouches for it."""
    certificate = SelfSigned(["127.0.0.1"])
    with TinyServer(lambda exchange: exchange.answer(200, {"name": NAME}), certificate.context()) as server:
        yield server, write_authority(tmp_path, certificate)


def test_a_custom_authority_is_trusted(
    connect_key: Connect, tokens: TokenServer, tls: tuple[TinyServer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, authority = tls
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
    connect_key(dai_api_endpoint=server.host, num_retries=0)
    look()
    assert [request.headers["authorization"] for request in server.requests] == [f"Bearer {tokens.issued[0]}"]


@pytest.mark.parametrize("bundle", [None, "folder"])
def test_a_certificate_that_is_not_trusted_ends_it_at_once(
    connect_key: Connect,
    tls: tuple[TinyServer, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    slept: list[float],
    bundle: str | None,
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    if bundle:
        empty = tmp_path / "authorities"
        empty.mkdir()
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(empty))
    server, _ = tls
    connect_key(dai_api_endpoint=server.host)
    with pytest.raises(exceptions.FailedPrecondition, match=r"certificate is not trusted \(REQUESTS_CA_BUNDLE names"):
        look()
    assert server.requests == []
    assert slept == []


def test_a_server_without_tls_is_an_error(connect_key: Connect, emulator: DaiEmulator) -> None:
    connect_key(dai_api_endpoint=emulator.host, num_retries=0)
    with pytest.raises(exceptions.ServiceUnavailable, match=f"got no response from https://{emulator.host}"):
        look()
    assert emulator.requests == []


def test_a_certificate_of_another_name_is_not_trusted(
    connect_key: Connect, tls: tuple[TinyServer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, authority = tls
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
    connect_key(dai_api_endpoint=f"localhost:{server.server_port}")
    with pytest.raises(exceptions.FailedPrecondition, match="certificate is not trusted"):
        look()
    assert server.requests == []


def test_a_missing_file_of_authorities_is_an_error(
    connect_key: Connect, tls: tuple[TinyServer, Path], monkeypatch: pytest.MonkeyPatch, slept: list[float]
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")
    connect_key(dai_api_endpoint=tls[0].host)
    with pytest.raises(exceptions.FailedPrecondition, match="/nowhere/ca.pem"):
        look()
    assert slept == []


def test_there_are_never_more_connections_than_allowed(emulator: DaiEmulator) -> None:
    name = emulator.start_ingest()

    async def main() -> None:
        transport = await AiohttpTransport(Endpoint(emulator.endpoint), AnonymousCredentials(), 10.0).open()
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
        transport = AiohttpTransport(Endpoint(emulator.endpoint), AnonymousCredentials(), 10.0)
        with pytest.raises(RuntimeError, match="not open"):
            await transport.call(rest.get_operation(NAME))
        await transport.close()

    run(main())
    assert emulator.requests == []


def test_a_request_that_was_not_sent_is_marked_so() -> None:
    """A create may be repeated then; the asynchronous hook has none yet, but the rule is the same for both."""

    async def main(port: int) -> ServiceError:
        transport = await AiohttpTransport(Endpoint(f"http://127.0.0.1:{port}"), AnonymousCredentials(), 5.0).open()
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
        transport = await AiohttpTransport(Endpoint(emulator.endpoint), credentials, 10.0).open()
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
