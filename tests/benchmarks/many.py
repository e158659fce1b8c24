"""Measure waits that poll together: requests, CPU and memory of each wait, and the delay until a finish is noticed."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPSConnection
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

from counters import Counters
from load import _memory, _raise_failure
from logs import log_like_the_triggerer
from server import CONTROL, PAGE_SIZE, TOKEN
from waits import KINDS
from yardstick import Yardstick

#: Seconds between two measurements of the yardstick.
TICK = 0.25
#: Operations that finish during the measurement, to see when that is noticed, at most.
FINISHES = 20
#: The interval that results are given for, in seconds.
DEFAULT_INTERVAL = 30.0


def many(**arguments: Any) -> dict[str, Any]:
    """Run :func:`_many` on a loop."""
    return asyncio.run(_many(**arguments))


async def _many(
    kind: str, waits: int, interval: float, rounds: int, starts_per_second: float, listed: int | None
) -> dict[str, Any]:
    """
    Start waits, let them poll until they are in step, and measure several intervals.

    :param kind: the name of a function of :mod:`waits`.
    :param interval: the longest time between two polls.
    :param rounds: the length of the measurement in intervals.
    :param listed: how many finished operations the list begins with; None for a server without list.
    :return: requests and CPU for a wait and a minute at the default interval, and what else was measured.
    """
    log_like_the_triggerer()
    _tell(listed=listed)
    counters = Counters(Path(os.environ["BENCHMARK_COUNTERS"]))
    before = counters.read()
    names = [f"operations/{kind}-{os.getpid()}-{number}" for number in range(waits)]
    ends: dict[str, float] = {}
    async with KINDS[kind]() as wait:

        async def until_end(name: str) -> None:
            await wait(name, interval)
            ends[name] = time.monotonic()

        tasks: list[asyncio.Task[None]] = []

        async def all_have_polled() -> None:
            while counters["operations"] - before["operations"] < len(tasks):
                _raise_failure(tasks)
                await asyncio.sleep(0.02)

        tasks.append(asyncio.create_task(until_end(names[0])))
        await all_have_polled()
        memory, began = _memory(), time.monotonic()
        for number, name in enumerate(names[1:]):
            tasks.append(asyncio.create_task(until_end(name)))
            if (early := began + number / starts_per_second - time.monotonic()) > 0.01:
                await asyncio.sleep(early)
        await all_have_polled()
        # All have come into step by the end of the next interval.
        await asyncio.sleep(1.5 * interval)
        memory = _memory() - memory
        warm = counters.read()
        result = await _measure(counters, interval * rounds)
        result["explored"] = warm["pages"] - before["pages"]
        result |= {"memory_per_wait": memory / waits, "list_seconds": await _time_list() if listed is not None else 0}
        result["delays"] = await _delays(names[:: max(1, waits // FINISHES)], ends, interval, tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    each = waits * rounds * DEFAULT_INTERVAL / 60
    result |= {f"{what}_per_wait_minute": result[what] / each for what in ("requests", "cpu", "yardsticks")}
    return {"kind": kind, "waits": waits, "listed": listed, "interval": interval, "rounds": rounds, **result}


async def _measure(counters: Counters, seconds: float) -> dict[str, float]:
    before, began, cpu = counters.read(), time.monotonic(), time.process_time()
    yardstick, measures = Yardstick(), []
    while time.monotonic() < began + seconds:
        measures.append(yardstick.measure())
        await asyncio.sleep(min(TICK, max(0.0, began + seconds - time.monotonic())))
    cpu = time.process_time() - cpu - sum(measures)
    counted = {name: value - before[name] for name, value in counters.read().items()}
    unit = sum(measures) / len(measures)
    requests = counted["polls"] + counted["pages"]
    return {"cpu": cpu, "yardsticks": cpu / unit, "requests": requests, "pages": counted["pages"]}


async def _delays(
    names: list[str], ends: dict[str, float], interval: float, tasks: list[asyncio.Task[None]]
) -> list[float]:
    """Let operations finish at different times of an interval; return the seconds until each was noticed."""
    random = Random(1)  # noqa: S311 - chance, not a secret
    finished = {}
    for name in names:
        await asyncio.sleep(random.uniform(0, 3 * interval / len(names)))
        await asyncio.to_thread(_tell, finish=[name])
        finished[name] = time.monotonic()
    deadline = time.monotonic() + 3 * interval + 30
    while len(ends) < len(names) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    if lost := [name for name in names if name not in ends]:
        errors = [task.exception() for task in tasks if task.done()]
        raise RuntimeError(f"{len(lost)} finishes were not noticed: {[error for error in errors if error]}")
    return [ends[name] - finished[name] for name in names]


async def _time_list() -> float:
    """Return the seconds that reading the whole list takes, over a connection that is open, as in the package."""

    def read() -> float:
        with closing(_connect()) as connection:
            connection.connect()
            token, began = "", time.monotonic()
            while True:
                token = _request(connection, f"/v1/operations?pageSize={PAGE_SIZE}&pageToken={token}")["nextPageToken"]
                if not token:
                    return time.monotonic() - began

    return await asyncio.to_thread(read)


def _tell(**told: Any) -> None:
    with closing(_connect()) as connection:
        _request(connection, CONTROL, json.dumps(told))


def _connect() -> HTTPSConnection:
    server = urlsplit(os.environ["BENCHMARK_ENDPOINT"])
    context = ssl.create_default_context(cafile=os.environ["REQUESTS_CA_BUNDLE"])
    return HTTPSConnection(server.hostname or "", server.port, timeout=60, context=context)


def _request(connection: HTTPSConnection, path: str, body: str | None = None) -> Any:
    connection.request("POST" if body else "GET", path, body, {"Authorization": f"Bearer {TOKEN}"})
    response = connection.getresponse()
    text = response.read()
    if response.status != HTTPStatus.OK:
        raise RuntimeError(f"expected 200 for {path}, got {response.status}: {text[:200]!r}")
    return json.loads(text)
