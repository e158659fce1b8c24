"""What a test's own thread does: wait for another one, and be interrupted by a signal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def wait_until(condition: Callable[[], object]) -> None:
    """Wait in real time for something that another thread or program does soon."""
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.002)
    assert condition()


@contextmanager
def untraced() -> Iterator[None]:
    """Measure no coverage in this thread: it takes a lock at each new file, also in a signal handler.

    A handler that interrupts the thread there would wait for the lock forever, and one that raises would leave it
    locked.
    """
    trace = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(trace)
