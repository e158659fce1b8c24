"""The session under the hook: connections, credentials, proxies, TLS, and what must never leave or be shown."""

from __future__ import annotations

import gc
import gzip
import json
import logging
import re
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import pytest
from google.api_core import exceptions
from google.auth import jwt
from google.auth.credentials import AnonymousCredentials
from google.oauth2.service_account import Credentials

from airflow_dai_provider.api import rest
from airflow_dai_provider.api.endpoint import Endpoint
from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.names import InvalidNameError
from airflow_dai_provider.emulator import DaiEmulator, Fault, SelfSigned
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.transport import sync_session as transport_module
from airflow_dai_provider.transport.sync_session import RequestsTransport
from tests.support.event_loop import private_key_pem, write_authority

if TYPE_CHECKING:
    from conftest import Log

    from tests.support.tiny_server import Exchange, TinyServer

NAME = "operations/ingest"
EMAIL = "robot@project.iam.gserviceaccount.com"
URL = "https://media.example/ad.mp4"
MEDIA = {"uri": f"{URL}?X-Goog-Signature=s1gn4ture", "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
CREATIVE = {"adSystem": "tests", "mezzanines": [MEDIA]}
PROXY_PASSWORD = "pr0xy-passw0rd"


@dataclass
class Google:
    """A service-account key, the token server that it names, and all that must stay secret about them."""

    key: dict[str, str]
    tokens: list[str] = field(default_factory=list)
    assertions: list[str] = field(default_factory=list)
    #: What the token server answers instead of a token.
    refusal: tuple[int, object] | None = None
    #: Cleared, it lets the token server take its time: a few seconds.
    may_answer: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.may_answer.set()

    def respond(self, exchange: Exchange) -> None:
        self.may_answer.wait(5)
        self.assertions += parse_qs(exchange.server.requests[-1].body.decode())["assertion"]
        if self.refusal:
            exchange.answer(*self.refusal)
            return
        self.tokens.append(f"t0ken-{len(self.tokens) + 1}-of-the-robot")
        exchange.answer(200, {"access_token": self.tokens[-1], "expires_in": 3600, "token_type": "Bearer"})

    @property
    def secrets(self) -> list[str]:
        lines = self.key["private_key"].splitlines()[1:-1]
        return [*lines, *self.assertions, *self.tokens, "s1gn4ture", PROXY_PASSWORD, "Bearer "]

    def assert_not_in(self, text: str) -> None:
        shown = [secret[:30] for secret in self.secrets if secret in text]
        assert shown == []

    @contextmanager
    def fails(self, error: type[Exception], words: str) -> Iterator[None]:
        """Expect an error of exactly this class whose traceback, causes included, shows no secret."""
        with pytest.raises(error, match=words) as caught:
            yield
        assert type(caught.value) is error
        self.assert_not_in("".join(traceback.format_exception(caught.value)))


@pytest.fixture(scope="module")
def key_and_server(one_tiny_server: TinyServer) -> tuple[dict[str, str], TinyServer]:
    """
    Give a key and the token server that it names.

    They are the same for all tests: Airflow remembers every key it has seen, to mask it, and slows down with each.
    """
    key = {
        "type": "service_account",
        "project_id": "project",
        "private_key_id": "k1",
        "private_key": private_key_pem().decode(),
        "client_email": EMAIL,
        "client_id": "1",
        "token_uri": f"{one_tiny_server.endpoint}/token",
    }
    return key, one_tiny_server


@pytest.fixture
def google(
    key_and_server: tuple[dict[str, str], TinyServer], log: Log, caplog: pytest.LogCaptureFixture
) -> Iterator[Google]:
    """Give a key and its token server; after the test, nothing secret of them is in the log, debug lines included."""
    key, server = key_and_server
    google = Google(dict(key))
    server.respond = google.respond
    caplog.set_level("DEBUG")
    yield google
    with_tracebacks = map(logging.Formatter().format, caplog.get_records("call"))
    google.assert_not_in("\n".join([log.text, *with_tracebacks]))


@pytest.fixture
def robot(
    google: Google, emulator: DaiEmulator, connect: Callable[..., None], make_hook: Callable[..., DaiHook]
) -> DaiHook:
    """Give a hook that talks to the emulator with the key."""
    connect(keyfile_dict=json.dumps(google.key), dai_api_endpoint=emulator.endpoint)
    return make_hook()


@pytest.fixture
def bare(emulator: DaiEmulator) -> Iterator[RequestsTransport]:
    """Give an anonymous transport to the emulator, with no repeats around it."""
    transport = RequestsTransport(Endpoint(emulator.endpoint), AnonymousCredentials(), 5.0)
    yield transport
    transport.close()


def bearers(emulator: DaiEmulator) -> list[str | None]:
    return [request.headers.get("authorization") for request in emulator.requests]


# Connections


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
    operation = hook.create_creative(CREATIVE)
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
def test_the_context_manager_closes_the_connection(
    connect: Callable[..., None],
    tiny_server: Callable[[Callable[[Exchange], None]], TinyServer],
    fails: bool,
) -> None:
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


def test_close_hangs_up_on_the_token_server_too(
    google: Google, emulator: DaiEmulator, tiny_server: Callable[[Callable[[Exchange], None]], TinyServer]
) -> None:
    tokens = tiny_server(google.respond)
    info = {**google.key, "token_uri": f"{tokens.endpoint}/token"}
    credentials = Credentials.from_service_account_info(info, scopes=["s"])
    transport = RequestsTransport(Endpoint(emulator.endpoint), credentials, 5.0)
    transport.call(rest.get_operation(emulator.start_ingest()))
    assert not tokens.hung_up.is_set()

    transport.close()

    assert tokens.hung_up.wait(5)


def test_nothing_is_left_open(emulator: DaiEmulator, connect: Callable[..., None]) -> None:
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
    once.create_creative(CREATIVE)
    emulator.stop()
    emulator.start()

    once.create_creative(CREATIVE)

    assert [request.status for request in emulator.requests] == [200, 200]


def test_a_failed_transfer_leaves_the_session_usable(once: DaiHook, emulator: DaiEmulator) -> None:
    name = emulator.start_ingest()
    for fault in (Fault(truncate=10), Fault(drop="after"), Fault(status=200, body=b"x" * 5_000_000)):
        emulator.inject(fault)
        with pytest.raises(exceptions.GoogleAPICallError):
            once.get_operation(name)
        assert once.get_operation(name).name == name


# Headers


def test_headers_of_googles_clients(hook: DaiHook, emulator: DaiEmulator) -> None:
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


def test_headers_of_googles_clients_with_a_key(robot: DaiHook, emulator: DaiEmulator) -> None:
    """The credentials add a word of their own to the header; it must not take the place of the others."""
    robot.get_operation(emulator.start_ingest())

    (request,) = emulator.requests
    assert re.match(r"gl-python/3\.\S+ rest/\d\S+ gapic/\d\S+", request.headers["x-goog-api-client"])
    assert request.headers["user-agent"].startswith("airflow-dai-provider/")


# Reading answers


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
def test_what_is_no_whole_answer(
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    tiny_server: Callable[[Callable[[Exchange], None]], TinyServer],
    content: bytes,
) -> None:
    connect(is_anonymous=True, num_retries=1)
    server = tiny_server(lambda exchange: exchange.raw(content))
    hook = make_hook(api_endpoint=server.endpoint)

    with pytest.raises(
        exceptions.ServiceUnavailable, match=f"operations.get of {NAME} got no answer from {hook.endpoint.url}"
    ):
        hook.get_operation(NAME)
    with pytest.raises(exceptions.ServiceUnavailable, match="creatives.create of a creative got no answer"):
        hook.create_creative(CREATIVE)

    assert [request.http_method for request in server.requests] == ["GET", "GET", "POST"]


@pytest.mark.parametrize("chunk", [1, 7, 4096])
@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
def test_an_answer_in_chunks(
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    tiny_server: Callable[[Callable[[Exchange], None]], TinyServer],
    chunk: int,
    zipped: bool,
) -> None:
    connect(is_anonymous=True, num_retries=0)
    plain = json.dumps({"name": NAME, "metadata": {"a": "é" * 500}}).encode()
    body = gzip.compress(plain) if zipped else plain

    def respond(exchange: Exchange) -> None:
        encoding = b"Content-Encoding: gzip\r\n" if zipped else b""
        exchange.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + encoding + b"\r\n")
        for start in range(0, len(body), chunk):
            part = body[start : start + chunk]
            exchange.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        exchange.wfile.write(b"0\r\n\r\n")

    hook = make_hook(api_endpoint=tiny_server(respond).endpoint)

    assert hook.get_operation(NAME).metadata == {"a": "é" * 500}


