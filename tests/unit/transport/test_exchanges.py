"""One request of either hook: how long it may take in all, what may have left, and what nobody may see of it."""

from __future__ import annotations

import asyncio
import base64
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import requests
from google.api_core import exceptions
from google.auth.exceptions import RefreshError, TransportError

from airflow_dai_provider.api.errors import ServiceError
from airflow_dai_provider.api.retry import may_have_acted
from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
from airflow_dai_provider.transport import deadline as deadline_module
from airflow_dai_provider.transport.credentials import TokenRequest
from tests.support.connections import Connect
from tests.support.event_loop import run
from tests.support.hooks import MakeHook, cases
from tests.support.log import Log
from tests.support.payloads import NAME, creative
from tests.support.tiny_server import Exchange, Serve, TinyServer
from tests.support.token_server import service_account_key


def cancel(hook: DaiHook | DaiAsyncHook) -> Any:
    """Request a cancellation, which is one request without a body."""
    if isinstance(hook, DaiHook):
        return hook.cancel_operation(NAME)
    return run(hook.cancel_operation(NAME))


both_hooks = pytest.mark.parametrize("kind", [DaiHook, DaiAsyncHook], ids=["sync", "async"])

INTERIM: dict[str, bytes] = {
    "100": b"HTTP/1.1 100 Continue\r\n\r\n",
    "102": b"HTTP/1.1 102 Processing\r\n\r\n",
    "103": b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\nContent-Length: 5\r\n\r\n",
    "several": b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 199 Odd\r\nA: b\r\n\r\n",
}


@pytest.mark.parametrize("interim", **cases(INTERIM))
@both_hooks
def test_an_interim_response_is_not_the_response(
    connect: Connect, make_hook: MakeHook, tiny_server: Serve, kind: type[DaiHook], interim: bytes
) -> None:
    """The requests share a connection, so one that is taken for the response would shift all that follow."""
    ports = set()

    def respond(exchange: Exchange) -> None:
        ports.add(exchange.client_address)
        exchange.wfile.write(interim)
        if exchange.path == "/token":
            exchange.answer(200, {"access_token": "t0ken", "expires_in": 3600})
        else:
            exchange.answer(200, {"name": exchange.path.removeprefix("/v1/").replace("creatives", "operations/new")})

    server = tiny_server(respond)
    connect(keyfile_dict=service_account_key(f"{server.endpoint}/token"), num_retries=0)
    names = [f"operations/{number}" for number in range(5)]
    if kind is DaiHook:
        hook = make_hook(api_endpoint=server.endpoint)
        assert [hook.get_operation(name).name for name in names] == names
        assert hook.create_creative(creative()).name == "operations/new"
    else:

        async def main() -> None:
            async with DaiAsyncHook(api_endpoint=server.endpoint) as hook:
                assert [(await hook.get_operation(name)).name for name in names] == names

        run(main())
    assert len(ports) == 2, "one for tokens, one for the rest"


UNFINISHED: dict[str, bytes] = {
    "an interim response only": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "an upgrade that was not asked for": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
}


