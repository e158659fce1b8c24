"""Play all rows on one running Airflow, phase by phase, and record the outcome of each."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version

from disturbances import DISTURBANCES, TOGETHER, TRIGGERER_STALLED
from guards import Cancellation, cancellations
from play import PATIENCE, Play, Service, Stack
from rows import FORMS, LEAK, ROWS, UNHARMED, Row
from stack import StackError, wait_until

from airflow_dai_provider.emulator import DaiEmulator

MAJOR, MINOR = map(int, version("apache-airflow").split(".")[:2])
AIRFLOW = (MAJOR, MINOR)
#: Plays at a time; fewer than Airflow's slots, since each play holds up to three. On SQLite the API server of Airflow
#: 3.0 stalls under 12. When more tasks start at once, heartbeats are late, and Airflow takes the tasks for lost.
PLAYS_AT_ONCE = 3 if AIRFLOW == (3, 0) else 9 if AIRFLOW > (3, 0) else 5

#: Seconds after its event at which a running ingest counts as leaked, where no guard is expected. Longer than it takes
#: to notice a lost worker.
LEAK_SECONDS = 30 if AIRFLOW >= (3, 0) else 90

#: Settings of Airflow for so many rows in one DAG file.
SETTINGS = {
    "AIRFLOW__CORE__PARALLELISM": "24",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
    "AIRFLOW__SCHEDULER__MIN_FILE_PROCESS_INTERVAL": "10",
}


@dataclass
class Outcome:
    """The outcome of a row with one set of guards: its play, and the error if it could not be played."""

    row: Row
    play: Play
    problem: str = ""
    #: The state of each stray after the phase, and after the sweep.
    before_sweep: dict[str, str] = field(default_factory=dict)
    after_sweep: dict[str, str] = field(default_factory=dict)
    cancels: dict[str, list[float]] = field(default_factory=dict)
    cancellations: list[Cancellation] = field(default_factory=list)
    healthy: dict[str, str] = field(default_factory=dict)

    def record_states(self, emulator: DaiEmulator, logged: list[Cancellation]) -> None:
        """Record the states of the ingests, before a later phase can change them."""
        self.before_sweep = {name: str(emulator.state(name).value) for name in self.play.strays}
        self.healthy = {name: str(emulator.state(name).value) for name in self.play.healthy}
        self.record_cancellations(logged)

    def record_cancellations(self, logged: list[Cancellation]) -> None:
        """Record who has requested which cancellation until now."""
        names = {*self.play.strays, *self.play.healthy}
        self.cancels = {name: self.play.service.cancels(name) for name in self.play.strays}
        self.cancellations = [one for one in logged if one.operation in names]

    @property
    def leaks_as_expected(self) -> bool:
        return not self.problem and self.row.expected(self.play.guards, AIRFLOW) == LEAK

    @property
    def leaks(self) -> bool:
        return any(state != "CANCELLED" for state in self.before_sweep.values())

    @property
    def requests(self) -> int:
        return sum(len(times) for times in self.cancels.values())

    @property
    def seconds(self) -> float | None:
        """Seconds from the event until the cancellation of every stray had been requested."""
        if self.leaks or not self.play.strays:
            return None
        return max(self.cancels[name][0] for name in self.play.strays) - self.play.event_time

    @property
    def guard(self) -> str:
        """The guard that came first, according to the logs."""
        if not self.play.strays:
            return UNHARMED
        if self.leaks:
            return LEAK
        return next((one.guard for one in self.cancellations if one.operation in self.play.strays), "unknown")


def rows_of_this_airflow(wanted: Iterable[str]) -> list[Row]:
    wanted = set(wanted)
    return [row for row in ROWS if row.id in wanted and row.expected("own", AIRFLOW) is not None]


def play_all(airflow: Stack, service: Service, rows: list[Row]) -> dict[tuple[str, str], Outcome]:
    """Play the rows in each form: together if they leave Airflow undisturbed, the others one phase after the other."""
    played: dict[tuple[str, str], Outcome] = {}
    for phase in dict.fromkeys(row.phase for row in rows):
        outcomes = [
            Outcome(row, Play(airflow, service, row.id, row.dag, guards))
            for row in rows
            if row.phase == phase
            for guards in FORMS
            if row.expected(guards, AIRFLOW) is not None
        ]
        started = time.monotonic()
        _play_phase(airflow, phase, outcomes)
        _wait_for_guards(airflow, service.emulator, outcomes)
        print(f"{phase}: {len(outcomes)} plays in {time.monotonic() - started:.0f} s", flush=True)
        played |= {(outcome.row.id, outcome.play.guards): outcome for outcome in outcomes}
    logged = cancellations(airflow.home)
    for outcome in played.values():
        outcome.record_cancellations(logged)
    return played


def _wait_for_guards(airflow: Stack, emulator: DaiEmulator, outcomes: list[Outcome]) -> None:
    """Wait until the expected guards have cancelled, and unexpected ones have had time to; record the states."""

    def finished() -> bool:
        return not any(
            emulator.state(name) == "RUNNING"
            for outcome in outcomes
            if not outcome.problem
            for name in [*outcome.play.healthy, *([] if outcome.leaks_as_expected else outcome.play.strays)]
        )

    # After a timeout, the test of the row reports the ingest that still runs.
    with suppress(StackError):
        wait_until("the guards", finished, PATIENCE, 1)
    leaks = [outcome.play.event_time for outcome in outcomes if outcome.leaks_as_expected]
    time.sleep(max(0.0, max(leaks, default=0.0) + LEAK_SECONDS - time.time()))
    logged = cancellations(airflow.home)
    for outcome in outcomes:
        outcome.record_states(emulator, logged)


def _play_phase(airflow: Stack, phase: str, outcomes: list[Outcome]) -> None:
    steps = [(outcome, _steps(outcome)) for outcome in outcomes]
    with ThreadPoolExecutor(PLAYS_AT_ONCE if phase == TOGETHER or phase in DISTURBANCES else 1) as pool:
        for disturb in DISTURBANCES.get(phase, ()):
            list(pool.map(_next_step, steps))
            disturb(airflow)
        list(pool.map(_all_steps, steps))
    if phase == TRIGGERER_STALLED:
        airflow.kill_component("another-triggerer")


def _steps(outcome: Outcome) -> Iterator[None]:
    yield from outcome.row.play(outcome.play) or ()


def _next_step(step: tuple[Outcome, Iterator[None]]) -> None:
    outcome, steps = step
    if outcome.problem:
        return
    try:
        next(steps, None)
    except Exception as error:
        outcome.problem = "".join(traceback.format_exception_only(error))


def _all_steps(step: tuple[Outcome, Iterator[None]]) -> None:
    outcome, steps = step
    if outcome.problem:
        return
    try:
        for _ in steps:
            pass
    except Exception as error:
        outcome.problem = "".join(traceback.format_exception_only(error))
