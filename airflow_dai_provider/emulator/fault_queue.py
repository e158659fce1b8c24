"""The faults still to come, and how many there have been."""

import random
import secrets
import threading
from collections import Counter
from dataclasses import dataclass

from airflow_dai_provider.emulator.faults import Fault


@dataclass
class _Waiting:
    fault: Fault
    left: int | None
    chance: random.Random


class FaultQueue:
    """The faults still to come, in the order of injection. Safe to use from several threads.

    Each fault with a rate draws from a sequence of its own, one number for each request that it is meant for: with
    the same seed and the same order of injection, the same of these requests are hit.

    :param seed: what the sequences are made from, None for one of its own choice.
    """

    def __init__(self, seed: int | None = None) -> None:
        """Start without faults."""
        self.seed = secrets.randbits(32) if seed is None else seed
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._added = 0
        self._injected: Counter[str] = Counter()

    @property
    def injected(self) -> dict[str, int]:
        """How many requests have been hit, by :attr:`Fault.kind`."""
        with self._lock:
            return dict(self._injected)

    @property
    def waiting(self) -> list[tuple[Fault, int | None]]:
        """The faults still to come, and how often each."""
        with self._lock:
            return [(waiting.fault, waiting.left) for waiting in self._waiting]

    def add(self, fault: Fault) -> None:
        """Add a fault behind the others.

        :param fault: the fault.
        """
        with self._lock:
            self._added += 1
            chance = random.Random(f"{self.seed}/{self._added}")  # noqa: S311 (reproducible, not secret)
            self._waiting.append(_Waiting(fault, fault.times, chance))

    def clear(self) -> None:
        """Drop the faults still to come; the counts stay."""
        with self._lock:
            self._waiting.clear()

    def reset(self) -> None:
        """Start anew: drop the faults and the counts, and begin the sequences again."""
        with self._lock:
            self._waiting.clear()
            self._injected.clear()
            self._added = 0

    def take(self, method: str | None, name: str | None) -> Fault | None:
        """Use the first fault that hits a request.

        :param method: method that the request means.
        :param name: resource name in its path.
        :return: the fault, None if there is none.
        """
        with self._lock:
            for waiting in self._waiting:
                if waiting.fault.matches(method, name) and _falls_on_it(waiting):
                    self._injected[waiting.fault.kind] += 1
                    if waiting.left is not None:
                        waiting.left -= 1
                    if waiting.left == 0:
                        self._waiting.remove(waiting)
                    return waiting.fault
            return None


def _falls_on_it(waiting: _Waiting) -> bool:
    rate = waiting.fault.rate
    return rate is None or waiting.chance.random() < rate
