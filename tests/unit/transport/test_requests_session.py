"""Connections, headers and responses of the requests session."""

from __future__ import annotations

import gc
import gzip
import json
import re
import threading
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.oauth2.service_account import Credentials

from airflow_dai_provider.api import rest
from airflow_dai_provider.api.endpoint import Endpoint
from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.transport import deadline as deadline_module
from airflow_dai_provider.transport.requests_session import RequestsTransport
from airflow_dai_provider.transport.shared_token import Token
from tests.support.connections import Connect
from tests.support.emulators import bearers
from tests.support.hooks import MakeHook
from tests.support.payloads import NAME, SIGNED_URL, creative
from tests.support.tiny_server import Serve
from tests.support.token_server import TokenServer, service_account_key

if TYPE_CHECKING:
    from tests.support.tiny_server import Exchange


@pytest.fixture
def bare(emulator: DaiEmulator) -> Iterator[RequestsTransport]:
    """Give an anonymous transport to the emulator, with no repeats around it."""
    transport = RequestsTransport(Endpoint(emulator.endpoint), Token(AnonymousCredentials(), 5.0), 5.0)
    yield transport
    transport.close()


def test_twenty_gets_share_one_connection(hook: DaiHook, emulator: DaiEmulator) -> None:
    name = emulator.start_ingest()
    for number in range(20):
        if number == 10:
            emulator.inject(Fault(status=503))
            emulator.inject(Fault(status=502))
            emulator.inject(Fault(status=200, body=b""))
        hook.get_operation(name)
    with pytest.raises(exceptions.NotFound):
        hook.get_operation(NAME)

    assert len(emulator.requests) == 24
    assert emulator.connections == 1


def test_all_methods_share_one_connection(hook: DaiHook, emulator: DaiEmulator) -> None:
    operation = hook.create_creative(creative(SIGNED_URL))
    list(hook.list_operations())
    hook.cancel_operation(operation.name)
    hook.delete_operation(operation.name)

    assert emulator.connections == 1


def test_the_session_is_kept_until_it_is_closed(hook: DaiHook, emulator: DaiEmulator) -> None:
    name = emulator.start_ingest()
    session = hook.get_conn()
    hook.get_operation(name)
    assert hook.get_conn() is session

    hook.close()
    hook.close()
    hook.get_operation(name)

    assert hook.get_conn() is not session
    assert emulator.connections == 2


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_the_context_manager_closes_the_connection(connect: Connect, tiny_server: Serve, fails: bool) -> None:
    connect(is_anonymous=True, num_retries=0)
    status = 404 if fails else 200
    server = tiny_server(lambda exchange: exchange.answer(status, {"name": NAME}))

    def look() -> None:
        with DaiHook(api_endpoint=server.endpoint) as hook:
            hook.get_operation(NAME)

    if fails:
        with pytest.raises(exceptions.GoogleAPICallError):
            look()
    else:
        look()

    assert server.hung_up.wait(5)


def test_nothing_stays_open_to_the_token_server(tokens: TokenServer, emulator: DaiEmulator, tiny_server: Serve) -> None:
    server = tiny_server(tokens.respond)
    credentials = Credentials.from_service_account_info(service_account_key(server.endpoint), scopes=["s"])
    transport = RequestsTransport(Endpoint(emulator.endpoint), Token(credentials, 5.0), 5.0)

    transport.call(rest.get_operation(emulator.start_ingest()))

    assert server.hung_up.wait(5)
    transport.close()


def test_nothing_is_left_open(emulator: DaiEmulator, connect: Connect) -> None:
    connect(is_anonymous=True, num_retries=0)
    before = set(threading.enumerate())
    faults = [
        Fault(status=503),
        Fault(truncate=10),
        Fault(drop="before"),
        Fault(status=200, body=b"x" * 5_000_000),
        Fault(status=302, body=b"", headers={"Location": "/"}),
    ]

    gc.collect()  # what earlier tests have left is not of this one
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        with DaiHook(api_endpoint=emulator.endpoint) as hook:
            list(hook.list_operations())
            for fault in faults:
                emulator.inject(fault)
                with pytest.raises(exceptions.GoogleAPICallError):
                    hook.get_operation(NAME)
        del hook
        gc.collect()

    assert [str(warning.message) for warning in caught if warning.category is ResourceWarning] == []
    assert set(threading.enumerate()) - before == set()


def test_a_connection_that_the_server_has_closed_is_not_used_again(once: DaiHook, emulator: DaiEmulator) -> None:
    once.create_creative(creative(SIGNED_URL))
    emulator.stop()
    emulator.start()

    once.create_creative(creative(SIGNED_URL))

    assert [request.status for request in emulator.requests] == [200, 200]


def test_a_failed_transfer_leaves_the_session_usable(once: DaiHook, emulator: DaiEmulator) -> None:
    name = emulator.start_ingest()
    for fault in (Fault(truncate=10), Fault(drop="after"), Fault(status=200, body=b"x" * 5_000_000)):
        emulator.inject(fault)
        with pytest.raises(exceptions.GoogleAPICallError):
            once.get_operation(name)
        assert once.get_operation(name).name == name


