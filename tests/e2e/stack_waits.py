"""Wait for something under test, for a limited time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tests.support.interruption import interrupted


class StackError(Exception):
    """The Airflow under test did not do in time what it should."""


def wait_until(what: str, check: Callable[[], Any], seconds: float, pause: float = 0.5) -> Any:
    """Return the first true result of ``check``; raise StackError when there is none in time, or on interruption."""
    deadline = time.monotonic() + seconds
    while not (result := check()):
        if time.monotonic() > deadline:
            raise StackError(f"timed out after {seconds:g} s of waiting for {what}")
        if interrupted.wait(pause):
            raise StackError(f"interrupted while waiting for {what}")
    return result