@pytest.mark.parametrize("answer", **cases(UNFINISHED))
def test_a_creation_whose_final_response_is_missing_is_in_doubt(
    connect: Connect, make_hook: MakeHook, tiny_server: Serve, answer: bytes
) -> None:
    connect(is_anonymous=True)
    server = tiny_server(lambda exchange: exchange.raw(answer))
    with pytest.raises(ServiceError) as caught:
        make_hook(api_endpoint=server.endpoint).create_creative(creative())
    assert may_have_acted(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("answer", **cases(UNFINISHED))
@both_hooks
def test_a_cancellation_whose_final_response_is_missing_is_sent_again(
    connect: Connect, tiny_server: Serve, slept: list[float], kind: type[DaiHook], answer: bytes
) -> None:
    def respond(exchange: Exchange) -> None:
        if len(exchange.server.requests) == 1:
            exchange.raw(answer)
        else:
            exchange.answer(200, {})

    connect(is_anonymous=True)
    server = tiny_server(respond)
    cancel(kind(api_endpoint=server.endpoint))
    assert len(server.requests) == 2


BROKEN: dict[str, bytes] = {
    "two Content-Lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "no status line": b"SSH-2.0-OpenSSH\r\n\r\n",
    "a status that is no number": b"HTTP/1.1 ok\r\n\r\n",
    "a long line": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n{}",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 40_000 + b"\r\n{}",
    "a bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n{}",
    "no gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    "too little": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
    "nothing": b"",
    "an odd cookie": b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b; expires=\xff\r\nContent-Length: 9\r\n\r\n{}",
}


@pytest.mark.parametrize("answer", **cases(BROKEN))
@both_hooks
def test_a_broken_response_is_one_to_a_request_that_was_sent(
    kind: Any, connect: Connect, tiny_server: Serve, fake_time: object, answer: bytes
) -> None:
    connect(is_anonymous=True, num_retries=0)
    server = tiny_server(lambda exchange: exchange.raw(answer))
    with pytest.raises(exceptions.GoogleAPICallError) as caught:
        cancel(kind(api_endpoint=server.endpoint))
    assert isinstance(caught.value, ServiceError)
    assert caught.value.sent
    assert may_have_acted(caught.value)
    assert "was not sent" not in str(caught.value)
    assert "400" not in str(caught.value).replace(server.host, ""), "No server has said so."


@pytest.mark.parametrize("answer", **cases(BROKEN))
def test_a_start_with_a_broken_response_is_not_repeated(hook_to: MakeHook, answer: bytes) -> None:
    served: list[int] = []

    def respond(exchange: Exchange) -> None:
        served.append(1)
        exchange.raw(answer)

    with pytest.raises(exceptions.GoogleAPICallError) as caught:
        hook_to(respond, num_retries=3).create_creative(creative())
    assert may_have_acted(caught.value)  # type: ignore[arg-type]
    assert served == [1]


#: So many pieces take half a minute, in which a client that waits for each piece alone does not give up.
TRICKLES = 600


def trickle(head: bytes, piece: bytes) -> Callable[[Exchange], None]:
    def respond(exchange: Exchange) -> None:
        exchange.close_connection = True
        try:
            exchange.wfile.write(head)
            for _ in range(TRICKLES):
                exchange.wfile.write(piece)
                time.sleep(0.05)
        except OSError:
            pass

    return respond


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (b"HTTP/1.1 200 O", b"K"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
    ids=["headers", "status line", "body", "chunks"],
)
@both_hooks
def test_all_pieces_of_a_response_share_one_deadline(
    kind: Any, connect: Connect, tiny_server: Serve, head: bytes, piece: bytes
) -> None:
    connect(is_anonymous=True, num_retries=0)
    server = tiny_server(trickle(head, piece))
    began = time.monotonic()
    with pytest.raises(exceptions.DeadlineExceeded):
        cancel(kind(api_endpoint=server.endpoint, timeout=0.3))
    assert time.monotonic() - began < 15


@pytest.fixture
def six_addresses(monkeypatch: pytest.MonkeyPatch, emulator: DaiEmulator) -> Iterator[str]:
    """Give an endpoint whose host has six addresses, of which the last is the emulator's, and the others are dead."""
    port = int(emulator.host.rpartition(":")[2])
    addresses = [f"127.0.0.{last}" for last in (2, 3, 4, 5, 6, 1)]
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if host in ("dai.localhost", b"dai.localhost"):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]
        return real(host, *arguments, **options)

    with ExitStack() as stack:
        for address in addresses[:-1]:
            # Its queue is full, so that it responds to nothing.
            dead = stack.enter_context(socket.socket())
            dead.bind((address, port))
            dead.listen(0)
            for _ in range(2):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex((address, port))
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(deadline_module, "_ANSWERED", {})
        yield f"http://dai.localhost:{port}"


@pytest.mark.parametrize("last", [False, True], ids=["none has answered before", "one has answered before"])
@pytest.mark.parametrize("prepared", [False, True])
def test_all_addresses_share_one_deadline(
    six_addresses: str,
    emulator: DaiEmulator,
    connect: Connect,
    make_hook: MakeHook,
    monkeypatch: pytest.MonkeyPatch,
    last: bool,
    prepared: bool,
) -> None:
    """The one that has answered last is tried first."""
    connect(is_anonymous=True, num_retries=0)
    emulator.start_ingest(NAME)
    tried: list[str] = []
    enter = deadline_module._Race.enter

    def note(race: Any, *target: Any) -> None:
        tried.append(target[-1][0])
        enter(race, *target)

    if last:
        make_hook(api_endpoint=six_addresses, timeout=3).get_operation(NAME)
    monkeypatch.setattr(deadline_module._Race, "enter", note)
    hook = make_hook(api_endpoint=six_addresses, timeout=3)
    send = partial(hook.prepare_cancellation(), NAME, 3) if prepared else lambda: hook.cancel_operation(NAME)
    send()
    assert tried[0] == ("127.0.0.1" if last else "127.0.0.2")
    assert emulator.cancel_requested(NAME) == 1


def test_six_dead_addresses_take_no_longer_than_one(
    six_addresses: str, emulator: DaiEmulator, connect: Connect, make_hook: MakeHook
) -> None:
    connect(is_anonymous=True, num_retries=0)
    emulator.stop()
    began = time.monotonic()
    with pytest.raises(exceptions.GoogleAPICallError) as caught:
        make_hook(api_endpoint=six_addresses, timeout=1).cancel_operation(NAME)
    # Five of them drop what is sent to them, so each would take a second.
    assert time.monotonic() - began < 4.5
    assert not caught.value.sent  # type: ignore[attr-defined]


