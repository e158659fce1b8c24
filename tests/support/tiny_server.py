"""A tiny server that can misbehave, and a port at which there is none."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

import pytest


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
    request_body: bytes

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client has hung up, or does not like the certificate
            self.close_connection = True

    def _take(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.request_body = body
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append(TinyRequest(self.command, self.path, headers, body))
        self.server.respond(self)

    do_GET = do_POST = do_DELETE = do_CONNECT = _take

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
        self.server.hung_up.set()
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
        self.hung_up = threading.Event()
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


Serve = Callable[..., TinyServer]


@contextmanager
def refusing_port() -> Iterator[int]:
    """Give a port at which every connection is refused."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Give a port at which every connection is refused."""
    with refusing_port() as port:
        yield port


@pytest.fixture
def tiny_server() -> Iterator[Serve]:
    """Give a function that starts a server which answers every request as the given function does."""
    with ExitStack() as stack:
        yield lambda respond, context=None: stack.enter_context(TinyServer(respond, context))


@pytest.fixture(scope="module")
def one_tiny_server() -> Iterator[TinyServer]:
    """Give a server for all tests of a module; each sets what it answers.

    A token service on it keeps its key: Airflow remembers every key it has seen, to mask it, and slows down with each.
    """
    with TinyServer(lambda exchange: exchange.answer(500)) as server:
        yield server
