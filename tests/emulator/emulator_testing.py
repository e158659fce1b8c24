"""Helpers of the emulator's tests: a clock that stands still, clients, checks, keys, and the command."""

import logging
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth.transport.requests import Request
from google.oauth2 import service_account

from airflow_dai_provider.emulator import DaiEmulator
from tests.support.threads import wait_until

START = 1_750_000_000.0  # 2025-06-15T15:06:40Z
JSON = "application/json; charset=UTF-8"
HTML = "text/html; charset=UTF-8"
CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"
OTHER_SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
ROBOT = "robot@emulator.iam.gserviceaccount.com"
CALLS = {
    "operations.get": ("GET", "operations/a"),
    "operations.list": ("GET", "operations"),
    "operations.cancel": ("POST", "operations/a:cancel"),
    "operations.delete": ("DELETE", "operations/a"),
    "creatives.create": ("POST", "creatives"),
    "creatives.get": ("GET", "creatives/a"),
    "creatives.delete": ("DELETE", "creatives/a"),
}


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

    def request(self, http_method: str, path: str, **arguments: Any) -> requests.Response:
        url = f"{self.emulator.endpoint}/v1/{path}"
        return self.session.request(http_method, url, **{"timeout": 5, **arguments})

    def get(self, path: str, **params: str | int) -> requests.Response:
        return self.request("GET", path, params=params)

    def stream(self, path: str, **arguments: Any) -> requests.Response:
        """Get a response whose body has not been read yet."""
        return self.request("GET", path, stream=True, **arguments)

    def post(self, path: str, **arguments: Any) -> requests.Response:
        return self.request("POST", path, **arguments)

    def delete(self, path: str) -> requests.Response:
        return self.request("DELETE", path)

    def operation(self, name: str) -> dict[str, Any]:
        response = self.get(name)
        assert response.status_code == 200, response.text
        operation: dict[str, Any] = response.json()
        return operation


def get(emulator: DaiEmulator, path: str = "operations", *, timeout: float = 5, **arguments: Any) -> requests.Response:
    """Send a get over its own connection."""
    return requests.get(f"{emulator.endpoint}/v1/{path}", timeout=timeout, **arguments)


@contextmanager
def raw_connection(emulator: DaiEmulator) -> Iterator[socket.socket]:
    """Connect without speaking HTTP."""
    host, _, port = emulator.host.partition(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        yield connection


def hang_up(emulator: DaiEmulator, http_method: str, path: str) -> None:
    """Send a request, and disconnect as soon as the server has begun to respond to it."""
    before = len(emulator.requests)
    with raw_connection(emulator) as connection:
        connection.sendall(f"{http_method} /v1/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        wait_until(lambda: len(emulator.requests) > before)


def assert_error(
    response: requests.Response, http_status: int, rpc_status: str, words: str = "", reason: str = ""
) -> None:
    """Check that a response is the JSON error of a Google API, no more and no less."""
    error = response.json()["error"]
    assert response.status_code == http_status
    assert response.headers["Content-Type"] == JSON
    assert set(response.json()) == {"error"}
    assert set(error) == {"code", "message", "status"} | ({"details"} if reason else set())
    assert [detail["reason"] for detail in error.get("details", [])] == ([reason] if reason else [])
    assert (error["code"], error["status"]) == (http_status, rpc_status)
    assert words in error["message"]


def assert_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# Authentication


@cache
def private_key(name: str = "the emulator's") -> str:
    """Return an RSA key as PEM, the same for all tests: making one takes longer than most of them."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def credentials_of(emulator: DaiEmulator, *scopes: str) -> service_account.Credentials:
    """Return google-auth's credentials of the emulator's account."""
    key = emulator.service_account_key()
    return service_account.Credentials.from_service_account_info(key, scopes=scopes or [CLOUD_PLATFORM])


def token_of(emulator: DaiEmulator, *scopes: str) -> str:
    """Return a token that google-auth has got from the emulator."""
    credentials = credentials_of(emulator, *scopes)
    credentials.refresh(Request())
    return str(credentials.token)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# The command

Process = subprocess.Popen[str]
Launch = Callable[..., Process]
Serve = Callable[..., tuple[Process, str]]
COMMAND = [sys.executable, "-W", "error", "-m", "airflow_dai_provider.emulator"]
ROOT = Path(__file__).parents[2]


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    """Run the command until it exits by itself."""
    return subprocess.run([*COMMAND, *flags], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


def first_line(process: Process) -> str:
    """Wait for the first line that the command prints."""
    assert process.stdout is not None
    return process.stdout.readline()


def greeting_of(process: Process) -> str:
    """Return the lines that the command prints after the first."""
    assert process.stdout is not None
    return "".join(iter(process.stdout.readline, "Ctrl+C stops it.\n"))
