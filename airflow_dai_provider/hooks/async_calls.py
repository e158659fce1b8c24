"""How the asynchronous hook calls the service: one session that all waits of an event loop share, and retries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from random import random
from typing import Any, Self, TypeVar
from weakref import WeakKeyDictionary

from airflow.providers.google.common.hooks.base_google import GoogleBaseAsyncHook
from asgiref.sync import sync_to_async

from airflow_dai_provider import metrics
from airflow_dai_provider.api import rest
from airflow_dai_provider.api.errors import ServiceError
from airflow_dai_provider.api.parameters import Duration
from airflow_dai_provider.api.retry import Retry, as_outage
from airflow_dai_provider.hooks.sync import DaiHook
from airflow_dai_provider.transport.aiohttp_session import AiohttpTransport
from airflow_dai_provider.transport.google_errors import typed
from airflow_dai_provider.transport.session_pool import lease
from airflow_dai_provider.transport.shared_run import RecentRuns
from airflow_dai_provider.transport.shared_token import Token

T = TypeVar("T")

#: Seconds for which the look-up of a connection serves all waits that begin.
LOOKED_UP_FOR = 1.0
_LOOK_UPS: WeakKeyDictionary[asyncio.AbstractEventLoop, RecentRuns[DaiHook]] = WeakKeyDictionary()


class DaiAsyncCallingHook(GoogleBaseAsyncHook):
    """Hold the shared session, and send requests with retries.

    The parameters are those of :class:`airflow_dai_provider.hooks.dai.DaiAsyncHook`.
    """

    sync_hook_class = DaiHook

    #: Replaced in tests, which replace nothing but time and randomness. The clock is the epoch's, since a wait can
    #: outlive the process.
    _sleep: Callable[[float], Any] = staticmethod(asyncio.sleep)
    _clock: Callable[[], float] = staticmethod(time.time)
    #: For what lasts no longer than a call or a pause.
    _monotonic: Callable[[], float] = staticmethod(time.monotonic)
    _random: Callable[[], float] = staticmethod(random)

    def __init__(
        self,
        gcp_conn_id: str = "google_cloud_default",
        impersonation_chain: str | Sequence[str] | None = None,
        api_endpoint: str | None = None,
        timeout: Duration = 10.0,
        *,
        retry_timeout: Duration = 60.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            gcp_conn_id=gcp_conn_id,
            impersonation_chain=impersonation_chain,
            api_endpoint=api_endpoint,
            timeout=timeout,
            retry_timeout=retry_timeout,
            **kwargs,
        )
        self._own_hook: DaiHook | None = None
        self._holders = 0
        self._held = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._transport: AiohttpTransport | None = None
        self._token: Token | None = None
        # While the transport is open: notes how many operations the wait of this hook is for.
        self._note_operations: Callable[[int], None] | None = None

    @property
    def responded(self) -> bool:
        """Whether the API has responded to this hook: the endpoint is right, and the account has access."""
        return self._get_sync_hook().responded

    @responded.setter
    def responded(self, responded: bool) -> None:
        self._get_sync_hook().responded = responded

    async def get_sync_hook(self) -> DaiHook:
        """Return the hook that looks up the connection, when it is needed first."""
        return self._get_sync_hook()

    def _get_sync_hook(self) -> DaiHook:
        if self._own_hook is None:
            self._own_hook = self.sync_hook_class(**self._hook_kwargs)
        return self._own_hook

    async def synchronous_hook(self) -> DaiHook:
        """Return a hook for a thread, with the same connection, and the token that this hook used last."""
        hook = self._get_sync_hook()
        return hook.sibling(self._token) if self._token else hook

    async def __aenter__(self) -> Self:
        self._holders += 1
        # An error here occurs again in the first call, which retries it.
        with suppress(ServiceError):
            await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._holders = max(0, self._holders - 1)
        if not self._holders:
            self._transport = self._note_operations = None
            held, self._held = self._held, AsyncExitStack()
            await held.aclose()

    @asynccontextmanager
    async def _holding(self) -> AsyncIterator[None]:
        """Hold the session that a call opens until the block is over."""
        self._holders += 1
        try:
            yield
        finally:
            await self.__aexit__()

    async def _call_once(self, request: rest.Request[T]) -> T:
        async with self._holding():
            return await self._call(request)

    async def _call(self, request: rest.Request[T]) -> T:
        """Send a request, and again after errors that allow it; raise the last ServiceError."""
        retry: Retry | None = None
        started = self._monotonic()
        until = started + self._get_sync_hook().retry_timeout
        while True:
            try:
                return await self._send(request, until)
            except ServiceError as error:
                last = typed(as_outage(error, self.responded, request.retryable_codes))
            retry = retry or self._get_sync_hook().make_retry(request.retryable_codes, started)
            try:
                seconds, line = retry.after(last, self._monotonic())
            except ServiceError as failure:
                raise typed(failure) from failure.__cause__
            self.log.warning("%s", line)
            metrics.count_retry()
            await self._sleep(seconds)

    async def _send(self, request: rest.Request[T], until: float) -> T:
        """Send a request once.

        :param until: when to send it at the latest, also when the service has asked for a pause.
        """
        result = await (await self._open()).call(request, until)
        self.responded = True
        return result

    async def _open(self) -> AiohttpTransport:
        """Return the transport that this hook holds until its last call or block is over."""
        async with self._opening:
            if self._transport is None:
                self._transport = await self._held.enter_async_context(self._lease())
                self._note_operations = self._held.enter_context(self._transport.polls.joined())
                self._token = self._transport.token
            return self._transport

    @asynccontextmanager
    async def _lease(self) -> AsyncIterator[AiohttpTransport]:
        hook = self._get_sync_hook()

        def make() -> AiohttpTransport:
            return AiohttpTransport(hook.endpoint, hook.shared_token(), hook.timeout, self._monotonic, self._sleep)

        if not hook.looked_up:
            hook.adopt(await self._look_up(hook))
        key = hook.sharing_key
        async with lease(key, make) as transport:
            yield transport

    async def _look_up(self, hook: DaiHook) -> DaiHook:
        """Return a hook with the same arguments, whose connection was looked up, at most a second ago."""
        runs = _LOOK_UPS.setdefault(asyncio.get_running_loop(), RecentRuns(LOOKED_UP_FOR, self._monotonic))

        def look_up() -> DaiHook:
            # Before the key is computed from it: Python 3.11 computes the keys of all hooks one after the other.
            hook.extras  # noqa: B018
            hook.sharing_key  # noqa: B018
            return hook

        async def start() -> DaiHook:
            # Not thread-sensitive, since other look-ups can hold up that thread.
            return await sync_to_async(look_up, thread_sensitive=False)()

        return await runs.run(hook.given, start)
