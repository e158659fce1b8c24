"""Deferred waits of a real Airflow under faults, whose triggerer is killed in the middle and started again."""

from __future__ import annotations

import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import requests
from faults import inject
from judge import print_results, requests_against_the_rule

from airflow_dai_provider.emulator import DaiEmulator

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
from stack import Airflow2Stack, Airflow3Stack, StackError, make_stack, wait_until  # noqa: E402

#: How the waits end, and what has become of their operations.
ENDS = ("CANCELLED", "SUCCEEDED")


class Clock:
    """The time, which can be moved on."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def play_waits(waits: int, share: float, seed: int | None) -> int:
    """Play and print the table; return how many things went wrong."""
    airflow = version("apache-airflow")
    print(f"\n{waits} deferred waits on Airflow {airflow} with {share:.0%} of all looks failing", flush=True)
    clock = Clock()
    with DaiEmulator(seed=seed, clock=clock) as emulator:
        names = {
            end: [emulator.start_ingest(f"operations/{end.lower()}/{n}", seconds=3600) for n in range(waits // 2)]
            for end in ENDS
        }
        home = ROOT / ".airflow" / f"soak-{airflow}"
        with make_stack(home, Path(__file__).parent / "dags", {"DAI_EMULATOR_HOST": emulator.host}) as stack:
            stack.wait_for_dags(*(dag_id(end) for end in ENDS))
            inject(emulator, share, ["operations.get"])
            runs = {end: stack.trigger(dag_id(end), {"operations": names[end]}) for end in ENDS}
            states = disturb(stack, emulator, clock, names, runs)
            connections = open_connections(emulator)
    found = [name for end in ENDS for name in names[end]]
    asked = Counter({name: emulator.cancel_requested(name) for name in found})
    faults = emulator.faults_injected
    problems = {
        "wrong outcomes": [f"{task}: {state}" for task, state in states.items() if state in ("failed", "skipped")],
        "lost waits": [f"{task}: {state}" for task, state in states.items() if state not in ("success", "failed")],
        "strays": [name for name, state in emulator.states().items() if state == "RUNNING"],
        "healthy ingests cancelled": [name for name in names["SUCCEEDED"] if asked[name]],
        "cancelled more than once": [name for name in names["CANCELLED"] if asked[name] != 1],
        "requests beyond the retry rule": requests_against_the_rule(emulator.requests, sooner=3),
        "leaked connections": [f"{connections} connections"] * connections,
    }
    rows = {
        "waits that ended as they should": sum(state == "success" for state in states.values()),
        "looks": len(emulator.requests) - waits // 2,
        "faults injected": sum(faults.values()),
    }
    return print_results(rows, problems)


def disturb(
    stack: Airflow2Stack | Airflow3Stack,
    emulator: DaiEmulator,
    clock: Clock,
    names: dict[str, list[str]],
    runs: dict[str, str],
) -> dict[str, str]:
    """Kill the triggerer while all wait, have the operations end, and return how each task has ended."""

    def waiting() -> bool:
        states = [state for end in ENDS for state in stack.task_states(dag_id(end), runs[end]).values()]
        print(f"  {states.count('deferred')} deferred", flush=True)
        return states.count("deferred") == sum(map(len, names.values()))

    wait_until("all sensors to be deferred", waiting, 1200, 15)
    print("  killing the triggerer, and starting it again", flush=True)
    stack.kill_component("triggerer")
    stack.start_component("triggerer")
    seen = len(emulator.requests)
    wait_until("looks after the restart", lambda: len(emulator.requests) > seen + 10, 120)
    for name in names["CANCELLED"]:
        requests.post(f"{emulator.endpoint}/v1/{name}:cancel", timeout=10).raise_for_status()
    clock.ahead = 3600.0
    for end in ENDS:
        try:
            stack.wait_for_run(dag_id(end), runs[end], 1200)
        except StackError as error:
            print(f"  {error}", file=sys.stderr)
    return {
        f"{end} {task}": state
        for end in ENDS
        for task, state in stack.task_states(dag_id(end), runs[end]).items()
        if task.startswith("wait")
    }


def dag_id(end: str) -> str:
    return f"soak_{end.lower()}"


def open_connections(emulator: DaiEmulator) -> int:
    """Return how many connections to the emulator any process of this machine still holds, given time to go."""
    port = f":{int(emulator.host.rpartition(':')[2]):04X}"

    def count() -> int:
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        return sum(line.split()[2].endswith(port) and line.split()[3] == "01" for line in lines)

    for _ in range(50):
        if not count():
            break
        time.sleep(0.2)
    return count()
