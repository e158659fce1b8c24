"""Measure how soon a finished operation is noticed: HTTP to the emulator, on a simulated clock."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Sequence
from random import Random
from typing import Any

from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.hooks.dai import DaiAsyncHook
from airflow_dai_provider.triggers.dai import DaiOperationTrigger

#: A cancellation takes up to this share more or less than its nominal time, so that none fits an interval exactly.
SPREAD = 0.2


class Clock:
    """Epoch seconds that pass only in sleep; for one wait at a time."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def finish(seconds: Sequence[float], seeds: int, poll_interval: float, fixed: Sequence[float]) -> list[dict[str, Any]]:
    """
    Cancel operations and wait until they have finished.

    :param seconds: nominal durations of a cancellation.
    :param seeds: the number of repetitions of each, with different jitter and spread.
    :param poll_interval: the trigger's.
    :param fixed: intervals of loops that always sleep equally long, for comparison.
    :return: for each wait the duration of the cancellation, the delay until it was noticed, and the polls.
    """
    return asyncio.run(_finish(seconds, seeds, poll_interval, fixed))


async def _finish(
    seconds: Sequence[float], seeds: int, poll_interval: float, fixed: Sequence[float]
) -> list[dict[str, Any]]:
    clock = Clock()
    DaiAsyncHook._clock = staticmethod(clock)
    DaiAsyncHook._sleep = staticmethod(clock.sleep)
    results = []
    with DaiEmulator(clock=clock) as emulator:
        os.environ["DAI_EMULATOR_HOST"] = emulator.host
        async with DaiAsyncHook() as hook:
            for nominal in seconds:
                for seed in range(seeds):
                    for interval in (None, *fixed):
                        random = Random(seed)  # noqa: S311 - chance, not a secret
                        takes = nominal * random.uniform(1 - SPREAD, 1 + SPREAD)
                        DaiAsyncHook._random = staticmethod(random.random)
                        name = emulator.start_ingest(seconds=math.inf, cancel_seconds=takes)
                        await hook.cancel_operation(name)
                        emulator.forget_requests()
                        finishes = clock.now + takes
                        if interval is None:
                            await _trigger(name, poll_interval, clock)
                        else:
                            await _loop(hook, name, interval, clock)
                        results.append(
                            {
                                "nominal": nominal,
                                "interval": interval,
                                "takes": takes,
                                "delay": clock.now - finishes,
                                "polls": len(emulator.requests),
                            }
                        )
    return results


async def _trigger(name: str, poll_interval: float, clock: Clock) -> None:
    trigger = DaiOperationTrigger(name, poll_interval=poll_interval, started=clock.now)
    events = [event.payload async for event in trigger.run()]
    if [event.get("operation", {}).get("state") for event in events] != ["CANCELLED"]:
        raise RuntimeError(f"expected the event of a cancelled operation, got {events}")


async def _loop(hook: DaiAsyncHook, name: str, interval: float, clock: Clock) -> None:
    while not (await hook.get_operation(name)).done:
        await clock.sleep(interval)
