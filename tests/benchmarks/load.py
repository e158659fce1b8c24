"""Many waits on one loop at a steady rate of looks: what a look costs, what a wait holds, how late the loop is."""

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
    looks_per_second: float,
    *,
    starts_per_second: float | None = None,
    windows: int = 4,
    window_looks: int = 1000,
    probe: bool = False,
) -> dict[str, Any]:
    """
    Start waits evenly, let them run, and measure some windows.

    :param kind: the name of a function of :mod:`waits`.
    :param waits: how many run at once.
    :param looks_per_second: the rate that all of them have together; it gives the interval.
    :param starts_per_second: how fast they are started: the rate of looks, or a whole part of it, so that the looks
        are spread evenly.
    :param windows: how many times to measure.
    :param window_looks: looks in one window.
    :param probe: whether to measure how late the loop is, too.
    """
    sink = log_like_the_triggerer()
    counters = Counters(Path(os.environ["BENCHMARK_COUNTERS"]))
    before = counters.read()
    interval = waits / looks_per_second / MEAN_SHARE
    names = (f"operations/{kind}-{os.getpid()}-{number}" for number in count())
    tasks: list[asyncio.Task[None]] = []
    async with KINDS[kind]() as wait:

        def start() -> None:
            tasks.append(asyncio.create_task(wait(next(names), interval)))

        async def all_have_looked() -> None:
            while counters["operations"] - before["operations"] < len(tasks):
                _raise_failure(tasks)
                await asyncio.sleep(0.02)

        start()
        await all_have_looked()
        await asyncio.sleep(0.2)
        memory = _memory()
        starting = _Window(counters)
        began = time.perf_counter()
        for number in range(1, waits):
            start()
            if (early := began + number / (starts_per_second or looks_per_second) - time.perf_counter()) > 0.01:
                await asyncio.sleep(early)
        await all_have_looked()
        start_cpu, start_looks = starting.cpu(), starting.looks()
        await asyncio.sleep(SETTLE)
        memory = _memory() - memory
        lags: list[float] = []
        probing = asyncio.create_task(_probe(lags)) if probe else None
        measured, yardstick = [], Yardstick()
        lines, looks = sink.lines, counters["looks"]
        for _ in range(windows):
            measured.append(await _measure(counters, yardstick, window_looks))
            _raise_failure(tasks)
        all_looks = counters["looks"] - looks
        result = {
            "kind": kind,
            "waits": waits,
            "windows": measured,
            "cpu_per_look": median(window["cpu_per_look"] for window in measured),
            "yardsticks_per_look": median(window["cpu_per_look"] / window["yardstick"] for window in measured),
            "looks_per_second": sum(window["looks"] for window in measured) / sum(w["seconds"] for w in measured),
            "lines_per_look": (sink.lines - lines) / all_looks,
            "lines": sink.lines,
            "memory_per_wait": memory / max(waits - 1, 1),
            "lag": _spread(lags) if probing else None,
        }
        result["cpu_per_start"] = (start_cpu - start_looks * result["cpu_per_look"]) / max(waits - 1, 1)
        result |= {name: value - before[name] for name, value in counters.read().items()}
        for task in [*tasks, *([probing] if probing else [])]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return result


class _Window:
    """CPU time of this process, and looks that the server has counted, from now on."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._looks = counters["looks"]
        self._seconds = time.perf_counter()
        self._cpu = time.process_time()

    def cpu(self) -> float:
        return time.process_time() - self._cpu

    def seconds(self) -> float:
        return time.perf_counter() - self._seconds

    def looks(self) -> int:
        return self._counters["looks"] - self._looks


async def _measure(counters: Counters, yardstick: Yardstick, looks: int) -> dict[str, float]:
    window, measures = _Window(counters), []
    while window.looks() < looks:
        await asyncio.sleep(TICK)
        measures.append(yardstick.measure())
    cpu, done = window.cpu() - sum(measures), window.looks()
    return {"looks": done, "seconds": window.seconds(), "cpu_per_look": cpu / done, "yardstick": mean(measures)}


async def _probe(lags: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(PROBE)
        lags.append(time.perf_counter() - began - PROBE)


def _spread(lags: list[float]) -> dict[str, float]:
    cuts = quantiles(lags, n=100)
    return {"p50": cuts[49], "p99": cuts[98], "max": max(lags)}


def _memory() -> int:
    """Return the bytes of this process that are in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def _raise_failure(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            raise RuntimeError("a wait has ended") from task.exception()
