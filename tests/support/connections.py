"""Google Cloud connections, defined in the environment."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import pytest

Connect = Callable[..., None]


def define_connection(monkeypatch: pytest.MonkeyPatch, conn_id: str = "google_cloud_default", **extra: object) -> None:
    """Define a Google Cloud connection by its extra."""
    connection = {"conn_type": "google_cloud_platform", "extra": extra}
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Give a function that defines a connection, ``google_cloud_default`` unless it is named, by its extra."""
    return partial(define_connection, monkeypatch)