def test_the_headers_are_those_of_googles_clients(hook: DaiHook, emulator: DaiEmulator) -> None:
    name = emulator.start_ingest()
    hook.get_operation(name)
    hook.cancel_operation(name)

    for request in emulator.requests:
        assert re.fullmatch(r"gl-python/3\.\S+ rest/\d\S+ gapic/\d\S+", request.headers["x-goog-api-client"])
        assert re.fullmatch(
            r"airflow-dai-provider/\d\S+ apache-airflow/[23]\S+ requests/\d\S+", request.headers["user-agent"]
        )
        assert "authorization" not in request.headers
        assert "cookie" not in request.headers


def test_credentials_keep_the_headers_of_googles_clients(keyed_hook: DaiHook, emulator: DaiEmulator) -> None:
    """The credentials add a word of their own to the header; it must not take the place of the others."""
    keyed_hook.get_operation(emulator.start_ingest())

    (request,) = emulator.requests
    assert re.match(r"gl-python/3\.\S+ rest/\d\S+ gapic/\d\S+", request.headers["x-goog-api-client"])
    assert request.headers["user-agent"].startswith("airflow-dai-provider/")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"garbage\r\n\r\n", id="no HTTP"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}", id="cut off in the body"),
        pytest.param(b"HTTP/1.1 503 X\r\nContent-Length: 50\r\n\r\n{}", id="cut off in an error"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{", id="cut off in a chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}", id="no chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n{}", id="too many headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n{}", id="header too long"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\nContent-Encoding: gzip\r\n\r\n{}",
            id="said to be gzip",
        ),
    ],
)
def test_a_response_that_is_not_whole_is_an_error(
    connect: Connect, make_hook: MakeHook, tiny_server: Serve, content: bytes
) -> None:
    connect(is_anonymous=True, num_retries=1)
    server = tiny_server(lambda exchange: exchange.raw(content))
    hook = make_hook(api_endpoint=server.endpoint)

    with pytest.raises(
        exceptions.ServiceUnavailable, match=f"operations.get of {NAME} got no response from {hook.endpoint.url}"
    ):
        hook.get_operation(NAME)
    with pytest.raises(exceptions.ServiceUnavailable, match="creatives.create of a creative got no response"):
        hook.create_creative(creative(SIGNED_URL))

    assert [request.http_method for request in server.requests] == ["GET", "GET", "POST"]


@pytest.mark.parametrize("chunk", [1, 7, 4096])
@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
def test_a_response_in_chunks_is_read(hook_to: MakeHook, chunk: int, zipped: bool) -> None:
    plain = json.dumps({"name": NAME, "metadata": {"a": "é" * 500}}).encode()
    body = gzip.compress(plain) if zipped else plain

    def respond(exchange: Exchange) -> None:
        encoding = b"Content-Encoding: gzip\r\n" if zipped else b""
        exchange.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + encoding + b"\r\n")
        for start in range(0, len(body), chunk):
            part = body[start : start + chunk]
            exchange.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        exchange.wfile.write(b"0\r\n\r\n")

    hook = hook_to(respond)

    assert hook.get_operation(NAME).metadata == {"a": "é" * 500}


def test_a_response_without_a_length_ends_with_the_connection(hook_to: MakeHook) -> None:
    hook = hook_to(lambda exchange: exchange.raw(b'HTTP/1.0 200 OK\r\n\r\n{"name": "operations/ingest"}'))

    assert hook.get_operation(NAME).name == "operations/ingest"


@pytest.mark.parametrize("status", [200, 302, 503])
def test_a_large_response_is_not_read_to_its_end(hook_to: MakeHook, status: int) -> None:
    written: list[int] = []
    ended = threading.Event()

    def respond(exchange: Exchange) -> None:
        head = f"HTTP/1.1 {status} X\r\nLocation: /\r\nContent-Length: {2**40}\r\n\r\n"
        try:
            exchange.wfile.write(head.encode())
            while sum(written) < 64 * 2**20:
                written.append(exchange.wfile.write(b"x" * 2**16))
        except ConnectionError:
            pass
        exchange.close_connection = True
        ended.set()

    hook = hook_to(respond)

    with pytest.raises(exceptions.GoogleAPICallError):
        hook.get_operation(NAME)
    assert ended.wait(5)
    assert sum(written) < 32 * 2**20


def test_a_zipped_bomb_is_not_unpacked_to_its_end(hook_to: MakeHook) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    hook = hook_to(lambda exchange: exchange.answer(200, bomb, Content_Encoding="gzip"))

    with pytest.raises(exceptions.Unknown, match="larger than"):
        hook.get_operation(NAME)


