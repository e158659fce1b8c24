"""A run that all callers on an event loop share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SharedRuns(Generic[T]):
    """Runs of coroutines, one at a time for each key. All callers of one get its result or error, the next starts one.

    A caller that is cancelled does not cancel it.
    """

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[T]] = {}

    async def run(self, key: Hashable, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Wait for the run with this key, which is started if there is none."""
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = asyncio.create_task(start())
            running.add_done_callback(partial(self._finished, key))
        return await asyncio.shield(running)

    async def close(self) -> None:
        """Wait for all that runs: a thread cannot be stopped."""
        if self._running:
            await asyncio.wait(self._running.values())

    def _finished(self, key: Hashable, run: asyncio.Task[T]) -> None:
        if self._running.get(key) is run:
            del self._running[key]
        if not run.cancelled():
            run.exception()  # read here too, since all callers may have been cancelled


class RecentRuns(SharedRuns[T]):
    """Shared runs whose results are reused for a while after the run began. An error is not reused.

    A run that takes longer than that serves only the callers of that period: what it read may have changed since.

    :param lasts: for how many seconds.
    :param clock: returns monotonic time in seconds.
    """

    def __init__(self, lasts: float, clock: Callable[[], float]) -> None:
        super().__init__()
        self._lasts = lasts
        self._clock = clock
        self._began: dict[Hashable, float] = {}
        self._results: dict[Hashable, tuple[float, T]] = {}

    async def run(self, key: Hashable, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the recent result with this key, or wait for the run."""
        now = self._clock()
        self._results = {key: kept for key, kept in self._results.items() if now < kept[0] + self._lasts}
        if key in self._results:
            return self._results[key][1]
        if now >= self._began.get(key, now) + self._lasts:
            self._running.pop(key, None)
        if key not in self._running:
            self._began[key] = now
        return await super().run(key, partial(self._keep, key, now, start))

    async def _keep(self, key: Hashable, began: float, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        result = await start()
        self._results[key] = began, result
        return result
