"""Measure many waits on one loop at a steady rate: CPU per poll, memory per wait, lag of the loop."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from itertools import count
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

from counters import Counters
from logs import log_like_the_triggerer
from waits import KINDS, MEAN_SHARE
from yardstick import Yardstick

#: Between the start of the last wait and the first window, in seconds.
SETTLE = 0.5
#: How long a probe of the loop sleeps, in seconds.
PROBE = 0.01
#: Seconds between two measurements of the yardstick.
TICK = 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE")


def load(**arguments: Any) -> dict[str, Any]:
    """Run :func:`_load` on a loop."""
    return asyncio.run(_load(**arguments))


async def _load(
    kind: str,
    waits: int,
    polls_per_second: float,
    *,
    starts_per_second: float | None = None,
    windows: int = 4,
    window_polls: int = 1000,
    probe: bool = False,
) -> dict[str, Any]:
    """
    Start waits evenly, let them run, and measure several windows.

    :param kind: the name of a function of :mod:`waits`.
    :param waits: the number of waits at once.
    :param polls_per_second: the rate of all of them together, which determines the interval.
    :param starts_per_second: the rate of starts: that of the polls or a whole fraction of it, so that polls are spread
        evenly.
    :param windows: the number of measurements.
    :param window_polls: the number of polls in one window.
    :param probe: also measure the lag of the loop.
    """
    sink = log_like_the_triggerer()
    counters = Counters(Path(os.environ["BENCHMARK_COUNTERS"]))
    before = counters.read()
    interval = waits / polls_per_second / MEAN_SHARE
    names = (f"operations/{kind}-{os.getpid()}-{number}" for number in count())
    tasks: list[asyncio.Task[None]] = []
    async with KINDS[kind]() as wait:

        def start() -> None:
            tasks.append(asyncio.create_task(wait(next(names), interval)))

        async def all_have_polled() -> None:
            while counters["operations"] - before["operations"] < len(tasks):
                _raise_failure(tasks)
                await asyncio.sleep(0.02)

        start()
        await all_have_polled()
        await asyncio.sleep(0.2)
        memory = _memory()
        starting = _Window(counters)
        began = time.perf_counter()
        for number in range(1, waits):
            start()
            if (early := began + number / (starts_per_second or polls_per_second) - time.perf_counter()) > 0.01:
                await asyncio.sleep(early)
        await all_have_polled()
        start_cpu, start_polls = starting.cpu(), starting.polls()
        await asyncio.sleep(SETTLE)
        memory = _memory() - memory
        lags: list[float] = []
        probing = asyncio.create_task(_probe(lags)) if probe else None
        measured, yardstick = [], Yardstick()
        lines, polls = sink.lines, counters["polls"]
        for _ in range(windows):
            measured.append(await _measure(counters, yardstick, window_polls))
            _raise_failure(tasks)
        all_polls = counters["polls"] - polls
        result = {
            "kind": kind,
            "waits": waits,
            "windows": measured,
            "cpu_per_poll": median(window["cpu_per_poll"] for window in measured),
            "yardsticks_per_poll": median(window["cpu_per_poll"] / window["yardstick"] for window in measured),
            "polls_per_second": sum(window["polls"] for window in measured) / sum(w["seconds"] for w in measured),
            "lines_per_poll": (sink.lines - lines) / all_polls,
            "lines": sink.lines,
            "memory_per_wait": memory / max(waits - 1, 1),
            "lag": _spread(lags) if probing else None,
        }
        result["cpu_per_start"] = (start_cpu - start_polls * result["cpu_per_poll"]) / max(waits - 1, 1)
        result |= {name: value - before[name] for name, value in counters.read().items()}
        for task in [*tasks, *([probing] if probing else [])]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return result


class _Window:
    """CPU time of this process and polls counted by the server, from now on."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._polls = counters["polls"]
        self._seconds = time.perf_counter()
        self._cpu = time.process_time()

    def cpu(self) -> float:
        return time.process_time() - self._cpu

    def seconds(self) -> float:
        return time.perf_counter() - self._seconds

    def polls(self) -> int:
        return self._counters["polls"] - self._polls


async def _measure(counters: Counters, yardstick: Yardstick, polls: int) -> dict[str, float]:
    window, measures = _Window(counters), []
    while window.polls() < polls:
        await asyncio.sleep(TICK)
        measures.append(yardstick.measure())
    cpu, done = window.cpu() - sum(measures), window.polls()
    return {"polls": done, "seconds": window.seconds(), "cpu_per_poll": cpu / done, "yardstick": mean(measures)}


async def _probe(lags: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(PROBE)
        lags.append(time.perf_counter() - began - PROBE)


def _spread(lags: list[float]) -> dict[str, float]:
    cuts = quantiles(lags, n=100)
    return {"p50": cuts[49], "p99": cuts[98], "max": max(lags)}


def _memory() -> int:
    """Return the resident memory of this process, in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def _raise_failure(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            raise RuntimeError("a wait has finished") from task.exception()
