"""Cancelling several operations in a bounded time: the rules that both forms of the notifier follow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from airflow_dai_provider.api.errors import PERMANENT
from airflow_dai_provider.tasks.cancellation import Service, async_request_cancellation
from airflow_dai_provider.tasks.failures import error_code

#: Seconds between two rounds of attempts.
PAUSE = 1.0


@dataclass(frozen=True)
class Rounds:
    """
    How several cancellations are requested: each once per round, until it is settled or the time is up.

    What no repeat can heal settles an operation, as does an answer that nothing runs.

    :param connect: gives the service; what it takes does not count.
    :param timeout: seconds for all rounds.
    :param clock: gives seconds.
    :param sleep: waits for seconds.
    :param log: says what was requested, and what has failed for now.
    """

    connect: Callable[[], AbstractAsyncContextManager[Service]]
    timeout: float
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    log: Any

    async def cancel(self, names: Sequence[str]) -> list[str]:
        """
        Request the cancellation of every operation.

        :return: what is wrong with which operation; never raises, since the caller has a failure of its own.
        """
        if not names:
            return []
        left = dict.fromkeys(names, "the time was up before it could be cancelled")
        problems: list[str] = []
        try:
            async with self.connect() as service:
                deadline = self.clock() + self.timeout
                while left and self.clock() < deadline:
                    for name in list(left):
                        if self.clock() < deadline:
                            await self._attempt(service, name, left, problems)
                    if left:
                        await self.sleep(PAUSE)
        except Exception as error:
            # Whatever it is, the log has to name what may still run.
            self.log.exception("The cancellation of %s has broken off", ", ".join(left))
            left = dict.fromkeys(left, str(error))
        return problems + [f"{name} may still run: {reason}" for name, reason in left.items()]

    async def _attempt(self, service: Service, name: str, left: dict[str, str], problems: list[str]) -> None:
        """Request one cancellation; take the name from ``left`` when that settles it."""
        from google.api_core.exceptions import GoogleAPICallError, NotFound

        try:
            await async_request_cancellation(service, name, self.log)
        except NotFound as error:
            self.log.info("%s Nothing is left to cancel.", error.message)
        except GoogleAPICallError as error:
            if error_code(error) not in PERMANENT:
                left[name] = error.message
                self.log.warning("%s", error.message)
                return
            problems.append(f"{name} may still run: {error.message}")
        del left[name]
