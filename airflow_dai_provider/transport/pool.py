"""
Who shares a session and a token: all that ask the same endpoint with the same connection on one event loop.

The first opens it and the last closes it. A changed connection is another key, so the next wait uses it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

from asgiref.sync import sync_to_async

from airflow_dai_provider.transport.async_session import AiohttpTransport


class _Shared:
    def __init__(self) -> None:
        self.leases = 0
        self.opening = asyncio.Lock()
        self.transport: AiohttpTransport | None = None


_BY_LOOP: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, _Shared]] = WeakKeyDictionary()

# The event loop itself holds its tasks only weakly.
_CLOSING: set[asyncio.Task[None]] = set()


@asynccontextmanager
async def lease(key: Hashable, make: Callable[[], AiohttpTransport]) -> AsyncIterator[AiohttpTransport]:
    """
    Hold a transport, which is open as long as anybody holds it.

    :param key: what makes two transports the same.
    :param make: makes one; called in a thread, by the first only.
    """
    all_shared = _BY_LOOP.setdefault(asyncio.get_running_loop(), {})
    shared = all_shared.setdefault(key, _Shared())
    shared.leases += 1
    try:
        async with shared.opening:
            if shared.transport is None:
                shared.transport = await (await sync_to_async(make, thread_sensitive=False)()).open()
        yield shared.transport
    finally:
        shared.leases -= 1
        if not shared.leases:
            # Taken out before the first await, so that whoever comes now opens another.
            del all_shared[key]
            if shared.transport:
                closing = asyncio.create_task(shared.transport.close())
                _CLOSING.add(closing)
                closing.add_done_callback(_CLOSING.discard)
                # Whoever is cancelled here again does not leave the session open.
                await asyncio.shield(closing)
