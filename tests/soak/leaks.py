"""What is left over when all work is done: threads, sockets, asyncio tasks."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path

#: Seconds within which closed connections and ended threads are gone.
PATIENCE = 5.0


class Leaks:
    """What there is before the work, and what is more afterwards."""

    def __init__(self) -> None:
        self._threads = threading.active_count()
        self._sockets = count_sockets()
        #: By the row of the table, one entry for each.
        self.found: dict[str, list[str]] = {}

    def look(self, tasks: int) -> None:
        """
        Look, when all work is done and what may go has had time to.

        :param tasks: how many the event loop has left.
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


def count_sockets() -> int:
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(descriptor.readlink()))
        except FileNotFoundError:  # the descriptor of this very look
            continue
    return sum(link.startswith("socket:") for link in links)
