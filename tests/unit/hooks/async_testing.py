"""What the tests of the asynchronous half share: a clean event loop, time that passes when told to, tiny servers."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import ssl
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

if TYPE_CHECKING:
    from conftest import Clock

T = TypeVar("T")

#: Seconds after which a test that hangs is ended.
HANGS_AFTER = 15.0
#: Seconds that a blocked thread waits for a gate before it gives up.
GATE_SECONDS = 5.0


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on an event loop of its own, and fail on whatever it leaves behind: the house stays clean."""
    left: list[str] = []
    with only_new_objects(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            loop.set_exception_handler(lambda _, context: left.append(f"{context}"))
            try:
                result = runner.run(asyncio.wait_for(main, HANGS_AFTER))
            finally:
                left += [f"a task goes on: {task}" for task in asyncio.all_tasks(loop)]
        left += _open_sessions()
        gc.collect()
    left += [
        str(warning.message)
        for warning in caught
        if issubclass(warning.category, ResourceWarning) or "never awaited" in str(warning.message)
    ]
    caught.clear()  # a warning holds what it warns of, and a failing test holds this
    if left:
        pytest.fail("Left behind: " + "; ".join(left))
    return result


@contextmanager
def only_new_objects() -> Iterator[None]:
    """Keep what is there already from the garbage collector, which makes it quick to ask."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _open_sessions() -> list[str]:
    return [f"an open session: {o}" for o in gc.get_objects() if type(o) is aiohttp.ClientSession and not o.closed]


def let_time_pass(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> list[float]:
    """Let the asynchronous hook wait on the clock, without chance; return what it has slept."""
    from airflow_dai_provider.hooks.dai import DaiAsyncHook

    async def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(DaiAsyncHook, "_sleep", staticmethod(sleep))
    monkeypatch.setattr(DaiAsyncHook, "_clock", staticmethod(clock))
    monkeypatch.setattr(DaiAsyncHook, "_random", staticmethod(lambda: 0.0))
    return clock.slept


def trust_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read one authority instead of the world's 150, which takes longer than the rest of most tests."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(_one_authority()))


@cache
def _one_authority() -> Path:
    folder = Path(os.environ["AIRFLOW_HOME"]) / "authority"
    folder.mkdir()
    return make_authority(folder)[0]


def define_connection(monkeypatch: pytest.MonkeyPatch, conn_id: str = "google_cloud_default", **extra: object) -> None:
    """Define a Google Cloud connection by its extra."""
    connection = {"conn_type": "google_cloud_platform", "extra": extra}
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that another thread brings about."""
    while not condition():
        await asyncio.sleep(0.002)


class Gate:
    """
    Where a thread stands still until the event loop has gone on; a loop that is blocked never opens it.

    :param entered: how many threads have come so far.
    """

    def __init__(self) -> None:
        self.entered = 0
        self.blocked = False
        self._open = threading.Event()

    def wait(self) -> None:
        self.entered += 1
        self.blocked |= not self._open.wait(GATE_SECONDS)

    def open(self) -> None:
        self._open.set()

    async def open_after_beats(self, beats: int = 20) -> None:
        """Let the event loop turn while a thread waits here, and open."""
        await until(lambda: self.entered)
        for _ in range(beats):
            await asyncio.sleep(0.001)
        self.open()
        assert not self.blocked, "The event loop stood still."


@dataclass(frozen=True)
class TinyRequest:
    """A request that reached a tiny server; ``path`` is the target of the request line."""

    http_method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Exchange(BaseHTTPRequestHandler):
    """One connection to a tiny server."""

    protocol_version = "HTTP/1.1"
    server: TinyServer

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client has hung up, or does not like the certificate
            self.close_connection = True

    def _take(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append(TinyRequest(self.command, self.path, headers, body))
        self.server.respond(self)

    do_GET = do_POST = do_CONNECT = _take

    def answer(self, status: int, body: object = b"", **headers: str) -> None:
        """Send a whole answer; a body that is not bytes is sent as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def raw(self, content: bytes) -> None:
        """Send these bytes as they are, and close the connection afterwards."""
        self.wfile.write(content)
        self.close_connection = True

    def tunnel_to_itself(self, context: ssl.SSLContext) -> None:
        """Answer a CONNECT, and speak as the server at the other end from then on."""
        self.send_response_only(200)
        self.end_headers()
        self.request = context.wrap_socket(self.connection, server_side=True)
        self.setup()
        self.close_connection = False

    def finish(self) -> None:
        super().finish()
        if isinstance(self.request, ssl.SSLSocket):
            self.request.close()

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


class TinyServer(ThreadingHTTPServer):
    """A server on a free port of 127.0.0.1 that answers as ``respond`` does, over TLS where a context is given."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, respond: Callable[[Exchange], None], context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        if context:
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.respond = respond
        self.requests: list[TinyRequest] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    def handle_error(self, *_: object) -> None:
        """Keep quiet about a client that breaks off, which is what some tests want."""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


@dataclass
class TokenService:
    """
    A service-account key, and the token endpoint that it names.

    :param expires_in: seconds that a token is good for.
    :param refusal: what is answered instead of a token.
    :param gate: where a request for a token stands still.
    """

    expires_in: float = 3600
    refusal: tuple[int, object] | None = None
    gate: Gate | None = None
    tokens: list[str] = field(default_factory=list)
    asked: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def respond(self, exchange: Exchange) -> None:
        with self._lock:
            self.asked += 1
            number = self.asked
        if self.gate:
            self.gate.wait()
        if self.refusal:
            exchange.answer(*self.refusal)
            return
        token = f"t0ken-{number}-of-the-robot"
        self.tokens.append(token)
        exchange.answer(200, {"access_token": token, "expires_in": self.expires_in, "token_type": "Bearer"})

    def key(self, token_uri: str) -> dict[str, str]:
        return {
            "type": "service_account",
            "project_id": "project",
            "private_key_id": "k1",
            "private_key": private_key_pem().decode(),
            "client_email": "robot@project.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": token_uri,
        }

    def assert_nothing_secret_in(self, text: str) -> None:
        lines = private_key_pem().decode().splitlines()[1:-1]
        assert [secret[:12] for secret in [*lines, *self.tokens, "Bearer "] if secret in text] == []


@cache
def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@cache
def private_key_pem() -> bytes:
    return private_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def make_authority(folder: Path, *hosts: str) -> tuple[Path, ssl.SSLContext]:
    """Return the file of a self-signed certificate for 127.0.0.1 and these hosts, and what a server needs of it."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    alternatives = [x509.IPAddress(ip_address("127.0.0.1")), *map(x509.DNSName, hosts)]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private_key().public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private_key(), hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    authority, both = folder / "ca.pem", folder / "server.pem"
    authority.write_bytes(certificate)
    both.write_bytes(private_key_pem() + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return authority, context


@contextmanager
def refusing_port() -> Iterator[int]:
    """Give a port at which every connection is refused."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]
