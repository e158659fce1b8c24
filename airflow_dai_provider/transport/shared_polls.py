"""Shared polls: serve the polls of all waits that share a session on an event loop together, if that costs less."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context
from random import random
from typing import Any

from airflow_dai_provider.api import rest
from airflow_dai_provider.api.batched_polls import GET_EVERY, MIN_POLLS, BatchedPolls, Reading
from airflow_dai_provider.api.errors import ServiceError
from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.api.operation_page import PolledPage
from airflow_dai_provider.api.polling import slot_of_grid
from airflow_dai_provider.transport.threads import error_of_one

logger = logging.getLogger(__name__)

#: Each triggerer shifts its grid by a random part of this many seconds, so that two do not poll at the same moment.
_PHASES = 86_400.0
#: How many waits at a time are released to poll by get; in between, the event loop does other work.
_AT_A_TIME = 100


class _Waiter:
    """One wait, for one operation or several, that has polls in a batch."""

    __slots__ = ("done", "found", "left")

    def __init__(self, left: int) -> None:
        self.left = left
        self.found: dict[str, Operation] = {}
        self.done: asyncio.Future[Mapping[str, Operation]] = asyncio.get_running_loop().create_future()

    def settle(self, operation: Operation | None) -> None:
        """Note the result of one of its polls; None if the list does not serve it."""
        self.left -= 1
        if operation:
            self.found[operation.name] = operation
        if not self.left:
            self.finish()

    def finish(self, error: ServiceError | None = None) -> None:
        if self.done.done():
            return
        if error and not self.found:
            self.done.set_exception(error)
        else:
            self.done.set_result(self.found)


class _Batch:
    """The polls that are due together."""

    def __init__(self) -> None:
        self._waiters: dict[str, list[_Waiter]] = {}
        #: By name, what the last poll has returned; the reading of the list drops those that a page has shown.
        self.seen: dict[str, Operation | None] = {}

    async def wait(self, seen: Mapping[str, Operation | None]) -> Mapping[str, Operation]:
        waiter = _Waiter(len(seen))
        for name in seen:
            self._waiters.setdefault(name, []).append(waiter)
        self.seen.update(seen)
        try:
            return await waiter.done
        except asyncio.CancelledError:
            for name in seen:
                if all(other.done.done() for other in self._waiters.get(name, ())):
                    self.seen.pop(name, None)
            raise

    def take(self, page: PolledPage) -> None:
        """Give the answers of a page to the waits."""
        for name in (*page.running, *page.others):
            for waiter in self._waiters.pop(name):
                waiter.settle(page.running.get(name))

    def waiters(self) -> list[_Waiter]:
        """Return the waits that go on without an answer."""
        every = dict.fromkeys(waiter for waiters in self._waiters.values() for waiter in waiters)
        return [waiter for waiter in every if not waiter.done.done()]


class SharedPolls:
    """The polls of one session that are due together.

    :param call: sends a request; its second argument is the latest time at which to send it.
    :param timeout: seconds that one request may take; a poll that has waited for the list so long is a get.
    :param clock: returns monotonic time in seconds.
    :param sleep: waits for seconds.
    :param pause: returns the seconds left of a pause that requests wait for; 0 without one.
    """

    def __init__(
        self,
        call: Callable[[rest.Request[PolledPage], float], Awaitable[PolledPage]],
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        pause: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._call = call
        self._timeout = timeout
        self._clock = clock
        self._sleep = sleep
        self._pause = pause
        self._decisions = BatchedPolls()
        self._operations = 0
        self._phase = random() * _PHASES  # noqa: S311 - chance, not a secret
        self._batches: dict[float, _Batch] = {}
        # The list is read once at a time.
        self._reading = asyncio.Lock()
        self._answers: set[asyncio.Task[None]] = set()

    @contextmanager
    def joined(self) -> Iterator[Callable[[int], None]]:
        """Count a wait for one operation until the block is over; give a function that notes how many it is for."""
        counted = 0

        def note(operations: int) -> None:
            nonlocal counted
            self._operations += operations - counted
            counted = operations

        note(1)
        try:
            yield note
        finally:
            note(0)

    def slot(self, now: float, interval: float, poll_interval: float) -> float | None:
        """Return when the next poll of a wait is due together with those of others, or None if they poll by get.

        :param now: in seconds of a clock that all waits share.
        :param interval: seconds until then at most.
        """
        if self._operations < MIN_POLLS:
            return None
        # Some polls are gets in any case, sometimes more than their share. Without a page, all that are due together
        # would be gets at the same moment.
        polls = self._operations * (1 - 2 / GET_EVERY)
        if not self._decisions.is_worthwhile(polls, self._clock() + interval):
            return None
        return slot_of_grid(now, interval, poll_interval, self._phase)

    async def ask(self, seen: Mapping[str, Operation | None], slot: float, seconds: float) -> Mapping[str, Operation]:
        """Wait until polls are due; return those operations of which a page then shows that they run.

        The others are to be asked by get.

        :param seen: by name, what the last poll has returned.
        :param slot: when they are due, equal for all that are due together.
        :param seconds: the time until then.
        :raises ServiceError: when the list was not returned, and no get would be either.
        """
        key = round(slot, 3)
        batch = self._batches.get(key)
        if batch is None:
            batch = self._batches[key] = _Batch()
            # It logs for all waits, not for the one that comes first.
            answer = asyncio.create_task(self._answer(key, batch, seconds), context=Context())
            self._answers.add(answer)
            answer.add_done_callback(self._answers.discard)
        return await batch.wait(seen)

    async def close(self) -> None:
        """Cancel the batches that no wait needs any longer."""
        answers = list(self._answers)
        for answer in answers:
            answer.cancel()
        await asyncio.gather(*answers, return_exceptions=True)

    async def _answer(self, key: float, batch: _Batch, seconds: float) -> None:
        error = None
        try:
            try:
                if seconds > 0:
                    await self._sleep(seconds)
            finally:
                del self._batches[key]
            if reading := self._decisions.begin(batch.seen, self._clock()):
                error = await self._read(reading, batch)
            for number, waiter in enumerate(batch.waiters(), 1):
                waiter.finish(error)
                if not number % _AT_A_TIME:
                    await asyncio.sleep(0)
        finally:
            # Whatever has happened, no wait waits forever.
            for waiter in batch.waiters():
                waiter.finish(error)

    async def _read(self, reading: Reading, batch: _Batch) -> ServiceError | None:
        """Read the list while that is useful; return the error, if it is the outcome of each poll without an answer."""
        outcome, line = None, None
        now = asyncio.get_running_loop().time
        began = float("inf")
        try:
            async with asyncio.timeout(self._timeout) as limit, self._reading:
                began = now()
                if not self._decisions.is_worthwhile(len(reading.left), self._clock()):
                    # The reading that held the lock has shown this, or waits were cancelled meanwhile.
                    return None
                while reading.is_useful:
                    while pause := self._pause():
                        # It says nothing of how slow the list is.
                        began = now() + pause
                        limit.reschedule(began + self._timeout)
                        await self._sleep(pause)
                    try:
                        page = await self._call(reading.request, self._clock() + self._timeout)
                    except ServiceError as refusal:
                        if not self._decisions.is_first_pause(refusal):
                            raise
                    else:
                        reading.take(page)
                        batch.take(page)
        except TimeoutError:
            # Not held against the list when other readings have taken most of the time.
            if reading.was_worthwhile or now() - began > self._timeout / 2:
                line = self._decisions.end_late(reading, self._clock())
        except Exception as failure:
            error = error_of_one(failure)
            is_outcome, line = self._decisions.fail(error, self._clock())
            outcome = error if is_outcome else None
        else:
            line = self._decisions.end(reading, self._clock())
        if line:
            logger.info("%s.", line.rstrip("."))
        return outcome
