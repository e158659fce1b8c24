"""A clock that stands still, a client of plain HTTP, and the check of a JSON error."""

from dataclasses import dataclass
from typing import Any

import requests

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


def assert_error(response: requests.Response, http_status: int, rpc_status: str, words: str = "") -> None:
    """Check that a response is the JSON error of a Google API, no more and no less."""
    error = response.json()["error"]
    assert response.status_code == http_status
    assert response.headers["Content-Type"] == "application/json; charset=UTF-8"
    assert set(response.json()) == {"error"}
    assert set(error) == {"code", "message", "status"}
    assert (error["code"], error["status"]) == (http_status, rpc_status)
    assert words in error["message"]