def test_an_answer_without_a_length_ends_with_the_connection(
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    tiny_server: Callable[[Callable[[Exchange], None]], TinyServer],
) -> None:
    connect(is_anonymous=True, num_retries=0)
    server = tiny_server(lambda exchange: exchange.raw(b'HTTP/1.0 200 OK\r\n\r\n{"name": "operations/a"}'))

    assert make_hook(api_endpoint=server.endpoint).get_operation(NAME).name == "operations/a"


@pytest.mark.parametrize("status", [200, 302, 503])
def test_a_large_answer_is_not_read_to_its_end(
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    tiny_server: Callable[[Callable[[Exchange], None]], TinyServer],
    status: int,
) -> None:
    connect(is_anonymous=True, num_retries=0)
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

    hook = make_hook(api_endpoint=tiny_server(respond).endpoint)

    with pytest.raises(exceptions.GoogleAPICallError):
        hook.get_operation(NAME)
    assert ended.wait(5)
    assert sum(written) < 32 * 2**20


def test_a_zipped_bomb_is_not_unpacked_to_its_end(
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    tiny_server: Callable[[Callable[[Exchange], None]], TinyServer],
) -> None:
    connect(is_anonymous=True, num_retries=0)
    bomb = gzip.compress(b" " * 50_000_000)
    server = tiny_server(lambda exchange: exchange.answer(200, bomb, Content_Encoding="gzip"))

    with pytest.raises(exceptions.Unknown, match="larger than"):
        make_hook(api_endpoint=server.endpoint).get_operation(NAME)


