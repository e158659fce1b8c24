"""The asynchronous hook, whose session and token all waits of an event loop share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import suppress

from airflow_dai_provider import metrics
from airflow_dai_provider.api import rest
from airflow_dai_provider.api.batched_polls import MIN_POLLS, is_checked_by_get
from airflow_dai_provider.api.errors import ServiceError
from airflow_dai_provider.api.many_wait import ManyWait
from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.api.parameters import Duration
from airflow_dai_provider.api.polling import MAX_OUTAGE, Wait, describe_poll
from airflow_dai_provider.hooks.async_calls import DaiAsyncCallingHook
from airflow_dai_provider.hooks.calls import judge
from airflow_dai_provider.transport.aiohttp_session import MAX_CONNECTIONS
from airflow_dai_provider.transport.google_errors import typed
from airflow_dai_provider.transport.shared_token import REFUSAL_LASTS
from airflow_dai_provider.transport.threads import error_of_one


class _RoundOverError(Exception):
    """The time of a round is up, although some have not been polled."""


class DaiAsyncHook(DaiAsyncCallingHook):
    """Talk to the DAI service from an event loop, with the credentials and the endpoint that :class:`DaiHook` finds.

    All hooks on one event loop that use the same connection and endpoint share one HTTP session with few
    connections, and one token. Used as an asynchronous context manager, the hook holds that session open; otherwise
    each call opens it if it is closed. The connection is looked up, and a token fetched, off the event loop.

    The parameters and errors are those of :class:`DaiHook`.

    :param gcp_conn_id: the Google Cloud connection.
    :param impersonation_chain: service account(s) to impersonate.
    :param api_endpoint: ``host``, ``host:port`` or ``https://host:port`` instead of Google's own.
    :param timeout: seconds that one request may take.
    :param retry_timeout: seconds after which one call is not retried again; 0 for no retry.
    """

    async def get_operation(self, name: str) -> Operation:
        """Return the latest state of an operation.

        :param name: ``operations/...``.
        :raises InvalidNameError: for a name that cannot be one, before anything is sent.
        :raises google.api_core.exceptions.GoogleAPICallError: of the class that belongs to the rpc code.
        """
        request = rest.get_operation(name)
        metrics.count_polls()
        return await self._call_once(request)

    async def cancel_operation(self, name: str) -> None:
        """Request the cancellation of an operation: best effort and asynchronous, so poll with :meth:`get_operation`.

        :param name: ``operations/...``.
        :raises InvalidNameError: for a name that cannot be one, before anything is sent.
        :raises google.api_core.exceptions.GoogleAPICallError: of the class that belongs to the rpc code.
        """
        await self._call_once(rest.cancel_operation(name))
        metrics.count_cancel_requested()

    def make_wait(
        self,
        name: str,
        *,
        started: float | None = None,
        timeout: Duration | None = None,
        poll_interval: Duration = 30.0,
        max_outage: Duration | None = MAX_OUTAGE,
        responded: bool = False,
    ) -> Wait:
        """Return a wait with these limits, see :meth:`wait_for_operation`."""
        return Wait(
            name,
            started=self._clock() if started is None else started,
            poll_interval=poll_interval,
            timeout=timeout,
            max_outage=max_outage,
            responded=responded or self.responded,
            jitter=self._random,
            slot=self._slot,
        )

    async def wait_for_operation(
        self,
        name: str,
        *,
        started: float | None = None,
        timeout: Duration | None = None,
        poll_interval: Duration = 30.0,
        max_outage: Duration | None = MAX_OUTAGE,
        responded: bool = False,
    ) -> Operation:
        """Poll an operation until it has finished, as :meth:`DaiHook.wait_for_operation` does.

        The log has a line for each poll that shows something new.

        :param name: ``operations/...``.
        :param started: when the wait began, in seconds since the epoch; now, if it is not given.
        :param timeout: seconds to wait at most, counted from ``started``, or None for no limit.
        :param poll_interval: the most seconds between two polls.
        :param max_outage: seconds that the service may be unavailable, or None for no limit.
        :param responded: whether the API has already responded during this wait, in another process; responses to
            this hook count anyway.
        :return: the operation, in any final state.
        :raises WaitTimeoutError: when it has not finished in time; nothing is cancelled.
        :raises google.api_core.exceptions.GoogleAPICallError: when it cannot be polled.
        """
        self.responded = self.responded or responded
        wait = self.make_wait(
            name,
            started=started,
            timeout=timeout,
            poll_interval=poll_interval,
            max_outage=max_outage,
            responded=responded,
        )
        request = rest.get_operation(name)
        seen: Operation | None = None
        seconds = 0.0
        async with self._holding():
            while True:
                try:
                    # Not retried like other calls: the next poll is the retry.
                    operation = await self._poll(request, wait, seen, seconds)
                except ServiceError as error:
                    seconds, line = judge(wait, error, self._clock())
                    if line:
                        self.log.warning("%s", line)
                    continue
                now = self._clock()
                if line := wait.after_response(now):
                    self.log.info("%s.", line)
                if operation.done:
                    return operation
                seconds = wait.next_poll(operation, now)
                if operation != seen:
                    # Only news, since a triggerer logs for thousands of waits.
                    self.log.info("%s", describe_poll(operation, now - wait.started, seconds))
                    seen = operation

    async def wait_for_many(self, many: ManyWait) -> None:
        """Poll in rounds until each of many operations has finished, or cannot be polled.

        :param many: the wait, which holds what was found. Its clock is that since the epoch.
        :raises WaitTimeoutError: when they have not finished in time; nothing is cancelled.
        :raises google.api_core.exceptions.GoogleAPICallError: when the service has been unavailable for too long.
        """
        many.news_only = True
        seconds = 0.0
        async with self._holding():
            while many.left:
                names = many.due(self._clock() + seconds)
                complete = len(names) == len(many.left)
                await self._poll_round(names, many, complete, seconds)
                if not many.left:
                    break
                if self._note_operations:
                    self._note_operations(len(many.left))
                try:
                    seconds, line, _ = many.after_round(self._clock(), complete=complete)
                except ServiceError as verdict:
                    raise typed(verdict) from None
                if line:
                    self.log.info("%s", line)
        self.log.info("%s.", many.progress)

    async def _poll_round(self, names: list[str], many: ManyWait, complete: bool, seconds: float) -> None:
        """Poll each of these operations once, after so many seconds."""
        try:
            seen = {name: many.running.get(name) for name in names if not many.is_missing(name)}
            running = await self._poll_by_list(seen, many.wait, many.number, seconds)
            # Once for all of them: each would look up the connection again while that fails.
            (await self._open()).token.refusal_lasts = REFUSAL_LASTS
        except ServiceError as error:
            for name in names:
                if many.after_error(name, error, self._clock()):
                    self.log.warning("%s", many.failed[name])
            return
        metrics.count_polls(len(running))
        for operation in running.values():
            many.after_poll(operation, self._clock())
        each = (name for name in names if name not in running)
        # Not a coroutine for each operation: to start thousands would hold up the event loop.
        number = min(MAX_CONNECTIONS, len(names) - len(running))
        polls = [asyncio.create_task(self._poll_each(each, many, complete)) for _ in range(number)]
        try:
            with suppress(_RoundOverError):
                await asyncio.gather(*polls)
        finally:
            for poll in polls:
                poll.cancel()
            await asyncio.gather(*polls, return_exceptions=True)

    async def _poll_each(self, names: Iterator[str], many: ManyWait, complete: bool) -> None:
        for name in names:
            metrics.count_polls()
            try:
                operation = await self._send(rest.get_operation(name), self._end_of(many.wait))
            except Exception as error:
                if many.after_error(name, error_of_one(error), self._clock()):
                    self.log.warning("%s", many.failed[name])
            else:
                if level := many.after_poll(operation, self._clock()):
                    self.log.log(level, "%s.", operation)
            if many.is_round_over(self._clock(), complete=complete):
                raise _RoundOverError

    async def _poll(
        self, request: rest.Request[Operation], wait: Wait, seen: Operation | None, seconds: float
    ) -> Operation:
        """Poll one operation after so many seconds: together with those of others, or by get."""
        running: Mapping[str, Operation] = {}
        if wait.slot is None:
            if seconds:
                await self._sleep(seconds)
        else:
            running = await self._poll_by_list({wait.name: seen}, wait, wait.number, seconds)
        metrics.count_polls()
        if operation := running.get(wait.name):
            return operation
        return await self._send(request, self._end_of(wait))

    async def _poll_by_list(
        self, seen: Mapping[str, Operation | None], wait: Wait, number: int, seconds: float
    ) -> Mapping[str, Operation]:
        """Wait for so many seconds; return those operations of which operations.list then shows that they run.

        :param seen: by name, what the last poll has returned.
        :param number: that of the poll.
        """
        at = self._clock() + seconds
        asked = {name: last for name, last in seen.items() if not is_checked_by_get(name, number)}
        is_few = not asked or (wait.slot is None and len(asked) < MIN_POLLS)
        if self._transport is None or is_few or wait.is_over(at, outage=False):
            if seconds:
                await self._sleep(seconds)
            return {}
        running: Mapping[str, Operation] = {}
        try:
            running = await self._transport.polls.ask(asked, wait.slot or at, seconds)
        except ServiceError:
            if not wait.is_over(self._clock(), outage=False):
                raise
        self.responded = self.responded or bool(running)
        # The last poll is a get: neither the list nor an error of it must be the last word.
        return {} if wait.is_over(self._clock(), outage=False) else running

    def _slot(self, now: float, interval: float, poll_interval: float) -> float | None:
        """Return when the next poll of this hook's wait is due together with those of others, if it is."""
        if self._transport is None:
            return None
        return self._transport.polls.slot(now, interval, poll_interval)

    def _end_of(self, wait: Wait) -> float:
        """Return when the time of a wait is up, on the clock that only ever increases."""
        left = float("inf") if wait.timeout is None else wait.started + wait.timeout - self._clock()
        return self._monotonic() + max(0.0, left)
