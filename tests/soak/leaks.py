"""Leaked threads, sockets and asyncio tasks."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from pathlib import Path

#: Seconds that closing connections and threads have.
PATIENCE = 5.0


class Leaks:
    """The threads and sockets that are left after the work, in addition to those before it."""

    def __init__(self) -> None:
        self._threads = threading.active_count()
        self._sockets = count_sockets()
        #: One entry for each leak, by the row of the table.
        self.found: dict[str, list[str]] = {}

    def find(self, tasks: int) -> None:
        """
        Count what is left after the work, once it has had time to close.

        :param tasks: the number of tasks left on the event loop.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            gc.collect()
            threads = threading.active_count() - self._threads
            sockets = count_sockets() - self._sockets
            if (threads <= 0 and sockets <= 0) or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        for label, number in (("threads", threads), ("connections", sockets), ("tasks", tasks)):
            self.found[f"leaked {label}"] = [f"{number} {label}"] * max(0, number)


async def tasks_left() -> int:
    """Return the number of other tasks left on this event loop, once they have had time to end."""
    deadline = time.monotonic() + PATIENCE
    while (left := len(asyncio.all_tasks()) - 1) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return left


def count_sockets() -> int:
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(descriptor.readlink()))
        except FileNotFoundError:  # the descriptor of this listing
            continue
    return sum(link.startswith("socket:") for link in links)
