"""A running emulator, a clock that stands still, and two clients."""

import http.client
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from emulator_testing import Client, Clock

from airflow_dai_provider.emulator import DaiEmulator


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def emulator(clock: Clock) -> Iterator[DaiEmulator]:
    with DaiEmulator(ingest_seconds=10, clock=clock) as running:
        yield running


@pytest.fixture
def client(emulator: DaiEmulator) -> Iterator[Client]:
    with requests.Session() as session:
        session.trust_env = False
        yield Client(emulator, session)


@pytest.fixture
def raw(emulator: DaiEmulator) -> Callable[..., tuple[int, str, Any]]:
    """Send a request whose path nobody normalises; returns status, content type and body."""

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
