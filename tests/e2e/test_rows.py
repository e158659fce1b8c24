"""Every row of the table of failures, played on a running Airflow: who cancels, and that no other ingest is hit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import report
from outcomes import AIRFLOW, Outcome, play_all, rows_of_this_airflow
from play import PATIENCE
from rows import FORMS, NO_STRAY, ROWS, Row
from stack import wait_until
from stage import EXECUTOR, Stage, stage_of

ROOT = Path(__file__).resolve().parents[2]
MANY = 50
HEALTHY_BESIDE = 5
#: Seconds from the end of a task until a sweep has cancelled: its interval, ``orphaned_for``, and a minute.
SWEPT_WITHIN = 30 + 5 + 60
#: Seconds until Airflow notices that a process or a worker is lost, and ends the task: see docs/guards.md.
NOTICED_WITHIN = 12 if AIRFLOW >= (3, 0) else 90
#: Seconds by which a cancellation may seem to come before its event: times are from several sources.
SKEW = 5


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with stage_of("rows") as stage:
        yield stage


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest, stage: Stage) -> dict[tuple[str, str], Outcome]:
    """Play the selected rows."""
    parameters = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    chosen = [chosen["row"].id for chosen in parameters if "row" in chosen]
    outcomes = play_all(stage.airflow, stage.service, rows_of_this_airflow(chosen))
    request.config.stash[report.PLAYED] = outcomes
    return outcomes


@pytest.fixture(scope="module")
def swept(stage: Stage, played: dict[tuple[str, str], Outcome]) -> dict[str, str]:
    """Sweep after all rows; return the states of a young ingest and of one to be spared."""
    emulator = stage.service.emulator
    time.sleep(15)
    young = emulator.start_ingest(seconds=7200)
    run = stage.airflow.trigger("sweep", {"older_than": 15, "spare": [stage.spared]})
    assert stage.airflow.wait_for_run("sweep", run, PATIENCE) == "success"
    for outcome in played.values():
        outcome.after_sweep = {name: emulator.state(name) for name in outcome.play.strays}
    return {"young": emulator.state(young), "spared": emulator.state(stage.spared)}


@pytest.mark.parametrize("guards", FORMS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"row_{row.id}")
def test_row(played: dict[tuple[str, str], Outcome], row: Row, guards: str) -> None:
    expected = row.expected(guards, AIRFLOW)
    if expected is None:
        pytest.skip(f"Airflow {AIRFLOW[0]}.{AIRFLOW[1]} lacks what this row needs, or the row cannot be played there")
    outcome = played[row.id, guards]
    assert not outcome.problem
    assert outcome.guard in expected.split("|"), outcome.cancellations
    assert outcome.play.strays or outcome.play.healthy
    assert outcome.seconds is None or outcome.seconds > -SKEW
    if guards == "swept":
        assert outcome.seconds is None or outcome.seconds < SWEPT_WITHIN + outcome.play.lost * NOTICED_WITHIN
    assert [outcome.healthy[name] for name in outcome.play.healthy] == ["SUCCEEDED"] * len(outcome.play.healthy)


def test_the_sweep_leaves_no_stray_and_spares_the_healthy(
    played: dict[tuple[str, str], Outcome], swept: dict[str, str]
) -> None:
    assert played
    # In some rows the ingest is one that is meant to run on, unless a guard is added.
    left = {
        key: outcome.after_sweep for key, outcome in played.items() if key not in {(row, "own") for row in NO_STRAY}
    }
    assert [key for key, states in left.items() if "RUNNING" in states.values()] == []
    assert swept == {"young": "RUNNING", "spared": "RUNNING"}


def test_the_documentation_shows_what_was_measured(
    played: dict[tuple[str, str], Outcome], swept: dict[str, str]
) -> None:
    """Seconds may differ, and so may the first guard where several are expected."""
    heading = f"Airflow {AIRFLOW[0]}.{AIRFLOW[1]}{' with the CeleryExecutor' if EXECUTOR == 'celery' else ''}"
    _, title, section = (ROOT / "docs" / "guards.md").read_text().partition(f"\n## {heading}\n")
    if not title:
        pytest.skip("docs/guards.md has no table of this Airflow")
    documented = report.guards_of(section)
    measured = report.guards_of(report.table(played))
    assert measured
    for row, cells in measured.items():
        for guards, shown, seen in zip(FORMS, documented[row], cells, strict=False):
            expected = str(played[row, "own"].row.expected(guards, AIRFLOW)).split("|")
            assert shown == seen or {shown, seen} <= set(expected), (
                f"row {row}, {guards}: {shown} is documented, {seen} was measured"
            )
        assert documented[row][-1] == cells[-1]
    everything = rows_of_this_airflow(row.id for row in ROWS)
    if len(measured) == len(everything):
        assert documented.keys() == measured.keys()


def test_runs_that_fail_at_once_cancel_each_its_own_ingest(stage: Stage) -> None:
    """The DAG's callback is the only guard; ingests of other runs succeed."""
    airflow, service = stage.airflow, stage.service
    healthy_url, failing_url = "https://media.example.com/burst/healthy/", "https://media.example.com/burst/failing/"
    beside = [
        airflow.trigger("waits__rings", {"url": f"{healthy_url}{number}.mp4?seconds=150"})
        for number in range(HEALTHY_BESIDE)
    ]
    wait_until("the healthy ones", lambda: len(service.ingests(healthy_url)) == HEALTHY_BESIDE, PATIENCE)
    runs = [
        airflow.trigger("burst", {"url": f"{failing_url}{number}.mp4?seconds=7200&cancel_seconds=1"})
        for number in range(MANY)
    ]
    assert [airflow.wait_for_run("burst", run, 900) for run in runs] == ["failed"] * MANY

    def cancelled() -> bool:
        return all(service.cancels(ingest.name) for ingest in service.ingests(failing_url))

    wait_until("the cancels", cancelled, PATIENCE, 1)
    assert len(service.ingests(failing_url)) == MANY
    assert [airflow.wait_for_run("waits__rings", run, 300) for run in beside] == ["success"] * HEALTHY_BESIDE
    emulator = service.emulator
    assert [emulator.state(ingest.name) for ingest in service.ingests(healthy_url)] == ["SUCCEEDED"] * HEALTHY_BESIDE
    requests = [len(service.cancels(ingest.name)) for ingest in service.ingests(failing_url)]
    print(f"{MANY} runs failed at once: {sum(requests)} cancel requests, at most {max(requests)} for one ingest")
