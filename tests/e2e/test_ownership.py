"""The rows again, with nothing but the operator and one sweep DAG: no stray is left, and no healthy ingest is hit."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import pytest
from outcomes import AIRFLOW, SETTINGS, Outcome, play_all
from play import Play, Service
from rows import AIRFLOW_3, ROWS, STATE_STORE, Row
from stack import make_stack
from stack_airflow_2 import CONCURRENT
from test_rows import Stage

from airflow_dai_provider.emulator import DaiEmulator
from tests.support.postgresql import postgresql

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".airflow" / f"swept-{version('apache-airflow')}"
FORM = "swept"
#: Seconds from the event until a stray is cancelled: the sweep's interval here, ``orphaned_for``, and a minute.
SOON_ENOUGH = 10 + 5 + 60

pytestmark = pytest.mark.skipif(
    AIRFLOW_3 <= AIRFLOW < STATE_STORE, reason="Airflow 3.0 to 3.2 know no owners, only ages"
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    dags = HOME.with_suffix(".dags")
    shutil.rmtree(dags, ignore_errors=True)
    dags.mkdir(parents=True)
    for name in ("rows.py", "sweeping.py"):
        shutil.copy(Path(__file__).parent / "dags" / name, dags)
    # The other sweep goes by age.
    rows = dags / "rows.py"
    rows.write_text(rows.read_text().partition('\nwith DAG("sweep"')[0] + "\n")
    logging.getLogger("airflow_dai_provider.emulator").setLevel(logging.WARNING)
    with ExitStack() as stack:
        emulator = stack.enter_context(DaiEmulator())
        env = {"DAI_EMULATOR_HOST": emulator.host, **SETTINGS}
        database = None
        if AIRFLOW < AIRFLOW_3:
            env |= CONCURRENT
            database = stack.enter_context(postgresql())
        airflow = stack.enter_context(make_stack(HOME, dags, env, database))
        airflow.wait_for_dags("waits__swept", "sweep")
        # As another system starts one, and a task at another endpoint.
        yield Stage(airflow, Service(emulator), emulator.start_ingest(seconds=7200))


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest, stage: Stage) -> dict[tuple[str, str], Outcome]:
    parameters = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    chosen = {chosen["row"].id for chosen in parameters if "row" in chosen}
    rows = [row for row in ROWS if row.id in chosen and row.expected(FORM, AIRFLOW)]
    return play_all(stage.airflow, stage.service, rows, (FORM,))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"row_{row.id}")
def test_the_sweep_leaves_no_stray(played: dict[tuple[str, str], Outcome], row: Row) -> None:
    expected = row.expected(FORM, AIRFLOW)
    if expected is None:
        pytest.skip(f"Airflow {AIRFLOW[0]}.{AIRFLOW[1]} lacks what this row needs, or nothing of it is a stray")
    outcome = played[row.id, FORM]
    assert not outcome.problem
    assert outcome.guard in expected.split("|"), outcome.cancellations
    assert outcome.guard != "sweep" or (outcome.seconds or 0) < SOON_ENOUGH
    assert [outcome.healthy[name] for name in outcome.play.healthy] == ["SUCCEEDED"] * len(outcome.play.healthy)


def test_what_another_system_has_started_is_left_alone(played: dict[tuple[str, str], Outcome], stage: Stage) -> None:
    assert stage.service.emulator.state(stage.spared) == "RUNNING"
    assert stage.service.cancels(stage.spared) == []


def test_a_task_that_does_not_wait_keeps_its_ingest_in_a_run_that_has_succeeded(stage: Stage) -> None:
    play = Play(stage.airflow, stage.service, "healthy", "then_work", FORM)
    play.start(work="skip")
    name = play.ingest().name
    play.run_is("success")
    _wait_for_sweeps(stage)
    assert stage.service.cancels(name) == []


def test_a_retry_in_its_delay_keeps_its_ingest(stage: Stage) -> None:
    play = Play(stage.airflow, stage.service, "delay", "waits_for_retry", FORM)
    play.start()
    name = play.ingest().name
    play.task_is("up_for_retry")
    _wait_for_sweeps(stage)
    assert (stage.service.cancels(name), stage.service.emulator.state(name)) == ([], "RUNNING")


def test_a_deleted_run_leaves_no_stray(stage: Stage) -> None:
    """Its process is lost before, so nothing of it can cancel."""
    play = Play(stage.airflow, stage.service, "deleted", "waits", FORM)
    play.start()
    play.waits()
    play.strays = [play.ingest().name]
    play.kill(worker=True)
    play.airflow.mark_run(play.dag_id, play.run_id, "failed")
    play.delete()
    play.cancelled()


def _wait_for_sweeps(stage: Stage, number: int = 2) -> None:
    """Wait until so many sweeps have begun and ended from now on."""
    lists = [request for request in stage.service.emulator.requests if request.method == "operations.list"]
    seen = len(lists)

    def swept() -> bool:
        now = [request for request in stage.service.emulator.requests if request.method == "operations.list"]
        return len(now) > seen + number

    from stack import wait_until

    wait_until("sweeps", swept, 180, 1.0)
