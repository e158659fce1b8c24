"""A campaign of a day in production: many ingests under faults, while Airflow loses a process of each kind."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from play import Play
from stack import CeleryStack, wait_until
from stage import EXECUTOR, INSTALLATION, Stage, stage_of

from tests.soak.faults import inject

pytestmark = pytest.mark.skipif(EXECUTOR != "celery", reason="make e2e EXECUTOR=celery")

ROOT = Path(__file__).resolve().parents[2]
#: The ingests of one task, and of as many mapped tasks.
LISTED, MAPPED = 1_000, 200
#: Seconds of an ingest: until all kills are over.
LONG = 420
#: The share of the service's responses that fail.
FAULTS = 0.05
PATIENCE = 1800


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with stage_of("production") as stage:
        yield stage


@dataclass
class Processes:
    """The processes of an Airflow that are lost and started again, and the CPU that all have used."""

    airflow: CeleryStack
    killed: list[str] = field(default_factory=list)
    _of_killed: float = 0.0

    def lose(self, component: str, kill: Callable[[str], object]) -> None:
        """Kill a component, and start it again."""
        before = self.airflow.cpu_seconds()
        kill(component)
        self._of_killed += before - self.airflow.cpu_seconds()
        self.killed.append(component)
        self.airflow.start_component(component)

    @property
    def cpu_seconds(self) -> float:
        return self.airflow.cpu_seconds() + self._of_killed


def test_a_campaign_outlives_a_worker_a_triggerer_and_the_scheduler(stage: Stage) -> None:
    airflow, emulator = stage.airflow, stage.service.emulator
    assert isinstance(airflow, CeleryStack)
    processes = Processes(airflow)
    listed = Play(airflow, stage.service, "production-list", "many_as_list", "own")
    mapped = Play(airflow, stage.service, "production-mapped", "many_defer", "own")
    inject(emulator, FAULTS)
    cpu, began = processes.cpu_seconds, time.monotonic()
    for play, number in ((listed, LISTED), (mapped, MAPPED)):
        play.run_id = airflow.trigger(play.dag_id, {"url": play.media(seconds=LONG), "number": number})

    def started() -> int:
        return len(stage.service.ingests(listed.url))

    def deferred() -> int:
        return Counter(airflow.task_states(mapped.dag_id, mapped.run_id).values())["deferred"]

    wait_until("a third of the list", lambda: started() > LISTED // 3, PATIENCE, 0.1)
    processes.lose(airflow.component_of(listed.dag_id, listed.run_id, "ingest"), airflow.end_worker)
    assert started() < LISTED, "The worker should have been lost while it started ingests."
    wait_until("a third of the mapped ones", lambda: deferred() > MAPPED // 3, PATIENCE, 1.0)
    processes.lose("triggerer", airflow.kill_component)
    wait_until("two thirds of the mapped ones", lambda: deferred() > MAPPED * 2 // 3, PATIENCE, 1.0)
    processes.lose("scheduler", lambda _: airflow.lose_scheduler())
    runs = [airflow.wait_for_run(play.dag_id, play.run_id, PATIENCE) for play in (listed, mapped)]
    seconds, cpu = time.monotonic() - began, processes.cpu_seconds - cpu
    requests, faults = len(emulator.requests), sum(emulator.faults_injected.values())
    emulator.clear_faults()

    found = [judge(listed, LISTED), judge(mapped, MAPPED)]
    write_table(
        found,
        f"Killed and started again: {', '.join(processes.killed)}. Of {requests:,} requests, {faults:,} met a fault. "
        f"The campaign took {seconds:.0f} s, and {cpu:.0f} s of CPU of all processes of Airflow.",
    )
    assert runs == ["success", "success"]
    assert [(one.ingests, one.wrong, one.strays, one.second, one.cancelled) for one in found] == [
        (LISTED, 0, 0, 0, 0),
        (MAPPED, 0, 0, 0, 0),
    ]
    assert faults > FAULTS * requests / 4


@dataclass(frozen=True)
class Result:
    """What the service knows of the ingests of a run, and what the run's tasks say of them.

    :param ingests: the number of media files that were ingested.
    :param wrong: of those whose ingest has not succeeded, or whose task says something else.
    :param strays: of the ingests that still run.
    :param second: of those of a media file that has another one.
    :param cancelled: of those whose cancellation was requested.
    """

    form: str
    ingests: int
    wrong: int
    strays: int
    second: int
    cancelled: int


def judge(play: Play, number: int) -> Result:
    """Compare the tasks of a finished run with the service's own record."""
    service, airflow = play.service, play.airflow
    started = service.ingests(play.url)
    names = {one.url: one.name for one in started}
    tasks = airflow.task_states(play.dag_id, play.run_id)
    as_list = tasks.get("ingest") == "success"
    told = airflow.xcom(play.dag_id, play.run_id, "ingest") if as_list else [None] * number

    def is_right(index: int) -> bool:
        name = names.get(f"{play.media(seconds=LONG)}&number={index}", "")
        succeeded = name != "" and service.emulator.state(name) == "SUCCEEDED"
        return succeeded and (told[index] == name or tasks.get(f"ingest[{index}]") == "success")

    return Result(
        "one task" if as_list else "mapped tasks",
        len(names),
        sum(not is_right(index) for index in range(number)),
        sum(service.emulator.state(one.name) == "RUNNING" for one in started),
        len(started) - len(names),
        sum(bool(service.cancels(one.name)) for one in started),
    )


def write_table(found: list[Result], below: str) -> None:
    """Print the table of a campaign, and write it to a file, in the form that docs/guards.md has."""
    lines = [
        "| campaign | ingests | wrong outcomes | strays | second ingests | cancelled |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.form} | {one.ingests:,} | {one.wrong} | {one.strays} | {one.second} | {one.cancelled} |"
        for one in found
    ]
    text = "\n".join([*lines, "", below])
    (ROOT / ".airflow" / f"campaign-{INSTALLATION}.md").write_text(f"{text}\n")
    print(text)
