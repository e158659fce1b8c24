"""Trigger for ingests of Google's Video Creative Ingest API (DAI): one wait in the triggerer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_dai_provider.api.polling import MAX_OUTAGE
from airflow_dai_provider.tasks.cancel_requests import request_cancellation
from airflow_dai_provider.tasks.deferral import error_event, operation_event
from airflow_dai_provider.tasks.xcom import XCOM_TRY_NUMBER
from airflow_dai_provider.version_compat import TRIGGERS_HAVE_ON_KILL, task_instance_state

if TYPE_CHECKING:
    from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook

#: Seconds after which ``on_kill`` gives up waiting for the cancel request; Airflow allows 30.
KILL_SECONDS = 25.0

# Threads of their own, since all triggers share the default ones for their look-ups. They start with the first kill.
_KILL_THREADS = ThreadPoolExecutor(10, thread_name_prefix="dai-kill")
# A cancellation can outlive its trigger, and the event loop holds its tasks only weakly.
_KILLS: set[asyncio.Task[None]] = set()


class DaiOperationTrigger(BaseTrigger):
    """Wait in the triggerer until an operation has finished; fires once.

    The payload of the event is that of :mod:`airflow_dai_provider.tasks.deferral`. Polls are quick at first (1 s,
    growing 1.5-fold up to ``poll_interval``). All waits of a triggerer that share a connection and an endpoint share
    one HTTP session and one token. The deadline counts from ``started``, so a restart of the triggerer does not move
    it.

    :param operation_name: ``operations/...``.
    :param poll_interval: the most seconds between two polls.
    :param started: when the wait began, in seconds of the epoch; now, if it is not given.
    :param timeout: seconds to wait at most, counted from ``started``, or None for no limit.
    :param max_outage: seconds that the service may be unavailable (300), or None for no limit.
    :param responded: whether the API has responded to the task before: from then on a front end's error page is an
        outage, also after a restart of the triggerer.
    :param cancel_on_kill: whether the operation is cancelled when the deferred task is killed: marked, cleared, or
        stopped with its run. It is not cancelled when the triggerer stops, restarts or hands over.
    :param gcp_conn_id: the Google Cloud connection.
    :param impersonation_chain: service account(s) to impersonate.
    :param api_endpoint: ``host``, ``host:port`` or ``https://host:port`` instead of Google's own.
    """

    def __init__(
        self,
        operation_name: str,
        *,
        poll_interval: float = 30.0,
        started: float | None = None,
        timeout: float | None = None,
        max_outage: float | None = MAX_OUTAGE,
        responded: bool = False,
        cancel_on_kill: bool = False,
        gcp_conn_id: str = "google_cloud_default",
        impersonation_chain: str | Sequence[str] | None = None,
        api_endpoint: str | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operation_name = operation_name
        self.poll_interval = poll_interval
        self.started = time.time() if started is None else started
        self.timeout = timeout
        self.max_outage = max_outage
        self.responded = responded
        self.cancel_on_kill = cancel_on_kill
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.api_endpoint = api_endpoint
        self._hook: DaiHook | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the path of this class and every argument of its constructor."""
        return (
            "airflow_dai_provider.triggers.dai.DaiOperationTrigger",
            {
                "operation_name": self.operation_name,
                "poll_interval": self.poll_interval,
                "started": self.started,
                "timeout": self.timeout,
                "max_outage": self.max_outage,
                "responded": self.responded,
                "cancel_on_kill": self.cancel_on_kill,
                "gcp_conn_id": self.gcp_conn_id,
                "impersonation_chain": self.impersonation_chain,
                "api_endpoint": self.api_endpoint,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until the operation has finished, and fire."""
        try:
            event = TriggerEvent(await self._wait())
        except asyncio.CancelledError:
            if not TRIGGERS_HAVE_ON_KILL:
                await self.on_kill()
            raise
        yield event

    async def on_kill(self) -> None:
        """Request the cancellation, if told to, when a user has killed the deferred task.

        The triggerer cancels this coroutine again about once a second, which is too short for a slow service. So the
        work is a task of its own, and this only waits for it: each cancellation interrupts the wait, which begins again
        until the work is done or the time is up. After that the work still goes on, unobserved.
        """
        if not self.cancel_on_kill:
            return
        kill = asyncio.create_task(self._cancel_unless_deferred())
        _KILLS.add(kill)
        kill.add_done_callback(_KILLS.discard)
        until = time.monotonic() + KILL_SECONDS
        while not kill.done() and (left := until - time.monotonic()) > 0:
            with suppress(asyncio.CancelledError):
                await asyncio.wait({kill}, timeout=left)
        if not kill.done():
            self.log.error("%s may still run: no response to its cancellation in time.", self.operation_name)

    async def _wait(self) -> dict[str, Any]:
        """Wait, and return the payload of the event."""
        try:
            async with await sync_to_async(self._make_hook, thread_sensitive=False)() as hook:
                if self.cancel_on_kill:
                    # Made now: a kill leaves little time to look up the connection and to fetch a token. It has a
                    # session of its own, since the shared one is closed with the last wait, perhaps this one.
                    self._hook = await hook.synchronous_hook()
                operation = await hook.wait_for_operation(
                    self.operation_name,
                    started=self.started,
                    timeout=self.timeout,
                    poll_interval=self.poll_interval,
                    max_outage=self.max_outage,
                    responded=self.responded,
                )
        except Exception as error:
            self.log.warning("The wait for %s has failed: %s", self.operation_name, error)
            return error_event(self.operation_name, error)
        self.log.info("%s.", operation)
        return operation_event(self.operation_name, operation)

    async def _cancel_unless_deferred(self) -> None:
        """Request the cancellation, unless the task still waits in another triggerer.

        Airflow also kills a trigger that another triggerer has taken over, so the state of the task decides.
        """
        try:
            if await task_instance_state(self.task_instance, XCOM_TRY_NUMBER) == "deferred":
                self.log.info("Leaving %s alone: its task is still deferred.", self.operation_name)
                return
            self.log.info("The task that waits for %s was killed.", self.operation_name)
            await sync_to_async(self._request_cancellation, thread_sensitive=False, executor=_KILL_THREADS)()
        except Exception:
            self.log.exception("%s may still run: its task was killed, but it was not cancelled", self.operation_name)

    def _request_cancellation(self) -> None:
        from airflow_dai_provider.hooks.dai import DaiHook

        # Without a hook the kill came before the wait had begun.
        hook = self._hook or DaiHook(self.gcp_conn_id, self.impersonation_chain, self.api_endpoint)
        with hook:
            request_cancellation(hook, self.operation_name, self.log)

    def _make_hook(self) -> DaiAsyncHook:
        """Make the hook; called in a thread, since its imports would block the event loop."""
        from airflow_dai_provider.hooks.dai import DaiAsyncHook

        return DaiAsyncHook(self.gcp_conn_id, self.impersonation_chain, self.api_endpoint)
