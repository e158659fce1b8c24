"""Deferred waits of a real Airflow under faults, whose triggerer is killed in the middle and started again."""

from __future__ import annotations

import sys
import time
from importlib.metadata import version
from pathlib import Path

from faults import inject, too_few
from judge import print_results, requests_against_the_rule
from situations import OF_WAITS, front_end

from airflow_dai_provider.emulator import DaiEmulator
from tests.support.emulators import cancel_from_outside
from tests.support.postgresql import postgresql

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
from stack import Airflow2Stack, Airflow3Stack, StackError, make_stack, wait_until  # noqa: E402
from stack_airflow_2 import CONCURRENT  # noqa: E402

#: The final states of the operations.
STATES = ("CANCELLED", "SUCCEEDED")


class Clock:
    """The time, plus what a test adds."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def play_waits(waits: int, share: float, seed: int | None) -> int:
    """Play the waits and print the table; return the number of problems."""
    airflow = version("apache-airflow")
    print(f"\n{waits} deferred waits on Airflow {airflow} with {share:.0%} of all polls failing", flush=True)
    clock = Clock()
    with DaiEmulator(seed=seed, clock=clock) as emulator:
        names = {
            state: [emulator.start_ingest(f"operations/{state.lower()}/{n}", seconds=3600) for n in range(waits // 2)]
            for state in STATES
        }
        home = ROOT / ".airflow" / f"soak-{airflow}"
        dags = Path(__file__).parent / "dags"
        env = {"DAI_EMULATOR_HOST": emulator.host, **CONCURRENT}
        with postgresql() as database, make_stack(home, dags, env, database) as stack:
            stack.wait_for_dags(*(dag_id(state) for state in STATES))
            for number, name in enumerate(name for found in names.values() for name in found):
                OF_WAITS[number % len(OF_WAITS)](emulator, name)
            inject(emulator, share, ["operations.get"])
            runs = {state: stack.trigger(dag_id(state), {"operations": names[state]}) for state in STATES}
            tasks = disturb(stack, emulator, clock, names, runs)
            connections = open_connections(emulator)
    asked = {name: emulator.cancel_requested(name) for state in STATES for name in names[state]}
    faults = emulator.faults_injected
    problems = {
        "wrong outcomes": [f"{task}: {state}" for task, state in tasks.items() if state in ("failed", "skipped")],
        "lost waits": [
            f"{task}: {state}" for task, state in tasks.items() if state not in ("success", "failed", "skipped")
        ],
        "strays": [name for name, state in emulator.states().items() if state == "RUNNING"],
        "healthy ingests cancelled": [name for name in names["SUCCEEDED"] if asked[name]],
        "not cancelled exactly once": [name for name in names["CANCELLED"] if asked[name] != 1],
        "requests beyond the retry rule": requests_against_the_rule(emulator.requests, sooner=3),
        "leaked connections": [f"{connections} connections"] * connections,
        "faults missing": too_few(emulator, share, ["operations.get"]),
    }
    rows = {
        "waits that succeeded": list(tasks.values()).count("success"),
        "polls": len(emulator.requests) - waits // 2,
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
    """Kill the triggerer while all wait, let the operations finish, and return the state of each task."""

    def waiting() -> bool:
        states = [task for state in STATES for task in stack.task_states(dag_id(state), runs[state]).values()]
        print(f"  {states.count('deferred')} deferred", flush=True)
        return states.count("deferred") == sum(map(len, names.values()))

    wait_until("all sensors to be deferred", waiting, 1200, 15)
    for found in names.values():
        for name in found[:: len(OF_WAITS)]:
            front_end(emulator, name)
    print("  killing the triggerer, and starting it again", flush=True)
    stack.kill_component("triggerer")
    stack.start_component("triggerer")
    seen = len(emulator.requests)
    wait_until("polls after the restart", lambda: len(emulator.requests) > seen + 10, 120)
    cancel_from_outside(emulator, *names["CANCELLED"])
    clock.ahead = 3600.0
    for state in STATES:
        try:
            stack.wait_for_run(dag_id(state), runs[state], 1200)
        except StackError as error:
            print(f"  {error}", file=sys.stderr)
    return {
        f"{state} {task}": task_state
        for state in STATES
        for task, task_state in stack.task_states(dag_id(state), runs[state]).items()
        if task.startswith("wait")
    }


def dag_id(state: str) -> str:
    return f"soak_{state.lower()}"


def open_connections(emulator: DaiEmulator) -> int:
    """Return the number of connections to the emulator on this machine, after they have had time to close."""
    port = f":{int(emulator.host.rpartition(':')[2]):04X}"

    def count() -> int:
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        return sum(line.split()[2].endswith(port) and line.split()[3] == "01" for line in lines)

    for _ in range(50):
        if not count():
            break
        time.sleep(0.2)
    return count()
