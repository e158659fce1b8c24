"""Google Cloud connections, defined in the environment."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import BaseHook

from tests.support.clock import Clock

Connect = Callable[..., None]
LookUpFails = Callable[..., None]


def define_connection(monkeypatch: pytest.MonkeyPatch, conn_id: str = "google_cloud_default", **extra: object) -> None:
    """Define a Google Cloud connection by its extra."""
    connection = {"conn_type": "google_cloud_platform", "extra": extra}
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))


@pytest.fixture
def look_up_fails(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> LookUpFails:
    """Give a function that lets Airflow fail to look connections up, for some seconds."""
    real = BaseHook.get_connection

    def fail(error: Exception, seconds: float = float("inf")) -> None:
        until = clock.now + seconds

        def get_connection(conn_id: str) -> Any:
            if clock.now < until:
                raise error
            return real(conn_id)

        monkeypatch.setattr(BaseHook, "get_connection", staticmethod(get_connection))

    return fail


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Give a function that defines a connection, ``google_cloud_default`` unless it is named, by its extra."""
    return partial(define_connection, monkeypatch)
