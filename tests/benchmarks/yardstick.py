"""
A fixed piece of work whose CPU time shows how fast this process runs at the moment.

Other load on the machine can slow a process by half and more. It slows the yardstick equally, so costs are compared in
yardsticks, timed beside the polls in the same process.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass

_DOCUMENT = json.dumps({"name": "operations/1", "metadata": {f"key-{number}": "v" * 40 for number in range(20)}})


@dataclass
class _Pair:
    first: int
    second: int

    def total(self) -> int:
        return self.first + self.second


class Yardstick:
    """Work similar to a poll: JSON, small objects, method calls, text, system calls."""

    def __init__(self) -> None:
        self._nowhere = os.open(os.devnull, os.O_WRONLY)

    def measure(self) -> float:
        """Return the seconds of CPU that the work takes, about half a millisecond."""
        began = time.thread_time()
        for _ in range(40):
            document = json.loads(_DOCUMENT)
            total = sum(_Pair(len(key), len(value)).total() for key, value in document["metadata"].items())
            os.write(self._nowhere, f"{document['name']} is {total}\n".encode())
        return time.thread_time() - began
