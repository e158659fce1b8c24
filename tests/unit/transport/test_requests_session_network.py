"""The requests session: proxies, TLS, and where a token may go."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from google.api_core import exceptions

from airflow_dai_provider.emulator import DaiEmulator, Fault, SelfSigned
from airflow_dai_provider.hooks.dai import DaiHook
from tests.support.authorities import write_authority
from tests.support.connections import Connect
from tests.support.emulators import bearers
from tests.support.hooks import MakeHook
from tests.support.log import Log
from tests.support.payloads import NAME, SIGNED_URL, creative
from tests.support.tiny_server import Serve
from tests.support.token_server import PROXY_PASSWORD, TokenServer

if TYPE_CHECKING:
    from tests.support.tiny_server import TinyServer


@pytest.mark.parametrize("host", ["dai.example", "192.0.2.1:8080", "[2001:db8::1]", "127.0.0.1.dai.example"])
def test_credentials_do_not_leave_over_plain_http(
    tokens: TokenServer,
    connect: Connect,
    make_hook: MakeHook,
    tiny_server: Serve,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
) -> None:
    proxy = tiny_server(lambda exchange: exchange.answer(200, {"name": NAME}))
    monkeypatch.setenv("HTTP_PROXY", proxy.endpoint)
    connect(keyfile_dict=tokens.key, dai_api_endpoint=f"http://{host}")

    hook = make_hook()
    with tokens.fails(ValueError, re.escape(f"Refusing to send credentials to http://{host} over plain HTTP")):
        hook.get_operation(NAME)
    with tokens.fails(ValueError, "Refusing"):
        hook.get_conn()

    assert tokens.assertions == []
    assert proxy.requests == []


REDIRECTS = [301, 302, 303, 307, 308]


@pytest.mark.parametrize("status", REDIRECTS)
def test_a_redirect_is_not_followed(
    keyed_hook: DaiHook, emulator: DaiEmulator, tokens: TokenServer, tiny_server: Serve, status: int
) -> None:
    elsewhere = tiny_server(lambda exchange: exchange.answer(200, {"name": NAME}))
    location = {"Location": f"{elsewhere.endpoint}/v1/{NAME}"}
    emulator.inject(Fault(status=status, body=b"", headers=location, times=None))

    with tokens.fails(exceptions.FailedPrecondition, "a redirect, which is not followed with credentials"):
        keyed_hook.get_operation(NAME)
    with tokens.fails(exceptions.FailedPrecondition, "a redirect, which is not followed with credentials"):
        keyed_hook.cancel_operation(NAME)

    assert elsewhere.requests == []
    assert len(emulator.requests) == 2


@pytest.mark.parametrize(
    "location",
    [b"", b"http://[bad", b"//", b"http://", b"caf\xe9", b"\xff\xfe", b"javascript:x", b"http://a:99999/"],
    ids=str,
)
def test_a_redirect_with_an_invalid_location_is_reported_as_a_redirect(
    connect: Connect, make_hook: MakeHook, tiny_server: Serve, location: bytes
) -> None:
    connect(is_anonymous=True)
    answer = b"HTTP/1.1 302 X\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n"
    server = tiny_server(lambda exchange: exchange.raw(answer))

    with pytest.raises(exceptions.FailedPrecondition, match="returned 302 .*a redirect"):
        make_hook(api_endpoint=server.endpoint).get_operation(NAME)
    assert len(server.requests) == 1


@pytest.mark.parametrize("with_key", [False, True], ids=["anonymous", "key"])
def test_the_netrc_is_not_used(
    tokens: TokenServer,
    emulator: DaiEmulator,
    connect: Connect,
    make_hook: MakeHook,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    with_key: bool,
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login me password of-netrc\ndefault login me password of-netrc\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    connect(**({"keyfile_dict": tokens.key} if with_key else {"is_anonymous": True}))
    hook = make_hook(api_endpoint=emulator.endpoint)
    name = emulator.start_ingest()

    hook.get_operation(name)
    hook.cancel_operation(name)

    assert bearers(emulator) == [f"Bearer {tokens.issued[0]}" if with_key else None] * 2


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_carries_what_leaves_this_machine(
    connect: Connect, make_hook: MakeHook, tiny_server: Serve, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    proxy = tiny_server(lambda exchange: exchange.answer(200, {"name": NAME}))
    monkeypatch.setenv(variable, proxy.endpoint)
    connect(is_anonymous=True, num_retries=0)

    assert make_hook(api_endpoint="http://dai.example:8080").get_operation(NAME).name == NAME

    assert [request.path for request in proxy.requests] == [f"http://dai.example:8080/v1/{NAME}"]
    assert "authorization" not in proxy.requests[0].headers


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_proxy_sees_what_stays_on_this_machine(
    emulator: DaiEmulator,
    connect: Connect,
    make_hook: MakeHook,
    tiny_server: Serve,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    host: str,
) -> None:
    proxy = tiny_server(lambda exchange: exchange.answer(200, {"name": NAME}))
    monkeypatch.setenv(variable, proxy.endpoint)
    connect(is_anonymous=True, num_retries=0)
    hook = make_hook(api_endpoint=f"http://{host}:{emulator.host.split(':')[1]}")
    name = emulator.start_ingest()

    for _ in range(2):
        assert hook.get_operation(name).name == name

    assert proxy.requests == []
    assert len(emulator.requests) == 2


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_no_proxy_sees_the_token_of_what_stays_on_this_machine(
    keyed_hook: DaiHook, emulator: DaiEmulator, tiny_server: Serve, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    name = emulator.start_ingest()
    keyed_hook.get_operation(name)  # the token is there; what asks for one may well go through a proxy
    proxy = tiny_server(lambda exchange: exchange.answer(200, {"name": NAME}))
    monkeypatch.setenv(variable, proxy.endpoint)

    assert keyed_hook.get_operation(name).name == name
    assert proxy.requests == []


def test_https_goes_through_the_proxys_tunnel(
    tokens: TokenServer, connect: Connect, make_hook: MakeHook, tiny_server: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = tiny_server(lambda exchange: exchange.answer(407))
    monkeypatch.setenv("HTTPS_PROXY", proxy.endpoint)
    connect(keyfile_dict=tokens.key, num_retries=0, dai_api_endpoint="https://dai.example")

    with tokens.fails(exceptions.ServiceUnavailable, "got no response from https://dai.example: .*407"):
        make_hook().get_operation(NAME)

    tunnels = [request for request in proxy.requests if request.path == "dai.example:443"]
    assert [request.http_method for request in tunnels] == ["CONNECT"]
    assert "authorization" not in tunnels[0].headers


def test_the_password_of_a_proxy_is_not_shown(
    tokens: TokenServer,
    connect: Connect,
    make_hook: MakeHook,
    closed_port: int,
    monkeypatch: pytest.MonkeyPatch,
    slept: list[float],
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://user:{PROXY_PASSWORD}@127.0.0.1:{closed_port}")
    connect(is_anonymous=True, num_retries=1)

    with tokens.fails(exceptions.ServiceUnavailable, "got no response from http://dai.example"):
        make_hook(api_endpoint="http://dai.example").create_creative(creative(SIGNED_URL))
    assert slept == [0.5], "a proxy that is down has passed nothing on, so it is tried again"


@pytest.fixture
def tls_server(tiny_server: Serve, tmp_path: Path) -> tuple[TinyServer, Path]:
    """Give a server that speaks TLS, and the file with its own certificate."""
    certificate = SelfSigned()
    server = tiny_server(lambda exchange: exchange.answer(200, {"name": NAME}), certificate.context())
    return server, write_authority(tmp_path, certificate)


def test_a_custom_authority_is_trusted(
    tokens: TokenServer,
    connect: Connect,
    make_hook: MakeHook,
    tls_server: tuple[TinyServer, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, authority = tls_server
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
    connect(keyfile_dict=tokens.key, num_retries=0, dai_api_endpoint=server.host)

    hook = make_hook()
    assert hook.endpoint.url == f"https://{server.host}"
    assert hook.get_operation(NAME).name == NAME
    assert server.requests[0].headers["authorization"] == f"Bearer {tokens.issued[0]}"


def test_an_untrusted_certificate_is_an_error(
    tokens: TokenServer, connect: Connect, make_hook: MakeHook, tls_server: tuple[TinyServer, Path], slept: list[float]
) -> None:
    server, _ = tls_server
    connect(keyfile_dict=tokens.key, dai_api_endpoint=server.host)

    with tokens.fails(exceptions.FailedPrecondition, "certificate is not trusted.*REQUESTS_CA_BUNDLE"):
        make_hook().get_operation(NAME)
    assert server.requests == []
    assert slept == []


def test_a_missing_file_of_authorities_is_an_error(
    tokens: TokenServer,
    connect: Connect,
    make_hook: MakeHook,
    tls_server: tuple[TinyServer, Path],
    monkeypatch: pytest.MonkeyPatch,
    slept: list[float],
) -> None:
    server, _ = tls_server
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")
    connect(keyfile_dict=tokens.key, dai_api_endpoint=server.host)

    with tokens.fails(exceptions.FailedPrecondition, "/nowhere/ca.pem"):
        make_hook().get_operation(NAME)
    assert slept == []


def test_a_server_without_tls_is_an_error(
    emulator: DaiEmulator, tokens: TokenServer, connect: Connect, make_hook: MakeHook
) -> None:
    connect(keyfile_dict=tokens.key, num_retries=0, dai_api_endpoint=emulator.host)

    with tokens.fails(exceptions.ServiceUnavailable, f"got no response from https://{emulator.host}"):
        make_hook().get_operation(NAME)
    assert emulator.requests == []


def test_a_create_shows_no_signature(keyed_hook: DaiHook, emulator: DaiEmulator, tokens: TokenServer, log: Log) -> None:
    """Nor do its repeats and the look at its operation; what a failing line would show is checked at the end."""
    emulator.inject(Fault(method="creatives.create", status=429))
    operation = keyed_hook.create_creative(creative(SIGNED_URL))
    emulator.inject(Fault(method="operations.get", status=503))
    operation = keyed_hook.get_operation(operation.name)
    assert operation.metadata is not None
    assert "s1gn4ture" in operation.metadata["creativeUrl"]

    logging.getLogger("tests").info("%s %s %s", operation, operation.ingest, operation.to_dict())
    emulator.inject(Fault(method="creatives.create", status=503))
    with tokens.fails(exceptions.ServiceUnavailable, "creatives.create of a creative returned 503"):
        keyed_hook.create_creative(creative(SIGNED_URL))

    assert len([line for line in log.ours if "; attempt" in line]) == 2


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(status=503), id="503"),
        pytest.param(Fault(status=401), id="401"),
        pytest.param(Fault(drop="before"), id="dropped"),
        pytest.param(Fault(truncate=9), id="cut off"),
    ],
)
def test_a_filter_is_not_shown_with_its_urls(
    keyed_hook: DaiHook, emulator: DaiEmulator, tokens: TokenServer, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    """Not by this package, that is: at the level of debugging, urllib3 shows every address."""
    caplog.set_level("INFO")
    emulator.inject(fault)
    emulator.inject(Fault(method="operations.list", status=403))

    with tokens.fails(exceptions.PermissionDenied, "operations.list"):
        list(keyed_hook.list_operations(f'creativeUrl = "{SIGNED_URL}"'))
