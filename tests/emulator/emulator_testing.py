"""A clock that stands still, a client of plain HTTP, the check of a JSON error, keys, and a proxy that tunnels."""

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from airflow_dai_provider.emulator import DaiEmulator

START = 1_750_000_000.0  # 2025-06-15T15:06:40Z


@dataclass
class Clock:
    """Epoch seconds that pass only when told to."""

    now: float = START

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Client:
    """Plain HTTP to one emulator, over one session."""

    emulator: DaiEmulator
    session: requests.Session

    def get(self, path: str, **params: str | int) -> requests.Response:
        return self.session.get(f"{self.emulator.endpoint}/v1/{path}", params=params, timeout=5)

    def post(self, path: str, **arguments: Any) -> requests.Response:
        return self.session.post(f"{self.emulator.endpoint}/v1/{path}", timeout=5, **arguments)

    def delete(self, path: str) -> requests.Response:
        return self.session.delete(f"{self.emulator.endpoint}/v1/{path}", timeout=5)

    def operation(self, name: str) -> dict[str, Any]:
        response = self.get(name)
        assert response.status_code == 200, response.text
        operation: dict[str, Any] = response.json()
        return operation


def assert_error(
    response: requests.Response, http_status: int, rpc_status: str, words: str = "", reason: str = ""
) -> None:
    """Check that a response is the JSON error of a Google API, no more and no less."""
    error = response.json()["error"]
    assert response.status_code == http_status
    assert response.headers["Content-Type"] == "application/json; charset=UTF-8"
    assert set(response.json()) == {"error"}
    assert set(error) == {"code", "message", "status"} | ({"details"} if reason else set())
    assert [detail["reason"] for detail in error.get("details", [])] == ([reason] if reason else [])
    assert (error["code"], error["status"]) == (http_status, rpc_status)
    assert words in error["message"]


@cache
def private_key(name: str = "the emulator's") -> str:
    """Return an RSA key as PEM, the same for all tests: making one takes longer than most of them."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


class _Exchange(socketserver.StreamRequestHandler):
    server: "_TunnelServer"

    def handle(self) -> None:
        self.server.asked.append(self.rfile.readline().decode().split()[1])
        while self.rfile.readline().strip():
            pass
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with socket.create_connection(self.server.target) as other:
            self.server.open.append(self.connection)
            back = threading.Thread(target=_pump, args=(other, self.connection))
            back.start()
            _pump(self.connection, other)
            back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while content := source.recv(65536):
            target.sendall(content)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


class _TunnelServer(socketserver.ThreadingTCPServer):
    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Exchange)
        self.target = target
        self.asked: list[str] = []
        self.open: list[socket.socket] = []


@contextmanager
def tunnel_to(emulator: DaiEmulator) -> Iterator[tuple[str, list[str]]]:
    """Give an HTTP proxy whose tunnels all end at an emulator: its URL, and the addresses it was asked for."""
    host, _, port = emulator.host.partition(":")
    with _TunnelServer((host, int(port))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", server.asked
        finally:
            server.shutdown()
            thread.join()
            for connection in server.open:  # a client may keep its own end for later
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