class Trickle:
    """A server that sends one byte, and one more whenever the client looks at the clock, which counts seconds."""

    def __init__(self, status: int) -> None:
        self._status = status
        self._looked = threading.Semaphore(0)
        self.seconds = 0.0

    def monotonic(self) -> float:
        self.seconds += 1
        self._looked.release()
        return self.seconds

    def respond(self, exchange: Exchange) -> None:
        head = f"HTTP/1.1 {self._status} X\r\nContent-Length: 1000\r\n\r\n"
        try:
            exchange.wfile.write(head.encode())
            for _ in range(1000):
                if not self._looked.acquire(timeout=5):
                    break
                exchange.wfile.write(b" ")
        except ConnectionError:
            pass
        exchange.close_connection = True


@pytest.mark.parametrize("status", [200, 503])
def test_a_trickling_answer_is_not_waited_for(
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    tiny_server: Callable[[Callable[[Exchange], None]], TinyServer],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    connect(is_anonymous=True, num_retries=0)
    trickle = Trickle(status)
    hook = make_hook(api_endpoint=tiny_server(trickle.respond).endpoint, timeout=10)
    monkeypatch.setattr(transport_module, "time", trickle)

    with pytest.raises(exceptions.DeadlineExceeded, match="did not end in time"):
        hook.get_operation(NAME)
    assert 10 < trickle.seconds < 15


def test_an_answer_that_has_come_is_taken_however_late(
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    tiny_server: Callable[[Callable[[Exchange], None]], TinyServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time until its first byte is the socket's to bound; what is whole is not thrown away, a name least of all."""
    connect(is_anonymous=True, num_retries=0)
    now = [0.0]

    def respond(exchange: Exchange) -> None:
        now[0] += 11
        exchange.answer(200, {"name": NAME})

    hook = make_hook(api_endpoint=tiny_server(respond).endpoint, timeout=10)
    monkeypatch.setattr(transport_module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    assert hook.create_creative(CREATIVE).name == NAME


def test_a_silent_server_is_waited_for_until_the_timeout(
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    tiny_server: Callable[[Callable[[Exchange], None]], TinyServer],
) -> None:
    connect(is_anonymous=True, num_retries=1)
    told = threading.Event()
    server = tiny_server(lambda exchange: exchange.raw(b"" if told.wait(10) else b""))
    hook = make_hook(api_endpoint=server.endpoint, timeout=0.2)

    with pytest.raises(exceptions.DeadlineExceeded, match=f"operations.cancel of {NAME} got no answer"):
        hook.cancel_operation(NAME)
    with pytest.raises(exceptions.DeadlineExceeded):
        hook.create_creative(CREATIVE)
    told.set()

    assert [request.path for request in server.requests] == [f"/v1/{NAME}:cancel"] * 2 + ["/v1/creatives"]


# What an error means


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
def test_what_was_sent_may_have_been_done(
    bare: RequestsTransport, emulator: DaiEmulator, fault: Fault, code: Code, retry_after: float | None
) -> None:
    emulator.inject(fault)

    with pytest.raises(ServiceError) as caught:
        bare.call(rest.create_creative(CREATIVE))
    assert (caught.value.code, caught.value.retry_after, caught.value.sent) == (code, retry_after, True)


def test_what_nobody_took_was_not_sent(bare: RequestsTransport, emulator: DaiEmulator) -> None:
    emulator.stop()

    with pytest.raises(
        ServiceError, match=f"creatives.create of a creative got no answer from {emulator.endpoint}: "
    ) as caught:
        bare.call(rest.create_creative(CREATIVE))
    assert (caught.value.code, caught.value.sent) == (Code.UNAVAILABLE, False)


def test_what_a_proxy_did_not_pass_on_was_not_sent(
    tiny_server: Callable[[Callable[[Exchange], None]], TinyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", tiny_server(lambda exchange: exchange.answer(502)).endpoint)
    transport = RequestsTransport(Endpoint("https://dai.example"), AnonymousCredentials(), 5.0)

    with pytest.raises(ServiceError, match="got no answer from https://dai.example: .*502") as caught:
        transport.call(rest.create_creative(CREATIVE))
    transport.close()
    assert (caught.value.code, caught.value.sent) == (Code.UNAVAILABLE, False)


def test_an_anonymous_401_is_not_asked_again(bare: RequestsTransport, emulator: DaiEmulator) -> None:
    emulator.inject(Fault(status=401, times=None))

    with pytest.raises(ServiceError) as caught:
        bare.call(rest.get_operation(NAME))
    assert caught.value.code is Code.UNAUTHENTICATED
    assert bearers(emulator) == [None]


# Credentials


def test_a_key_in_the_connection(robot: DaiHook, emulator: DaiEmulator, google: Google) -> None:
    name = emulator.start_ingest()
    for _ in range(19):
        robot.get_operation(name)
    robot.cancel_operation(name)

    assert len(google.tokens) == 1
    assert bearers(emulator) == [f"Bearer {google.tokens[0]}"] * 20
    assert emulator.connections == 1


def test_a_key_in_a_file(
    google: Google,
    emulator: DaiEmulator,
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    tmp_path: Path,
) -> None:
    path = tmp_path / "key.json"
    path.write_text(json.dumps(google.key))
    connect(key_path=str(path), dai_api_endpoint=emulator.endpoint)

    make_hook().get_operation(emulator.start_ingest())

    assert bearers(emulator) == [f"Bearer {google.tokens[0]}"]


def test_application_default_credentials(
    google: Google,
    emulator: DaiEmulator,
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    path = tmp_path / "key.json"
    path.write_text(json.dumps(google.key))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    connect()

    make_hook(api_endpoint=emulator.endpoint).get_operation(emulator.start_ingest())

    assert bearers(emulator) == [f"Bearer {google.tokens[0]}"]


@pytest.mark.parametrize(
    ("extra", "scope"),
    [({}, "https://www.googleapis.com/auth/cloud-platform"), ({"scope": "https://s.example/a"}, "https://s.example/a")],
    ids=["default", "of the connection"],
)
def test_the_scopes_of_the_connection(
    google: Google,
    emulator: DaiEmulator,
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    extra: dict[str, str],
    scope: str,
) -> None:
    connect(keyfile_dict=google.key, **extra)

    make_hook(api_endpoint=emulator.endpoint).get_operation(emulator.start_ingest())

    assert jwt.decode(google.assertions[0], verify=False)["scope"] == scope


def test_a_prepared_cancellation_takes_the_token_that_is_there(
    robot: DaiHook, emulator: DaiEmulator, google: Google
) -> None:
    """In a signal handler there is no time to fetch one, and the session of the task may be in use."""
    name = emulator.start_ingest()
    robot.get_operation(name)
    cancel = robot.prepare_cancellation(name, timeout=2)
    robot.get_credentials().expiry = datetime.now(UTC).replace(tzinfo=None)  # so that the hook renews it
    robot.get_operation(name)

    cancel()

    assert emulator.cancel_requested(name) == 1
    assert [request.method for request in emulator.requests] == 2 * ["operations.get"] + ["operations.cancel"]
    assert bearers(emulator) == [f"Bearer {google.tokens[number]}" for number in (0, 1, 1)]
    assert len(google.tokens) == 2
    assert emulator.requests[-1].headers["x-goog-api-client"].startswith("gl-python/")
    assert [request.connection for request in emulator.requests] == [1, 1, 2]


def test_a_prepared_cancellation_is_neither_repeated_nor_authorised_anew(
    robot: DaiHook, emulator: DaiEmulator, google: Google, slept: list[float]
) -> None:
    name = emulator.start_ingest()
    robot.get_operation(name)
    for status, error, words in (
        (401, exceptions.Unauthenticated, "no time to fetch another"),
        (503, exceptions.ServiceUnavailable, "503 UNAVAILABLE"),
    ):
        emulator.inject(Fault("operations.cancel", status=status))
        with google.fails(error, words):
            robot.prepare_cancellation(name, timeout=2)()

    assert [request.method for request in emulator.requests] == ["operations.get"] + 2 * ["operations.cancel"]
    assert len(google.tokens) == 1
    assert slept == []


def test_a_prepared_cancellation_without_credentials(hook: DaiHook, emulator: DaiEmulator) -> None:
    name = emulator.start_ingest()
    hook.prepare_cancellation(name, timeout=2)()

    assert emulator.cancel_requested(name) == 1
    assert bearers(emulator) == [None]


def test_a_prepared_cancellation_of_a_bad_name(hook: DaiHook) -> None:
    with pytest.raises(InvalidNameError):
        hook.prepare_cancellation("creatives/x", timeout=2)


@pytest.mark.parametrize("call", ["get", "cancel", "create"])
def test_a_401_is_answered_with_one_fresh_token(
    robot: DaiHook, emulator: DaiEmulator, google: Google, slept: list[float], call: str
) -> None:
    name = emulator.start_ingest()
    robot.get_operation(name)
    emulator.forget_requests()
    emulator.inject(Fault(status=401))

    if call == "get":
        robot.get_operation(name)
    elif call == "cancel":
        robot.cancel_operation(name)
    else:
        robot.create_creative(CREATIVE)

    assert len(google.tokens) == 2
    assert bearers(emulator) == [f"Bearer {token}" for token in google.tokens]
    assert slept == []


def test_a_persistent_401_is_two_requests(
    robot: DaiHook, emulator: DaiEmulator, google: Google, slept: list[float]
) -> None:
    emulator.inject(Fault(status=401, times=None))

    with google.fails(exceptions.Unauthenticated, f"operations.get of {NAME} answered 401 UNAUTHENTICATED"):
        robot.get_operation(NAME)

    assert len(google.tokens) == 2
    assert bearers(emulator) == [f"Bearer {token}" for token in google.tokens]
    assert slept == []


def test_a_503_after_a_fresh_token_is_repeated_like_any(
    robot: DaiHook, emulator: DaiEmulator, google: Google, slept: list[float]
) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(status=401))
    emulator.inject(Fault(status=503))

    assert robot.get_operation(name).name == name
    assert len(emulator.requests) == 3
    assert len(google.tokens) == 2
    assert slept == [0.5]


def test_a_refused_key(robot: DaiHook, emulator: DaiEmulator, google: Google, slept: list[float]) -> None:
    google.refusal = (400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."})

    with google.fails(exceptions.Unauthenticated, "was not sent, for want of a token: invalid_grant: Invalid JWT"):
        robot.get_operation(NAME)

    assert emulator.requests == []
    assert slept == []
    assert len(google.assertions) == 1


def test_a_key_that_is_refused_at_the_renewal(robot: DaiHook, emulator: DaiEmulator, google: Google) -> None:
    name = emulator.start_ingest()
    robot.get_operation(name)
    google.refusal = (400, {"error": "invalid_grant", "error_description": "Account disabled."})
    emulator.inject(Fault(status=401))

    with google.fails(exceptions.Unauthenticated, "for want of a token: invalid_grant: Account disabled."):
        robot.get_operation(name)
    assert len(emulator.requests) == 2


def test_a_token_endpoint_that_is_down(
    google: Google,
    emulator: DaiEmulator,
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    closed_port: int,
    slept: list[float],
) -> None:
    google.key["token_uri"] = f"http://127.0.0.1:{closed_port}/token"
    connect(keyfile_dict=google.key, num_retries=2)

    with google.fails(
        exceptions.ServiceUnavailable, "creatives.create of a creative was not sent, for want of a token"
    ):
        make_hook(api_endpoint=emulator.endpoint).create_creative(CREATIVE)
    assert emulator.requests == []
    assert slept == [0.5, 1.0]


@pytest.mark.parametrize("renewal", [False, True], ids=["first token", "renewal"])
def test_a_silent_token_endpoint_is_waited_for_until_the_timeout(
    google: Google,
    emulator: DaiEmulator,
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    renewal: bool,
) -> None:
    connect(keyfile_dict=json.dumps(google.key), num_retries=0)
    hook = make_hook(api_endpoint=emulator.endpoint, timeout=1.0)
    if renewal:
        list(hook.list_operations())
        emulator.inject(Fault(status=401))
    google.may_answer.clear()

    with google.fails(exceptions.ServiceUnavailable, f"operations.get of {NAME} was not sent, for want of a token"):
        hook.get_operation(NAME)
    google.may_answer.set()


def test_a_token_endpoint_that_is_busy(
    robot: DaiHook, emulator: DaiEmulator, google: Google, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library makes three attempts of its own, which the hook repeats like any other."""
    monkeypatch.setattr("google.auth._exponential_backoff.time.sleep", lambda _: None)
    google.refusal = (503, {"error": "internal_failure"})

    with google.fails(exceptions.ServiceUnavailable, "for want of a token: internal_failure"):
        robot.get_operation(NAME)
    assert emulator.requests == []
    assert slept == [0.5, 1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize("body", [b"<html>Sign in</html>", {}, [], {"access_token": None}], ids=str)
def test_a_token_endpoint_that_answers_nonsense(
    robot: DaiHook, emulator: DaiEmulator, google: Google, body: object
) -> None:
    """A captive portal, for example; whatever it says, the error is one of the service's classes."""
    google.refusal = (200, body)

    with pytest.raises(exceptions.GoogleAPICallError, match=f"operations.get of {NAME}") as caught:
        robot.get_operation(NAME)

    google.assert_not_in("".join(traceback.format_exception(caught.value)))
    assert emulator.requests == []


@pytest.mark.parametrize("by", ["connection", "argument"])
def test_the_quota_project(
    google: Google,
    emulator: DaiEmulator,
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    by: str,
) -> None:
    given = {"quota_project_id": "billed-project"}
    connect(keyfile_dict=google.key, **(given if by == "connection" else {}))
    hook = make_hook(api_endpoint=emulator.endpoint, **(given if by == "argument" else {}))

    hook.get_operation(emulator.start_ingest())

    assert emulator.requests[0].headers["x-goog-user-project"] == "billed-project"


def test_no_quota_project(robot: DaiHook, emulator: DaiEmulator) -> None:
    robot.get_operation(emulator.start_ingest())

    assert "x-goog-user-project" not in emulator.requests[0].headers


@pytest.mark.parametrize("by", ["argument", "connection"])
@pytest.mark.parametrize(
    ("chain", "target", "delegates"),
    [
        ("target@p.iam.gserviceaccount.com", "target@p.iam.gserviceaccount.com", None),
        (
            ["first@p.iam.gserviceaccount.com", "target@p.iam.gserviceaccount.com"],
            "target@p.iam.gserviceaccount.com",
            ["first@p.iam.gserviceaccount.com"],
        ),
    ],
    ids=["one", "chain"],
)
def test_the_impersonation_chain(
    google: Google,
    emulator: DaiEmulator,
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    by: str,
    chain: Any,
    target: str,
    delegates: list[str] | None,
) -> None:
    """The real end of it is Google's, which the tests do not reach: the request must not go out as the source."""
    of_connection = {"impersonation_chain": chain if isinstance(chain, str) else ",".join(chain)}
    connect(keyfile_dict=google.key, num_retries=0, **(of_connection if by == "connection" else {}))
    hook = make_hook(api_endpoint=emulator.endpoint, **({"impersonation_chain": chain} if by == "argument" else {}))

    credentials: Any = hook.get_conn().credentials
    assert credentials.service_account_email == target
    assert list(credentials._delegates or []) == (delegates or [])

    with google.fails(exceptions.ServiceUnavailable, "for want of a token"):
        hook.get_operation(NAME)
    assert len(google.tokens) == 1
    assert emulator.requests == []


# What must not leave


@pytest.mark.parametrize("host", ["dai.example", "192.0.2.1:8080", "[2001:db8::1]", "127.0.0.1.dai.example"])
def test_credentials_do_not_leave_over_plain_http(
    google: Google,
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    tiny_server: Callable[[Callable[[Exchange], None]], TinyServer],
    monkeypatch: pytest.MonkeyPatch,
    host: str,
) -> None:
    proxy = tiny_server(lambda exchange: exchange.answer(200, {"name": NAME}))
    monkeypatch.setenv("HTTP_PROXY", proxy.endpoint)
    connect(keyfile_dict=google.key, dai_api_endpoint=f"http://{host}")

    hook = make_hook()
    with google.fails(ValueError, re.escape(f"Refusing to send credentials to http://{host} over plain HTTP")):
        hook.get_operation(NAME)
    with google.fails(ValueError, "Refusing"):
        hook.get_conn()

    assert google.assertions == []
    assert proxy.requests == []


REDIRECTS = [301, 302, 303, 307, 308]


@pytest.mark.parametrize("status", REDIRECTS)
def test_a_redirect_is_not_followed(
    robot: DaiHook,
    emulator: DaiEmulator,
    google: Google,
    tiny_server: Callable[[Callable[[Exchange], None]], TinyServer],
    status: int,
) -> None:
    elsewhere = tiny_server(lambda exchange: exchange.answer(200, {"name": NAME}))
    location = {"Location": f"{elsewhere.endpoint}/v1/{NAME}"}
    emulator.inject(Fault(status=status, body=b"", headers=location, times=None))

    with google.fails(exceptions.FailedPrecondition, "a redirect, which is not followed with credentials"):
        robot.get_operation(NAME)
    with google.fails(exceptions.FailedPrecondition, "a redirect, which is not followed with credentials"):
        robot.cancel_operation(NAME)

    assert elsewhere.requests == []
    assert len(emulator.requests) == 2


@pytest.mark.parametrize(
    "location",
    [b"", b"http://[bad", b"//", b"http://", b"caf\xe9", b"\xff\xfe", b"javascript:x", b"http://a:99999/"],
    ids=str,
)
def test_a_redirect_to_nowhere_is_a_redirect(
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    tiny_server: Callable[[Callable[[Exchange], None]], TinyServer],
    location: bytes,
) -> None:
    connect(is_anonymous=True)
    answer = b"HTTP/1.1 302 X\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n"
    server = tiny_server(lambda exchange: exchange.raw(answer))

    with pytest.raises(exceptions.FailedPrecondition, match="answered 302 .*a redirect"):
        make_hook(api_endpoint=server.endpoint).get_operation(NAME)
    assert len(server.requests) == 1


@pytest.mark.parametrize("with_key", [False, True], ids=["anonymous", "key"])
def test_the_netrc_is_not_used(
    google: Google,
    emulator: DaiEmulator,
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    with_key: bool,
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login me password of-netrc\ndefault login me password of-netrc\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    connect(**({"keyfile_dict": google.key} if with_key else {"is_anonymous": True}))
    hook = make_hook(api_endpoint=emulator.endpoint)
    name = emulator.start_ingest()

    hook.get_operation(name)
    hook.cancel_operation(name)

    assert bearers(emulator) == [f"Bearer {google.tokens[0]}" if with_key else None] * 2


# Proxies


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_carries_what_leaves_this_machine(
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    tiny_server: Callable[[Callable[[Exchange], None]], TinyServer],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
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
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    tiny_server: Callable[[Callable[[Exchange], None]], TinyServer],
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
    robot: DaiHook,
    emulator: DaiEmulator,
    tiny_server: Callable[[Callable[[Exchange], None]], TinyServer],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    name = emulator.start_ingest()
    robot.get_operation(name)  # the token is there; what asks for one may well go through a proxy
    proxy = tiny_server(lambda exchange: exchange.answer(200, {"name": NAME}))
    monkeypatch.setenv(variable, proxy.endpoint)

    assert robot.get_operation(name).name == name
    assert proxy.requests == []


def test_https_goes_through_the_proxys_tunnel(
    google: Google,
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    tiny_server: Callable[[Callable[[Exchange], None]], TinyServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy = tiny_server(lambda exchange: exchange.answer(407))
    monkeypatch.setenv("HTTPS_PROXY", proxy.endpoint)
    connect(keyfile_dict=google.key, num_retries=0, dai_api_endpoint="https://dai.example")

    with google.fails(exceptions.ServiceUnavailable, "got no answer from https://dai.example: .*407"):
        make_hook().get_operation(NAME)

    tunnels = [request for request in proxy.requests if request.path == "dai.example:443"]
    assert [request.http_method for request in tunnels] == ["CONNECT"]
    assert "authorization" not in tunnels[0].headers


def test_the_password_of_a_proxy_is_not_shown(
    google: Google,
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    closed_port: int,
    monkeypatch: pytest.MonkeyPatch,
    slept: list[float],
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://user:{PROXY_PASSWORD}@127.0.0.1:{closed_port}")
    connect(is_anonymous=True, num_retries=1)

    with google.fails(exceptions.ServiceUnavailable, "got no answer from http://dai.example"):
        make_hook(api_endpoint="http://dai.example").create_creative(CREATIVE)
    assert slept == [0.5], "a proxy that is down has passed nothing on, so it is tried again"


# TLS


@pytest.fixture
def tls_server(tiny_server: Callable[..., TinyServer], tmp_path: Path) -> tuple[TinyServer, Path]:
    """Give a server that speaks TLS, and the file with its own certificate."""
    certificate = SelfSigned()
    server = tiny_server(lambda exchange: exchange.answer(200, {"name": NAME}), certificate.context())
    return server, write_authority(tmp_path, certificate)


def test_https_with_an_authority_of_ones_own(
    google: Google,
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    tls_server: tuple[TinyServer, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, authority = tls_server
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
    connect(keyfile_dict=google.key, num_retries=0, dai_api_endpoint=server.host)

    hook = make_hook()
    assert hook.endpoint.url == f"https://{server.host}"
    assert hook.get_operation(NAME).name == NAME
    assert server.requests[0].headers["authorization"] == f"Bearer {google.tokens[0]}"


def test_a_certificate_that_is_not_trusted(
    google: Google,
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    tls_server: tuple[TinyServer, Path],
    slept: list[float],
) -> None:
    server, _ = tls_server
    connect(keyfile_dict=google.key, dai_api_endpoint=server.host)

    with google.fails(exceptions.FailedPrecondition, "certificate is not trusted.*REQUESTS_CA_BUNDLE"):
        make_hook().get_operation(NAME)
    assert server.requests == []
    assert slept == []


def test_a_file_of_authorities_that_is_missing(
    google: Google,
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    tls_server: tuple[TinyServer, Path],
    monkeypatch: pytest.MonkeyPatch,
    slept: list[float],
) -> None:
    server, _ = tls_server
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")
    connect(keyfile_dict=google.key, dai_api_endpoint=server.host)

    with google.fails(exceptions.FailedPrecondition, "/nowhere/ca.pem"):
        make_hook().get_operation(NAME)
    assert slept == []


def test_tls_to_a_server_that_speaks_none(
    emulator: DaiEmulator, google: Google, connect: Callable[..., None], make_hook: Callable[..., DaiHook]
) -> None:
    connect(keyfile_dict=google.key, num_retries=0, dai_api_endpoint=emulator.host)

    with google.fails(exceptions.ServiceUnavailable, f"got no answer from https://{emulator.host}"):
        make_hook().get_operation(NAME)
    assert emulator.requests == []


# What must not be shown


def test_a_create_shows_no_signature(robot: DaiHook, emulator: DaiEmulator, google: Google, log: Log) -> None:
    """Nor do its repeats and the look at its operation; what a failing line would show is checked at the end."""
    emulator.inject(Fault(method="creatives.create", status=429))
    operation = robot.create_creative(CREATIVE)
    emulator.inject(Fault(method="operations.get", status=503))
    operation = robot.get_operation(operation.name)
    assert operation.metadata is not None
    assert "s1gn4ture" in operation.metadata["creativeUrl"]

    logging.getLogger("tests").info("%s %s %s", operation, operation.ingest, operation.to_dict())
    emulator.inject(Fault(method="creatives.create", status=503))
    with google.fails(exceptions.ServiceUnavailable, "creatives.create of a creative answered 503"):
        robot.create_creative(CREATIVE)

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
    robot: DaiHook, emulator: DaiEmulator, google: Google, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    """Not by this package, that is: at the level of debugging, urllib3 shows every address."""
    caplog.set_level("INFO")
    emulator.inject(fault)
    emulator.inject(Fault(method="operations.list", status=403))

    with google.fails(exceptions.PermissionDenied, "operations.list"):
        list(robot.list_operations(f'creativeUrl = "{MEDIA["uri"]}"'))
