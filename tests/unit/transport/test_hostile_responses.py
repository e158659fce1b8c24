"""Servers, proxies and settings that no honest party would choose: what both hooks make of them."""

from __future__ import annotations

import asyncio
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from google.api_core import exceptions

from airflow_dai_provider.api.creative import InvalidCreativeError
from airflow_dai_provider.api.retry import may_have_acted
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
from airflow_dai_provider.transport import aiohttp_session
from tests.support.authentication import FORMS
from tests.support.event_loop import run, until
from tests.support.log import Log
from tests.support.payloads import creative
from tests.support.tiny_server import Exchange, TinyServer
from tests.support.token_server import service_account_key

NAME = "operations/a"
LOOK = ("get_operation", NAME)

Connect = Callable[..., None]
Serve = Callable[..., TinyServer]

both_hooks = pytest.mark.parametrize("form", FORMS)


# Token services


@both_hooks
@pytest.mark.parametrize("status", [302, 307, 308])
def test_a_token_request_follows_no_redirect(
    form: str, status: int, emulator: DaiEmulator, connect: Connect, tiny_server: Serve
) -> None:
    thief = tiny_server(lambda exchange: exchange.answer(400))
    target = f"http://localhost:{thief.server_port}/"
    service = tiny_server(lambda exchange: exchange.answer(status, Location=target))
    connect(keyfile_dict=service_account_key(service.endpoint), num_retries=0)
    with pytest.raises(exceptions.ServiceUnavailable, match="redirect"):
        FORMS[form](LOOK, api_endpoint=emulator.endpoint)
    assert thief.requests == []


@both_hooks
def test_a_token_request_is_not_sent_over_plain_http(form: str, emulator: DaiEmulator, connect: Connect) -> None:
    connect(keyfile_dict=service_account_key("http://192.0.2.1/token"), num_retries=0)
    with pytest.raises(exceptions.Unauthenticated, match="Refusing to send credentials to .* over plain HTTP"):
        FORMS[form](LOOK, api_endpoint=emulator.endpoint, timeout=0.2)


@both_hooks
def test_a_netrc_is_not_used_for_tokens(
    form: str, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("default login me password of-netrc\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with DaiEmulator(authentication=True) as emulator:
        name = emulator.start_ingest()
        config = tmp_path / "federation.json"
        config.write_text(json.dumps(emulator.external_account_config(impersonate="dai@p.iam.gserviceaccount.com")))
        connect(credential_config_file=str(config), num_retries=0)
        FORMS[form](("get_operation", name), api_endpoint=emulator.endpoint)
    assert not [r for r in emulator.requests if r.headers.get("authorization", "").startswith("Basic")]


@both_hooks
@pytest.mark.parametrize("size", [1, 1_000_000], ids=["slow", "large"])
def test_the_response_of_a_token_service_is_bounded(
    form: str, size: int, emulator: DaiEmulator, connect: Connect, tiny_server: Serve
) -> None:
    pieces = []

    def respond(exchange: Exchange) -> None:
        exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 90000000\r\n\r\n")
        for number in range(90):
            exchange.wfile.write(b" " * size)
            pieces.append(number)
            if size == 1:
                time.sleep(0.05)

    connect(keyfile_dict=service_account_key(tiny_server(respond).endpoint), num_retries=0)
    with pytest.raises(exceptions.ServiceUnavailable):
        FORMS[form](LOOK, api_endpoint=emulator.endpoint, timeout=0.5)
    assert len(pieces) < 90, "It has been read to its end."


@both_hooks
@pytest.mark.parametrize(
    "body",
    [b'{"access_token": "x", "expires_in": 1e15}', b'{"access_token": "x", "expires_in": Infinity}', b"[" * 100_000],
    ids=["a lifetime of ages", "an endless lifetime", "deep"],
)
def test_an_odd_response_of_a_token_service_is_an_outage(
    form: str, body: bytes, emulator: DaiEmulator, connect: Connect, tiny_server: Serve
) -> None:
    connect(keyfile_dict=service_account_key(tiny_server(lambda exchange: exchange.answer(200, body)).endpoint))
    with pytest.raises(exceptions.ServiceUnavailable, match="no access token"):
        FORMS[form](LOOK, api_endpoint=emulator.endpoint, retry_timeout=0)


@both_hooks
def test_a_token_that_fits_in_no_header_is_not_shown(
    form: str, emulator: DaiEmulator, connect: Connect, tiny_server: Serve, log: Log
) -> None:
    answer = {"access_token": "ya29.s3cret\n", "expires_in": 3600, "token_type": "Bearer"}
    service = tiny_server(lambda exchange: exchange.answer(200, answer))
    connect(keyfile_dict=service_account_key(service.endpoint), num_retries=0)
    with pytest.raises(exceptions.FailedPrecondition, match="was not sent") as caught:
        FORMS[form](LOOK, api_endpoint=emulator.endpoint)
    links: list[BaseException | None] = [caught.value, caught.value.__cause__]
    assert not [link for link in links if "s3cret" in str(link)]
    assert "s3cret" not in log.text


@both_hooks
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b'no more of "ya29.s3cret", nor Bearer s3cret', exceptions.ServiceUnavailable),
        ({"error": "invalid_grant", "error_description": "no more of ya29.s3cret"}, exceptions.Unauthenticated),
    ],
    ids=["page", "JSON"],
)
def test_a_token_in_the_message_of_a_token_server_is_not_shown(
    form: str,
    emulator: DaiEmulator,
    connect: Connect,
    tiny_server: Serve,
    answer: object,
    error: type[exceptions.GoogleAPICallError],
) -> None:
    service = tiny_server(lambda exchange: exchange.answer(400, answer))
    connect(keyfile_dict=service_account_key(service.endpoint), num_retries=0)
    with pytest.raises(error) as caught:
        FORMS[form](LOOK, api_endpoint=emulator.endpoint)
    assert "s3cret" not in str(caught.value)


