"""The pool of sessions: one for all waits that use the same endpoint and connection on one event loop.

The first wait opens the session and the last one closes it. A changed connection has another key, so the next wait
uses it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from functools import partial
from weakref import WeakKeyDictionary

from asgiref.sync import sync_to_async

from airflow_dai_provider.transport.aiohttp_session import AiohttpTransport
from airflow_dai_provider.transport.shared_run import SharedRuns


class _Shared:
    """One transport, and how many callers hold it."""

    def __init__(self) -> None:
        self.leases = 0
        self.transport: AiohttpTransport | None = None
        self._opening: SharedRuns[AiohttpTransport] = SharedRuns()

    async def open(self, make: Callable[[], AiohttpTransport]) -> AiohttpTransport:
        return self.transport or await self._opening.run(None, partial(self._open, make))

    async def close(self) -> None:
        await self._opening.close()
        if self.transport:
            await self.transport.close()

    async def _open(self, make: Callable[[], AiohttpTransport]) -> AiohttpTransport:
        self.transport = await (await sync_to_async(make, thread_sensitive=False)()).open()
        return self.transport


_BY_LOOP: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, _Shared]] = WeakKeyDictionary()

# The event loop itself holds its tasks only weakly.
_CLOSING: set[asyncio.Task[None]] = set()


@asynccontextmanager
async def lease(key: Hashable, make: Callable[[], AiohttpTransport]) -> AsyncIterator[AiohttpTransport]:
    """Hold a transport, which stays open as long as one caller holds it.

    :param key: equal for all callers that share a transport.
    :param make: makes one; called in a thread, for the first caller only.
    """
    all_shared = _BY_LOOP.setdefault(asyncio.get_running_loop(), {})
    shared = all_shared.setdefault(key, _Shared())
    shared.leases += 1
    try:
        yield await shared.open(make)
    finally:
        shared.leases -= 1
        if not shared.leases:
            # Removed before the first await, so that the next caller opens another.
            del all_shared[key]
            closing = asyncio.create_task(shared.close())
            _CLOSING.add(closing)
            closing.add_done_callback(_CLOSING.discard)
            # A caller that is cancelled here again does not leave the session open.
            await asyncio.shield(closing)
