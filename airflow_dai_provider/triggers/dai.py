"""Trigger for ingests of Google's Video Creative Ingest API (DAI): one wait in the triggerer, for one or many."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_dai_provider.api.many_wait import ManyWait
from airflow_dai_provider.api.parameters import Duration, check_flag
from airflow_dai_provider.api.polling import MAX_OUTAGE
from airflow_dai_provider.tasks.cancel_requests import problems_of, request_cancellation, request_cancellations
from airflow_dai_provider.tasks.events import (
    describe_names,
    error_event,
    many_event,
    operation_event,
    pack_names,
    unpack_names,
)
from airflow_dai_provider.tasks.failures import check_expected_states, log_failure
from airflow_dai_provider.tasks.one_or_many import check_operation_names, given_form, one_or_many
from airflow_dai_provider.tasks.xcom import XCOM_STARTED
from airflow_dai_provider.version_compat import TRIGGERS_HAVE_ON_KILL, USER_ACTION, task_instance_state

if TYPE_CHECKING:
    from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook

#: Seconds after which ``on_kill`` gives up waiting for the cancel request; Airflow allows 30.
KILL_SECONDS = 25.0
_UNNAMED = "The operations of this trigger"

# Threads of their own, since all triggers share the default ones for their look-ups. They start with the first kill.
_KILL_THREADS = ThreadPoolExecutor(10, thread_name_prefix="dai-kill")
# A cancellation can outlive its trigger, and the event loop holds its tasks only weakly.
_KILLS: set[asyncio.Task[None]] = set()


class DaiOperationTrigger(BaseTrigger):
    """Wait in the triggerer until an operation has finished, or each of a list; fires once.

    The payload of the event is that of :mod:`airflow_dai_provider.tasks.events`. Polls are quick at first (1 s,
    growing 1.5-fold up to ``poll_interval``). All waits of a triggerer that share a connection and an endpoint share
    one HTTP session and one token. The deadline counts from ``started``, so a restart of the triggerer does not move
    it.

    :param operation_name: ``operations/...``, or a list, also as its text. A list is stored as a compressed text, which
        counts as the list too.
    :param poll_interval: the most seconds between two polls.
    :param started: when the wait began, in seconds since the epoch; now, if it is not given.
    :param timeout: seconds to wait at most, counted from ``started``, or None for no limit.
    :param max_outage: seconds that the service may be unavailable (300), or None for no limit.
    :param cancel_on_kill: whether what has not finished is cancelled when the deferred task is killed: marked, cleared,
        or stopped with its run. It is not cancelled when the triggerer stops, restarts or hands over.
    :param expected_states: for a list, the expected final states; any other is logged as a warning when it is seen.
        None expects every state.
    :param gcp_conn_id: the Google Cloud connection.
    :param impersonation_chain: service account(s) to impersonate.
    :param api_endpoint: ``host``, ``host:port`` or ``https://host:port`` instead of Google's own.
    """

    def __init__(
        self,
        operation_name: str | list[str],
        *,
        poll_interval: Duration = 30.0,
        started: float | None = None,
        timeout: Duration | None = None,
        max_outage: Duration | None = MAX_OUTAGE,
        cancel_on_kill: bool = False,
        expected_states: Collection[str] | None = None,
        gcp_conn_id: str = "google_cloud_default",
        impersonation_chain: str | Sequence[str] | None = None,
        api_endpoint: str | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operation_name = operation_name
        # A text can contain a list; the wait refuses an invalid one.
        with suppress(ValueError):
            values, several = one_or_many("operation_name", operation_name, in_order=False)
            self.operation_name = given_form(values, several=several)
        self.poll_interval = poll_interval
        self.started = time.time() if started is None else started
        self.timeout = timeout
        self.max_outage = max_outage
        # Nothing is refused here: an error that is raised while a stored trigger is made ends the whole triggerer.
        self.cancel_on_kill = cancel_on_kill
        self.expected_states = expected_states
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.api_endpoint = api_endpoint
        self._hook: DaiAsyncHook | None = None
        self._many: ManyWait | None = None
        self._kill: asyncio.Task[None] | None = None
        # Those of a list whose cancellation the service has accepted, or that it says have finished.
        self._cancelled: set[str] = set()

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the path of this class and every argument of its constructor."""
        return (
            "airflow_dai_provider.triggers.dai.DaiOperationTrigger",
            {
                "operation_name": pack_names(self.operation_name),
                "poll_interval": self.poll_interval,
                "started": self.started,
                "timeout": self.timeout,
                "max_outage": self.max_outage,
                "cancel_on_kill": self.cancel_on_kill,
                "expected_states": self.expected_states and sorted(map(str, self.expected_states)),
                "gcp_conn_id": self.gcp_conn_id,
                "impersonation_chain": self.impersonation_chain,
                "api_endpoint": self.api_endpoint,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until each operation has finished, and fire an event; an error fires an event too, of this wait only."""
        names: Any = self.operation_name
        wait: asyncio.Future[dict[str, Any]] | None = None
        try:
            names = unpack_names(names)
            # A task of its own: the triggerer knows a user's kill by the message of the cancellation, which asgiref
            # drops when it comes while a connection or a token is fetched in a thread.
            wait = asyncio.ensure_future(self._wait(names))
            payload = await asyncio.shield(wait)
        except asyncio.CancelledError as error:
            if wait:
                wait.cancel()
                # No longer than until the triggerer cancels again, which it does about once a second.
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({wait})
            if not TRIGGERS_HAVE_ON_KILL:
                await self.on_kill()
            elif error.args == (USER_ACTION,) and not self._timed_out():
                # The triggerer logs before it calls on_kill. Cancelled again meanwhile, as when its event loop was
                # busy, it does not call it.
                self._begin_kill()
            raise
        except Exception as error:
            # Only the event can tell the task what the wait for a list has found so far.
            payload = many_event(names, self._many, error) if self._many else error_event(names, error)
            self.log.warning("The wait for %s has failed: %s", payload["operation_name"], payload["message"])
        yield TriggerEvent(payload)

    async def on_kill(self) -> None:
        """Request the cancellation, if told to, when a user has killed the deferred task.

        The triggerer cancels this coroutine again about once a second, which is too short for a slow service. So the
        work is a task of its own, and this only waits for it: each cancellation interrupts the wait, which begins again
        until the work is done or the time is up. After that the work continues unobserved.
        """
        kill = self._begin_kill()
        if kill is None:
            return
        until = time.monotonic() + KILL_SECONDS
        while not kill.done() and (left := until - time.monotonic()) > 0:
            with suppress(asyncio.CancelledError):
                await asyncio.wait({kill}, timeout=left)
        if not kill.done() and (names := self._described()):
            self.log.error("%s may still run: no response to the cancellation in time.", names)

    def _begin_kill(self) -> asyncio.Task[None] | None:
        """Begin to cancel, once; return the task that does it, or None if it is not to be done."""
        if self._kill is None and self.cancel_on_kill is True:
            self._kill = asyncio.create_task(self._cancel_unless_deferred())
            _KILLS.add(self._kill)
            self._kill.add_done_callback(_KILLS.discard)
        return self._kill

    def _timed_out(self) -> bool:
        """Return whether the deferral has timed out: Airflow resumes the task then, which decides itself."""
        limit: datetime | None = getattr(self, "timeout_after", None)
        return limit is not None and (limit if limit.tzinfo else limit.replace(tzinfo=UTC)) < datetime.now(UTC)

    async def _wait(self, names: Any) -> dict[str, Any]:
        """Wait, and return the payload of the event."""
        check_flag("cancel_on_kill", self.cancel_on_kill)
        limits: dict[str, Any] = {
            "started": self.started,
            "timeout": self.timeout,
            "poll_interval": self.poll_interval,
            "max_outage": self.max_outage,
            # The worker has polled before it deferred, and has not met the page of a front end: that is an outage now.
            "responded": True,
        }
        if not _hook_class.cache_info().currsize:
            # In a thread, since its imports would block the event loop.
            await sync_to_async(_hook_class, thread_sensitive=False)()
        async with self._make_hook() as hook:
            # A kill leaves little time to look up the connection and to fetch a token.
            self._hook = hook
            if not isinstance(names, list):
                operation = await hook.wait_for_operation(names, **limits)
                self.log.info("%s.", operation)
                return operation_event(names, operation)
            check_operation_names(names)
            wait = hook.make_wait(describe_names(names), **limits)
            self._many = ManyWait(names, wait, check_expected_states(self.expected_states))
            await hook.wait_for_many(self._many)
        return many_event(names, self._many)

    def _left(self) -> list[str]:
        """Return the operations that may still run, including those that cannot be polled."""
        names = unpack_names(self.operation_name)
        if not isinstance(names, list):
            return [names]
        left = [*self._many.left, *self._many.failed] if self._many else names
        return [name for name in left if name not in self._cancelled]

    def _described(self) -> str:
        """Name all that may run, for an error in the log."""
        try:
            return ", ".join(self._left())
        except (TypeError, ValueError):  # what names them is damaged
            return _UNNAMED

    async def _cancel_unless_deferred(self) -> None:
        """Request the cancellation, unless the task still waits in another triggerer.

        Airflow also kills a trigger that another triggerer has taken over, so the state of the task decides.
        """
        try:
            described = describe_names(self._left())
            if await task_instance_state(self.task_instance, XCOM_STARTED) == "deferred":
                self.log.info("Leaving %s alone: its task is still deferred.", described)
                return
            self.log.info("The task that waits for %s was killed.", described)
            # A session of its own, since the shared one is closed with the last wait, perhaps this one.
            hook = await self._hook.synchronous_hook() if self._hook else None
            await sync_to_async(self._request_cancellation, thread_sensitive=False, executor=_KILL_THREADS)(hook)
        except Exception as error:
            what = f"{self._described() or _UNNAMED} may still run: its task was killed, but it was not cancelled"
            log_failure(self.log, what, error)

    def _request_cancellation(self, hook: DaiHook | None) -> None:
        from airflow_dai_provider.hooks.dai import DaiHook

        names = self._left()
        # Without a hook the kill came before the wait had begun.
        with hook or DaiHook(self.gcp_conn_id, self.impersonation_chain, self.api_endpoint) as hook:
            if len(names) == 1:
                request_cancellation(hook, names[0], self.log)
                return
            with hook.workers(len(names)) as workers:
                _, errors = request_cancellations(
                    workers,
                    names,
                    timeout=KILL_SECONDS,
                    on_settled=lambda name, _: self._cancelled.add(name),
                    clock=time.monotonic,
                    sleep=time.sleep,
                    log=self.log,
                )
        for problem in problems_of(errors, self.log):
            self.log.error("%s", problem)

    def _make_hook(self) -> DaiAsyncHook:
        return _hook_class()(self.gcp_conn_id, self.impersonation_chain, self.api_endpoint)


@cache
def _hook_class() -> type[DaiAsyncHook]:
    from airflow_dai_provider.hooks.dai import DaiAsyncHook

    return DaiAsyncHook