class Trickle:
    """A server that sends one byte whenever the client looks at the clock, which counts seconds and awaits the byte."""

    def __init__(self, status: int) -> None:
        self._status = status
        self._looked = threading.Semaphore(0)
        self._changed = threading.Condition()
        #: The bytes sent; None while the server does not respond.
        self._sent: int | None = None
        self.seconds = 0.0

    def monotonic(self) -> float:
        self.seconds += 1
        self._looked.release()
        with self._changed:
            self._changed.wait_for(lambda: self._sent is None or self._sent >= self.seconds, 5)
        return self.seconds

    def _note(self, sent: int | None) -> None:
        with self._changed:
            self._sent = sent
            self._changed.notify()

    def respond(self, exchange: Exchange) -> None:
        head = f"HTTP/1.1 {self._status} X\r\nContent-Length: 1000\r\n\r\n"
        try:
            exchange.wfile.write(head.encode())
            for sent in range(1000):
                self._note(sent)
                if not self._looked.acquire(timeout=5):
                    break
                exchange.wfile.write(b" ")
        except ConnectionError:
            pass
        self._note(None)
        exchange.close_connection = True


@pytest.mark.parametrize("status", [200, 503])
def test_a_trickling_response_is_not_waited_for(
    hook_to: MakeHook, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    trickle = Trickle(status)
    hook = hook_to(trickle.respond, timeout=10)
    monkeypatch.setattr(deadline_module, "time", trickle)

    with pytest.raises(exceptions.DeadlineExceeded, match="did not end in time"):
        hook.get_operation(NAME)
    assert 10 < trickle.seconds < 15


def test_a_complete_response_is_read_however_late(hook_to: MakeHook, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time until its first byte is the socket's to bound; what is whole is not thrown away, a name least of all."""
    now = [0.0]

    def respond(exchange: Exchange) -> None:
        exchange.answer(200, {"name": NAME})
        now[0] += 11

    hook = hook_to(respond, timeout=10)
    monkeypatch.setattr(deadline_module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    assert hook.create_creative(creative(SIGNED_URL)).name == NAME


def test_a_silent_server_is_waited_for_until_the_timeout(
    connect: Connect, make_hook: MakeHook, tiny_server: Serve
) -> None:
    connect(is_anonymous=True, num_retries=1)
    told = threading.Event()
    server = tiny_server(lambda exchange: exchange.raw(b"" if told.wait(10) else b""))
    hook = make_hook(api_endpoint=server.endpoint, timeout=0.2)

    with pytest.raises(exceptions.DeadlineExceeded, match=f"operations.cancel of {NAME} got no response"):
        hook.cancel_operation(NAME)
    with pytest.raises(exceptions.DeadlineExceeded):
        hook.create_creative(creative(SIGNED_URL))
    told.set()

    assert [request.path for request in server.requests] == [f"/v1/{NAME}:cancel"] * 2 + ["/v1/creatives"]


@pytest.mark.parametrize(
    ("fault", "code", "retry_after"),
    [
        pytest.param(Fault(status=503), Code.UNAVAILABLE, None, id="503"),
        pytest.param(Fault(status=429, headers={"Retry-After": "9"}), Code.RESOURCE_EXHAUSTED, 9.0, id="429"),
        pytest.param(Fault(drop="before"), Code.UNAVAILABLE, None, id="dropped before"),
        pytest.param(Fault(drop="after"), Code.UNAVAILABLE, None, id="dropped after"),
        pytest.param(Fault(truncate=5), Code.UNAVAILABLE, None, id="cut off"),
    ],
)
def test_an_error_after_sending_is_marked_as_sent(
    bare: RequestsTransport, emulator: DaiEmulator, fault: Fault, code: Code, retry_after: float | None
) -> None:
    emulator.inject(fault)

    with pytest.raises(ServiceError) as caught:
        bare.call(rest.create_creative(creative(SIGNED_URL)))
    assert (caught.value.rpc_code, caught.value.retry_after, caught.value.sent) == (code, retry_after, True)


def test_a_request_that_no_server_accepted_was_not_sent(bare: RequestsTransport, emulator: DaiEmulator) -> None:
    emulator.stop()

    with pytest.raises(
        ServiceError, match=f"creatives.create of a creative got no response from {emulator.endpoint}: "
    ) as caught:
        bare.call(rest.create_creative(creative(SIGNED_URL)))
    assert (caught.value.rpc_code, caught.value.sent) == (Code.UNAVAILABLE, False)


def test_a_refused_tunnel_is_marked_as_not_sent(tiny_server: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", tiny_server(lambda exchange: exchange.answer(502)).endpoint)
    transport = RequestsTransport(Endpoint("https://dai.example"), Token(AnonymousCredentials(), 5.0), 5.0)

    with pytest.raises(ServiceError, match="got no response from https://dai.example: .*502") as caught:
        transport.call(rest.create_creative(creative(SIGNED_URL)))
    transport.close()
    assert (caught.value.rpc_code, caught.value.sent) == (Code.UNAVAILABLE, False)


def test_an_anonymous_401_is_not_retried(bare: RequestsTransport, emulator: DaiEmulator) -> None:
    emulator.inject(Fault(status=401, times=None))

    with pytest.raises(ServiceError) as caught:
        bare.call(rest.get_operation(NAME))
    assert caught.value.rpc_code is Code.UNAUTHENTICATED
    assert bearers(emulator) == [None]