# What was never sent, and what may have arrived


def test_an_exception_of_the_caller_does_not_make_a_request_retryable(
    emulator: DaiEmulator, hook: DaiHook, closed_port: int
) -> None:
    """A connection that was refused before is no reason to repeat the start of an ingest."""
    emulator.inject(Fault("creatives.create", drop="after", times=3))
    try:
        requests.get(f"http://127.0.0.1:{closed_port}/", timeout=1)
    except requests.ConnectionError:
        with pytest.raises(exceptions.ServiceUnavailable) as caught:
            hook.create_creative(creative())
    assert "refused" not in str(caught.value)
    assert may_have_acted(caught.value)
    assert len(emulator.states()) == 1


@pytest.mark.parametrize(
    "content", ["", "no certificate\n", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"]
)
def test_unreadable_authorities_are_an_error(
    content: str, connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(content)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    connect(is_anonymous=True, num_retries=0)
    with DaiEmulator(tls=True) as emulator, DaiHook(api_endpoint=emulator.endpoint) as hook:
        with pytest.raises(exceptions.FailedPrecondition, match="was not sent"):
            hook.get_operation(NAME)
        with pytest.raises(exceptions.FailedPrecondition, match="was not sent") as caught:
            hook.create_creative(creative())
    assert not may_have_acted(caught.value)


def test_an_unusable_proxy_is_an_error_in_the_worker(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:9")
    connect(is_anonymous=True, num_retries=0)
    with (
        DaiHook(api_endpoint="https://dai.example") as hook,
        pytest.raises(exceptions.FailedPrecondition, match="was not sent: Missing dependencies for SOCKS"),
    ):
        hook.get_operation(NAME)


@pytest.mark.parametrize("key", [False, True], ids=["without a token", "with a key"])
@pytest.mark.parametrize(
    "proxy", ["http://robot:s3cret@127.0.0.1:80800", "http://robot:s3#cret@127.0.0.1:9", "http://robot:s3/cret@x"]
)
def test_a_proxy_that_cannot_be_read_shows_no_password(
    emulator: DaiEmulator, connect: Connect, monkeypatch: pytest.MonkeyPatch, proxy: str, key: bool
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    if key:
        with DaiEmulator(authentication=True) as google:
            account = google.service_account_key() | {"token_uri": "https://token.example/token"}
        connect(keyfile_dict=account, num_retries=0)
    else:
        connect(is_anonymous=True, num_retries=0)
    with (
        DaiHook(api_endpoint="https://dai.example", retry_timeout=0) as hook,
        pytest.raises(exceptions.GoogleAPICallError, match="was not sent|got no response") as caught,
    ):
        hook.get_operation(NAME)
    shown = "".join(traceback.format_exception(caught.value))
    assert "s3" not in shown
    assert "cret" not in shown


@pytest.mark.parametrize("proxy", ["socks5://robot:s3cret@127.0.0.1:9", "garbage://x", "http://robot:s3cret@x:port"])
def test_an_unusable_proxy_is_an_error_in_the_triggerer(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    connect(is_anonymous=True, num_retries=0)

    async def main() -> None:
        async with DaiAsyncHook(api_endpoint="https://dai.example") as hook:
            await hook.get_operation(NAME)

    expected = "^Nothing was sent to https://dai.example: expected the proxy of the environment to be an http"
    with pytest.raises(exceptions.FailedPrecondition, match=expected) as caught:
        run(main())
    assert "cret" not in "".join(traceback.format_exception(caught.value))


def test_a_number_that_json_lacks_is_refused(emulator: DaiEmulator, once: DaiHook) -> None:
    with pytest.raises(InvalidCreativeError, match="duration: expected a finite number of at most 64 bits, got nan"):
        once.create_creative(creative(duration=float("nan")))
    assert emulator.requests == []


# Answers


def test_waiting_for_a_connection_does_not_count_as_time_of_the_service(
    emulator: DaiEmulator, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aiohttp_session, "MAX_CONNECTIONS", 5)
    connect(is_anonymous=True, num_retries=0)
    name = emulator.start_ingest(seconds=1e6)
    emulator.inject(Fault("operations.get", delay=0.5, times=None))

    async def main() -> None:
        async with DaiAsyncHook(api_endpoint=emulator.endpoint, timeout=2) as hook:
            looks = [asyncio.create_task(hook.get_operation(name)) for _ in range(25)]
            await until(lambda: emulator.requests)
            await hook.cancel_operation(name)
            await asyncio.gather(*looks)

    run(main())
    assert emulator.cancel_requested(name) == 1


@both_hooks
def test_a_long_header_is_read(form: str, connect: Connect, tiny_server: Serve) -> None:
    connect(is_anonymous=True, num_retries=0)
    server = tiny_server(lambda exchange: exchange.answer(200, {"name": NAME}, Content_Security_Policy="x" * 20_000))
    (operation,) = FORMS[form](LOOK, api_endpoint=server.endpoint)
    assert operation.name == NAME


def test_a_circle_of_pages_is_an_error(connect: Connect, tiny_server: Serve) -> None:
    connect(is_anonymous=True, num_retries=0)

    def respond(exchange: Exchange) -> None:
        exchange.answer(200, {"nextPageToken": "AB"[len(exchange.server.requests) % 2]})

    with DaiHook(api_endpoint=tiny_server(respond).endpoint) as hook, pytest.raises(exceptions.Unknown, match="twice"):
        list(hook.list_operations())
