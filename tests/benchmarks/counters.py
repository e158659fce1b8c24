"""Counters in a memory-mapped file: the server writes them, and the clients read them without a request."""

from __future__ import annotations

import mmap
from pathlib import Path

NAMES = ("connections", "polls", "operations", "tokens", "token_connections", "pages")


class Counters:
    """
    The counters of the server.

    :param path: the file, created if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(8 * len(NAMES)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._values = memoryview(self._map).cast("Q")

    def add(self, name: str) -> None:
        self._values[NAMES.index(name)] += 1

    def read(self) -> dict[str, int]:
        return dict(zip(NAMES, self._values, strict=True))

    def __getitem__(self, name: str) -> int:
        return self._values[NAMES.index(name)]
