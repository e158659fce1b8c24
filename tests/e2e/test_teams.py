"""Teams, queues of triggerers, and DAG bundles with versions, which Airflow 3.3 has.

There are two teams. Each has a triggerer, which takes the triggers of its queue only. The DAGs of one team come from a
bundle with versions. The sweep belongs to no team.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from messages import NAME_UNKNOWN
from outcomes import AIRFLOW
from play import Play, Service
from stack import Airflow3Stack, wait_until

from airflow_dai_provider.emulator import DaiEmulator, Fault

pytestmark = pytest.mark.skipif(AIRFLOW < (3, 3), reason="Airflow has these since 3.3, or since shortly before")

HERE = Path(__file__).resolve().parent
TEAMS = ("ads", "video")


class TeamsStack(Airflow3Stack):
    """Airflow with teams, which it has to know before its components read the configuration of the bundles."""

    def _settings(self, dags: Path) -> dict[str, str]:
        settings = super()._settings(dags)
        triggerer = self.components["triggerer"]
        self.components = {
            **self.components,
            "triggerer": [*triggerer, "--queues", "default"],
            "second-triggerer": [*triggerer, "--team-name", "ads", "--queues", "ads"],
            "another-triggerer": [*triggerer, "--team-name", "video", "--queues", "video"],
        }
        local = "airflow.dag_processing.bundles.local.LocalDagBundle"
        bundles = [
            {"name": "shared", "classpath": local, "kwargs": {"path": str(dags / "shared")}},
            {"name": "ads", "classpath": local, "kwargs": {"path": str(dags / "ads")}, "team_name": "ads"},
            {
                "name": "video",
                "classpath": "folder_bundle.FolderBundle",
                "kwargs": {"root": str(dags / "video"), "refresh_interval": 3},
                "team_name": "video",
            },
        ]
        return settings | {
            "PYTHONPATH": f"{HERE / 'bundles'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "AIRFLOW__CORE__MULTI_TEAM": "True",
            "AIRFLOW__TRIGGERER__QUEUES_ENABLED": "True",
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
        }

    def start_component(self, component: str) -> None:
        if not self.processes:
            self.airflow("teams", "sync")
        super().start_component(component)


@pytest.fixture(scope="module")
def dags() -> Path:
    """Give the folder with the bundles."""
    root = HERE.parents[1] / ".airflow" / f"teams-{version('apache-airflow')}.dags"
    shutil.rmtree(root, ignore_errors=True)
    # Of an older version of a bundle too, Airflow looks for a DAG in the file in which the last version has it.
    files = {
        "shared/sweep.py": "sweep.py",
        "ads/ingests.py": "ingests.py",
        "video/1/video/ingests.py": "ingests.py",
        "video/2/video/ingests.py": "emptied.py",
    }
    for target, file in files.items():
        (root / target).parent.mkdir(parents=True)
        shutil.copy(HERE / "team_dags" / file, root / target)
    (root / "video" / "latest").write_text("1")
    return root


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with DaiEmulator() as emulator:
        yield Service(emulator)


@pytest.fixture(scope="module")
def airflow(service: Service, dags: Path) -> Iterator[TeamsStack]:
    home = dags.with_suffix("")
    with TeamsStack(home, dags, {"DAI_EMULATOR_HOST": service.emulator.host}) as stack:
        stack.wait_for_dags("sweep", *(f"{team}_waits__own" for team in TEAMS))
        yield stack


@pytest.fixture
def make_play(airflow: TeamsStack, service: Service, request: pytest.FixtureRequest) -> Callable[[str], Play]:
    number = iter(range(100))
    name = request.node.originalname
    return lambda dag: Play(airflow, service, f"{name}-{next(number)}", dag, "own")


def sweep(airflow: TeamsStack) -> str:
    run = airflow.trigger("sweep")
    assert airflow.wait_for_run("sweep", run) == "success", airflow.task_log("sweep", run, "sweep")
    return airflow.task_log("sweep", run, "sweep")


def test_the_triggerer_of_a_team_waits_and_cancels(make_play: Callable[[str], Play]) -> None:
    for team in TEAMS:
        finished, killed = make_play(f"{team}_defers"), make_play(f"{team}_defers")
        finished.start(seconds=20)
        killed.start()
        killed.strays = [killed.waits("deferred").name]
        killed.mark("failed")
        killed.cancelled()
        finished.task_is("success")


def test_one_sweep_cancels_the_strays_of_every_team_and_no_others(
    airflow: TeamsStack, service: Service, make_play: Callable[[str], Play]
) -> None:
    strays, healthy = [], []
    for team in TEAMS:
        lost, lives = make_play(f"{team}_waits"), make_play(f"{team}_waits")
        for play in (lost, lives):
            play.start()
        strays.append(lost.waits().name)
        healthy.append(lives.waits().name)
        lost.kill()
        lost.task_is("failed")
    sweep(airflow)
    assert [service.emulator.state(name) for name in strays] == ["CANCELLED"] * len(TEAMS)
    assert [service.emulator.state(name) for name in healthy] == ["RUNNING"] * len(TEAMS)


def test_a_sweep_needs_no_xcom_of_another_team(
    airflow: TeamsStack, service: Service, make_play: Callable[[str], Play]
) -> None:
    """Airflow refuses it. The record tells that a request for this media got no response."""
    play = make_play("ads_waits")
    service.emulator.inject(Fault("creatives.create", drop="after"))
    service.emulator.unimplement("operations.list")
    try:
        play.start()
        play.task_is("failed")
        play.log_says(NAME_UNKNOWN)
    finally:
        service.emulator.implement("operations.list")
    log = sweep(airflow)
    assert service.emulator.state(play.ingest().name) == "CANCELLED"
    assert f"Cannot read the XCom operation_started of task ingest of run {play.run_id} of DAG ads_waits__own" in log


def test_a_run_keeps_the_version_of_its_dag(
    airflow: TeamsStack, service: Service, dags: Path, make_play: Callable[[str], Play]
) -> None:
    """The next version has no ingests: callback, trigger and resumed task are those of the first."""
    lost, killed, finished = make_play("video_waits"), make_play("video_defers"), make_play("video_defers")
    lost.start()
    lost.strays = [lost.waits().name]
    killed.start()
    killed.strays = [killed.waits("deferred").name]
    finished.start(seconds=90)
    finished.waits("deferred")

    (dags / "video" / "latest").write_text("2")
    ids = [lost.dag_id, killed.dag_id]
    wait_until(
        "the next version", lambda: {airflow.api("GET", f"dags/{one}")["bundle_version"] for one in ids} == {"2"}, 120
    )
    lost.kill(worker=True)
    killed.happens()
    # A single task that the next version does not have cannot be marked.
    airflow.mark_run(killed.dag_id, killed.run_id, "failed")
    for play in (killed, lost):
        play.task_is("failed")
        play.cancelled()
    finished.task_is("success")
    assert service.emulator.state(finished.ingest().name) == "SUCCEEDED"
