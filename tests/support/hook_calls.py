"""Calls of DaiHook that several test modules make."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_dai_provider.api.errors import Code
from airflow_dai_provider.api.operation import OperationState
from airflow_dai_provider.api.retry import THROTTLED, THROTTLED_OR_UNAVAILABLE, TRANSIENT
from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.hooks.dai import DaiHook

if TYPE_CHECKING:
    from conftest import Log


NAME = "operations/ingest"
URL = "https://media.example/ad.mp4"
CREATIVE = {"adSystem": "t", "mezzanines": [{"uri": URL, "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}]}

#: What each method of the hook calls, and after which codes it may call again (the table of the API's facts).
CALLS: dict[str, tuple[Callable[[DaiHook], object], frozenset[Code]]] = {
    "operations.get": (lambda hook: hook.get_operation(NAME), TRANSIENT),
    "operations.cancel": (lambda hook: hook.cancel_operation(NAME), TRANSIENT),
    "operations.list": (lambda hook: list(hook.list_operations()), TRANSIENT),
    "operations.delete": (lambda hook: hook.delete_operation(NAME), THROTTLED_OR_UNAVAILABLE),
    "creatives.create": (lambda hook: hook.create_creative(CREATIVE), THROTTLED),
    "creatives.get": (lambda hook: hook.get_creative("creatives/gv-1"), TRANSIENT),
    "creatives.delete": (lambda hook: hook.delete_creative("creatives/gv-1"), THROTTLED_OR_UNAVAILABLE),
}


def cases(table: dict[str, Any]) -> dict[str, Any]:
    """Give a table's values to parametrize, with its keys as ids."""
    return {"argvalues": list(table.values()), "ids": list(table)}


def sent(emulator: DaiEmulator) -> list[str | None]:
    """Return the methods of the API that were called."""
    return [request.method for request in emulator.requests]


def lines(log: Log, words: str) -> list[str]:
    """Return the lines of the log, the emulator's own excepted, that hold these words."""
    return [line for line in log.ours if words in line]


def operation(**fields: object) -> bytes:
    return json.dumps({"name": NAME, **fields}).encode()


RUNNING, SUCCEEDED, FAILED, CANCELLED = OperationState