@both_hooks
def test_no_cookie_is_sent_back(kind: Any, connect: Connect, tiny_server: Serve) -> None:
    connect(is_anonymous=True, num_retries=0)
    server = tiny_server(lambda exchange: exchange.answer(200, {}, Set_Cookie="a=b; Path=/"))
    hook = kind(api_endpoint=server.endpoint)
    for _ in range(2):
        cancel(hook)
    assert ["cookie" in request.headers for request in server.requests] == [False, False]


@pytest.mark.parametrize("proxy", ["garbage://", "http://", "http://:8080", "garbage", "http://[::1", "http://x:0"])
@both_hooks
def test_a_proxy_that_is_no_url_is_an_error_of_the_service_s_classes(
    kind: Any, connect: Connect, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    connect(is_anonymous=True, num_retries=0)
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(exceptions.GoogleAPICallError) as caught:
        cancel(kind(api_endpoint="https://dai.invalid", timeout=1))
    assert not may_have_acted(caught.value)  # type: ignore[arg-type]


PASSWORD = "pr0xy-passw0rd"
SECRETS = (PASSWORD, base64.b64encode(f"robot:{PASSWORD}".encode()).decode())


def shown(error: BaseException | None) -> str:
    """Return everything that a log can show of an error and of all that it came from."""
    texts = []
    while error is not None:
        texts += [*traceback.format_exception(error), repr(error), repr(error.args)]
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 Away\r\n\r\n", b"HTTP/1.1 407 No\r\n\r\n", b"", b"nonsense"])
@both_hooks
def test_the_password_of_a_proxy_is_never_shown(
    kind: Any, connect: Connect, tiny_server: Serve, monkeypatch: pytest.MonkeyPatch, log: Log, answer: bytes
) -> None:
    connect(is_anonymous=True, num_retries=1)
    monkeypatch.setattr(kind, "_sleep", (lambda _, __: asyncio.sleep(0)) if kind is DaiAsyncHook else lambda *_: None)
    proxy: TinyServer = tiny_server(lambda exchange: exchange.raw(answer))
    monkeypatch.setenv("HTTPS_PROXY", f"http://robot:{PASSWORD}@{proxy.host}")
    with pytest.raises(exceptions.GoogleAPICallError) as caught:
        cancel(kind(api_endpoint="https://dai.invalid", timeout=2))
    text = shown(caught.value) + log.text
    assert [secret for secret in SECRETS if secret in text] == []


@both_hooks
def test_the_password_of_a_proxy_to_the_token_service_is_never_shown(
    kind: Any, connect: Connect, tiny_server: Serve, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    proxy: TinyServer = tiny_server(lambda exchange: exchange.raw(b"HTTP/1.1 503 Away\r\n\r\n"))
    connect(keyfile_dict=service_account_key("https://tokens.invalid/token"), num_retries=0)
    monkeypatch.setenv("HTTPS_PROXY", f"http://robot:{PASSWORD}@{proxy.host}")
    with pytest.raises(exceptions.ServiceUnavailable, match=r"token service: tokens\.invalid") as caught:
        cancel(kind(api_endpoint="https://dai.invalid", timeout=2))
    text = shown(caught.value) + log.text
    assert [secret for secret in SECRETS if secret in text] == []


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://169.254.169.254/computeMetadata/v1/instance/token", True),
        ("http://metadata.google.internal/computeMetadata/v1/instance/token", True),
        ("http://[fd20:ce::254]/computeMetadata/v1/instance/token", True),
        ("http://my-metadata:988/computeMetadata/v1/instance/token", True),
        ("http://10.0.0.7/computeMetadata/v1/instance/token", True),
        ("http://other/computeMetadata/v1/instance/token", False),
        ("http://169.254.169.254/token", False),
    ],
)
def test_a_certificate_goes_to_the_metadata_server_without_tls(
    monkeypatch: pytest.MonkeyPatch, url: str, allowed: bool
) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", "my-metadata:988")
    monkeypatch.setenv("GCE_METADATA_IP", "10.0.0.7")
    reached: list[str] = []

    def send(_: object, request: requests.PreparedRequest, **__: object) -> requests.Response:
        reached.append(str(request.url))
        raise requests.ConnectionError

    monkeypatch.setattr(requests.Session, "send", send)
    request = TokenRequest(requests.Session(), 1)
    with pytest.raises(TransportError if allowed else RefreshError):
        request(url, "POST", b'{"certificate_chain": "..."}')
    assert (reached == [url]) is allowed
    with pytest.raises(RefreshError, match="plain HTTP"):
        request(url, headers={"Authorization": "Bearer x"})


def test_the_error_of_a_connection_that_was_refused_names_no_status(
    connect: Connect, make_hook: MakeHook, closed_port: int
) -> None:
    connect(is_anonymous=True, num_retries=0)
    with pytest.raises(exceptions.ServiceUnavailable) as caught:
        make_hook(api_endpoint=f"http://127.0.0.1:{closed_port}").get_operation(NAME)
    assert "503" not in str(caught.value).replace(str(closed_port), "")
    assert f"127.0.0.1:{closed_port}" in str(caught.value)
