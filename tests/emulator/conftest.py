"""A running emulator, a clock that stands still, and two clients."""

import http.client
import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import requests
from emulator_testing import COMMAND, ROOT, Client, Clock, Launch, Process, Serve, first_line, private_key
from google.auth import credentials

from airflow_dai_provider.emulator import DaiEmulator


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def emulator(clock: Clock) -> Iterator[DaiEmulator]:
    with DaiEmulator(ingest_seconds=10, clock=clock) as running:
        yield running


@pytest.fixture
def real_clock() -> Clock:
    """Give a clock that stands still near the real time, which google-auth signs with."""
    return Clock(time.time() // 1)


@pytest.fixture
def guarded(real_clock: Clock) -> Iterator[DaiEmulator]:
    """Start an emulator that requires tokens; they are valid for 900 s."""
    with DaiEmulator(
        authentication=True, token_lifetime=900, ingest_seconds=1e6, private_key=private_key(), clock=real_clock
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def _stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep google-auth from asking Google, in the background, which regions an account may use."""
    # Earlier versions do not ask.
    if owner := getattr(credentials, "CredentialsWithRegionalAccessBoundary", None):
        monkeypatch.setattr(owner, "_maybe_start_regional_access_boundary_refresh", lambda *_: None)


@pytest.fixture
def client(emulator: DaiEmulator) -> Iterator[Client]:
    with requests.Session() as session:
        session.trust_env = False
        yield Client(emulator, session)


@pytest.fixture
def raw(emulator: DaiEmulator) -> Callable[..., tuple[int, str, Any]]:
    """Send a request whose path no client normalises; returns status, content type and body."""

    def send(http_method: str, path: str, body: bytes | None = None) -> tuple[int, str, Any]:
        connection = http.client.HTTPConnection(emulator.host, timeout=5)
        try:
            connection.request(http_method, path, body)
            response = connection.getresponse()
            content, content_type = response.read(), response.headers["Content-Type"]
        finally:
            connection.close()
        is_json = content_type.startswith("application/json")
        return response.status, content_type, json.loads(content) if is_json else content.decode()

    return send


@pytest.fixture
def creative() -> dict[str, Any]:
    media = {
        "uri": "https://media.example/ad.mp4",
        "delivery": "DELIVERY_PROGRESSIVE",
        "mimeType": "video/mp4",
    }
    return {"adSystem": "tests", "adTitle": "An ad", "mediaFiles": [media]}


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    """Put back the handlers of the test process that the command replaces."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Start the command on a free port."""
    with ExitStack() as stack:

        def start(*flags: str) -> Process:
            process = subprocess.Popen(
                [*COMMAND, "--port", "0", *flags],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture
def serve(launch: Launch) -> Serve:
    """Start the command on a free port; returns the process and the endpoint it has printed."""

    def start(*flags: str) -> tuple[Process, str]:
        process = launch(*flags)
        line = first_line(process)
        match = re.fullmatch(r"export DAI_EMULATOR_HOST=(127\.0\.0\.1:[1-9]\d*)\n", line)
        assert match, line
        return process, f"http://{match[1]}/v1"

    return start
