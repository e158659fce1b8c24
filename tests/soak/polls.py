"""Many waits that poll together, in a worker and in the triggerer, while requests fail and the list is wrong."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import requests
from faults import KINDS, too_few
from judge import print_results
from leaks import Leaks, tasks_left

from airflow_dai_provider.api.many_wait import ManyWait
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.tasks.events import read_many_event
from airflow_dai_provider.triggers.dai import DaiOperationTrigger

GET, LIST = "operations.get", "operations.list"
#: The longest interval between two polls, and how long the ingests take, in seconds.
INTERVAL = 2.0
LONGEST = 60.0
#: The share of requests of the list that meet each kind of a wrong list.
SHARE = 0.15
#: A lie is found out by the twentieth poll, which takes so long, with as much again for failed polls.
SECONDS = LONGEST + 2 * 20 * INTERVAL + 60
WAYS = ("one trigger each", "one trigger for all", "a worker for all")

#: The outcomes that a way to wait has seen, by name.
Outcomes = dict[str, str]
T = TypeVar("T")


def play_polls(waits: int, share: float, seed: int | None) -> int:
    """Play each way to wait at once, for so many operations each; print the table, return the number of problems."""
    print(f"\n{waits} waits in each of {len(WAYS)} ways, with {share:.0%} of all polls failing", flush=True)
    started = time.monotonic()
    with DaiEmulator(seed=seed) as emulator:
        os.environ["DAI_EMULATOR_HOST"] = emulator.host
        chance = random.Random(emulator.seed)  # noqa: S311 - chance, not a secret
        names = {way: [_start(emulator, chance, way, number) for number in range(waits)] for way in WAYS}
        every = [name for found in names.values() for name in found]
        deleted, hidden = every[7::20], every[3::40]
        # Not those of the first page, where a finished one would be seen twice.
        lied_about = [name for found in names.values() for name in found[waits - waits // 10 :]]
        # Of each way, one that is deleted too.
        lied_about += deleted[:: max(1, len(deleted) // len(WAYS))]
        _make_list_wrong(emulator, chance, every, hidden, lied_about)
        _inject(emulator, share)
        leaks = Leaks()
        with ThreadPoolExecutor(len(WAYS) + 1) as pool:
            ways: dict[str, Callable[[list[str], list[int]], Outcomes]] = dict(
                zip(WAYS, (_one_trigger_each, _one_trigger_for_all, _worker), strict=True)
            )
            deleting = pool.submit(_delete, emulator, deleted, chance)
            tasks: list[int] = []
            waiting = {way: pool.submit(ways[way], names[way], tasks) for way in WAYS}
            seen = {way: wait.result() for way, wait in waiting.items()}
            deleted_while_running = deleting.result()
        leaks.find(sum(tasks))
    methods = Counter(request.method for request in emulator.requests)
    states = emulator.states()
    problems: dict[str, list[str]] = {
        "wrong outcomes": [],
        "lost waits": [],
        "faults missing": too_few(emulator, share, [GET]),
        **leaks.found,
    }
    for way, outcomes in seen.items():
        for name in names[way]:
            expected = {"NOT_FOUND"} if name in deleted else set()
            if name not in deleted_while_running:
                expected.add(states[name].value)
            outcome = outcomes.get(name, "no outcome")
            if outcome in ("no outcome", "timeout"):
                problems["lost waits"].append(f"{way}: {name}: {outcome}")
            elif outcome not in expected:
                problems["wrong outcomes"].append(f"{way}: {name}: {outcome} instead of {' or '.join(expected)}")
    if waits >= 100 and not methods[LIST]:
        problems["polls not together"] = ["the list was never read"]
    rows = {
        "seconds": f"{time.monotonic() - started:.0f}",
        "seed": emulator.seed,
        "pages of the list": methods[LIST],
        "polls by get": methods[GET],
        "faults injected": sum(emulator.faults_injected.values()),
        "deleted while running": f"{len(deleted_while_running)} of {len(deleted)} deleted",
        "left out of the list": len(hidden),
        "running forever in the list": len(lied_about),
    }
    return print_results(rows, problems)


def _start(emulator: DaiEmulator, chance: random.Random, way: str, number: int) -> str:
    """Start an ingest that finishes at any time, as often between a page of the list and a get as elsewhere."""
    outcome = "INVALID_MEDIA" if number % 5 == 0 else "success"
    name = f"operations/{way.replace(' ', '-')}/{number}"
    return emulator.start_ingest(name, seconds=chance.uniform(1, LONGEST), outcome=outcome)


def _make_list_wrong(
    emulator: DaiEmulator, chance: random.Random, every: list[str], hidden: list[str], lied_about: list[str]
) -> None:
    """Let the list leave out operations, show them on another page, and say of some that they run forever."""
    lies = [{"name": name, "metadata": {"@type": "lie"}} for name in lied_about]
    for name in chance.sample(every, min(20, len(every))):
        # It moves between two pages: it is on none of those that are read, or on two.
        emulator.inject(Fault(LIST, rate=SHARE / 40, omitted=name, listed=lies))
        emulator.inject(Fault(LIST, rate=SHARE / 40, listed=[{"name": name}, *lies]))
    for name in hidden[1:]:
        emulator.inject(Fault(LIST, rate=SHARE / len(hidden), omitted=name, listed=lies))
    unreadable = [None, {"done": True}, {"name": "operations/../x"}]
    emulator.inject(Fault(LIST, times=None, omitted=hidden[0], listed=[*unreadable, *lies]))


def _inject(emulator: DaiEmulator, share: float) -> None:
    for kind in KINDS:
        emulator.inject(Fault(GET, rate=share / len(KINDS), **kind))  # type: ignore[arg-type]


def _delete(emulator: DaiEmulator, names: list[str], chance: random.Random) -> set[str]:
    """Delete operations while they run, or have finished; return those whose ingest has run on."""
    running = set()
    for name in names:
        time.sleep(chance.uniform(0, LONGEST / len(names)))
        requests.delete(f"{emulator.endpoint}/v1/{name}", timeout=10).raise_for_status()
        if emulator.state(name) == "RUNNING":
            running.add(name)
    return running


def _run(work: Coroutine[Any, Any, T], tasks: list[int]) -> T:
    """Run a coroutine on an event loop of its own, and add the number of tasks that it leaves there."""

    async def main() -> T:
        result = await work
        tasks.append(await tasks_left())
        return result

    return asyncio.run(main())


def _trigger(name: str | list[str]) -> DaiOperationTrigger:
    return DaiOperationTrigger(name, poll_interval=INTERVAL, timeout=SECONDS)


async def _event(name: str | list[str]) -> Any:
    return [event.payload async for event in _trigger(name).run()][0]


def _one_trigger_each(names: list[str], tasks: list[int]) -> Outcomes:
    def outcome(event: dict[str, Any]) -> str:
        operation = event.get("operation")
        return str(operation["state"] if operation else event.get("code") or event["status"])

    async def main() -> Outcomes:
        events = await asyncio.gather(*map(_event, names))
        return {name: outcome(event) for name, event in zip(names, events, strict=True)}

    return _run(main(), tasks)


def _one_trigger_for_all(names: list[str], tasks: list[int]) -> Outcomes:
    event = _run(_event(names), tasks)
    if event["status"] != "finished":
        return dict.fromkeys(names, event["status"])
    finished, errors, *_ = read_many_event(event, names)
    return _outcomes(finished, errors)


def _worker(names: list[str], _: list[int]) -> Outcomes:
    with DaiHook() as hook:
        many = ManyWait(names, hook.make_wait("the operations", poll_interval=INTERVAL, timeout=SECONDS))
        with hook.workers(len(names)) as workers:
            hook.wait_for_many(workers, many)
    return _outcomes(many.finished, many.failed)


def _outcomes(finished: dict[str, Any], errors: dict[str, Any]) -> Outcomes:
    states = {name: operation.state.value for name, operation in finished.items()}
    return states | {name: error.rpc_code.value for name, error in errors.items()}
