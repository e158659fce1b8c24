"""An emulator, hooks that talk to it over real HTTP without sleeping, and a tiny server that can misbehave."""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.hooks.dai import DaiHook

if TYPE_CHECKING:
    from conftest import Clock

#: Settings of whoever runs the tests that would reach into them.
_OUTSIDE = ("GOOGLE_", "CLOUDSDK_", "GCE_", "AIRFLOW_CONN_", "DAI_", "REQUESTS_CA_", "CURL_CA_", "NETRC", "SSL_")


class Exchange(BaseHTTPRequestHandler):
    """One connection to a tiny server."""

    protocol_version = "HTTP/1.1"
    server: TinyServer

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def finish(self) -> None:
        super().finish()
        self.server.hung_up.set()

    def _take(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append(TinyRequest(self.command, self.path, headers, body))
        self.server.respond(self)

    do_GET = do_POST = do_DELETE = do_CONNECT = _take

    def answer(self, status: int, body: bytes | object = b"", **headers: str) -> None:
        """Send a whole answer; a body that is not bytes is sent as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def raw(self, content: bytes) -> None:
        """Send these bytes as they are, and close the connection."""
        self.wfile.write(content)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@dataclass(frozen=True)
class TinyRequest:
    """A request that reached a tiny server; ``path`` is the target of the request line."""

    http_method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class TinyServer(ThreadingHTTPServer):
    """A server on a free port of 127.0.0.1 that answers as ``respond`` does."""

    daemon_threads = True

    def __init__(self, respond: Callable[[Exchange], None]) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.respond = respond
        self.requests: list[TinyRequest] = []
        self.hung_up = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    def handshake_with(self, context: ssl.SSLContext) -> None:
        """Speak TLS from now on."""
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, *_: object) -> None:
        """Keep quiet about a client that breaks off, which is what some tests want."""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}"

    def __enter__(self) -> TinyServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Give a port at which every connection is refused."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@pytest.fixture(autouse=True)
def _isolation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, closed_port: int) -> None:
    """Keep the real environment out, and everything that is meant for another machine in."""
    for variable in [*os.environ]:
        if variable.startswith(_OUTSIDE) or variable.lower().endswith("_proxy"):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("NO_GCE_CHECK", "true")


@pytest.fixture
def emulator(clock: Clock) -> Iterator[DaiEmulator]:
    with DaiEmulator(ingest_seconds=100, clock=clock) as running:
        yield running


@pytest.fixture
def tiny_server() -> Iterator[Callable[[Callable[[Exchange], None]], TinyServer]]:
    """Give a function that starts a server which answers every request as the given function does."""
    with ExitStack() as stack:
        yield lambda respond: stack.enter_context(TinyServer(respond))


@pytest.fixture(scope="module")
def one_tiny_server() -> Iterator[TinyServer]:
    """Give a server for all tests of a module; each sets what it answers."""
    with TinyServer(lambda exchange: exchange.answer(500)) as server:
        yield server


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give a function that defines the connection ``google_cloud_default`` by its extra."""

    def define(**extra: object) -> None:
        connection = {"conn_type": "google_cloud_platform", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", json.dumps(connection))

    return define


@pytest.fixture
def slept(clock: Clock) -> list[float]:
    """Give the seconds that the hooks have slept so far."""
    return clock.slept


@pytest.fixture
def make_hook(monkeypatch: pytest.MonkeyPatch, fake_time: Clock) -> Iterator[Callable[..., DaiHook]]:
    """Give a function that makes a hook which waits on the test's clock, and is closed in the end."""
    with ExitStack() as stack:
        yield lambda **arguments: stack.enter_context(DaiHook(**arguments))


@pytest.fixture
def hook(emulator: DaiEmulator, connect: Callable[..., None], make_hook: Callable[..., DaiHook]) -> DaiHook:
    """Give a hook that talks to the emulator anonymously and repeats at most five times."""
    connect(is_anonymous=True)
    return make_hook(api_endpoint=emulator.endpoint)


@pytest.fixture
def once(emulator: DaiEmulator, connect: Callable[..., None], make_hook: Callable[..., DaiHook]) -> DaiHook:
    """Give a hook that talks to the emulator anonymously and repeats nothing."""
    connect(is_anonymous=True, num_retries=0)
    return make_hook(api_endpoint=emulator.endpoint)
