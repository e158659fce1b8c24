"""The sweep by owner beside the rows: what it leaves alone, what it finds without a name, and what disturbs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from outcomes import AIRFLOW
from play import PATIENCE, Play
from rows import STATE_STORE
from stack import Airflow3Stack, wait_until
from stage import Stage, stage_of

from airflow_dai_provider.emulator import DaiEmulator, Fault

READS_AGAIN = "Reading their states again"
DAY = 86400.0

pytestmark = pytest.mark.skipif(AIRFLOW < STATE_STORE, reason="Only Airflow 3.3 and later have records of owners")


class ServiceClock:
    """The clock of the service, which can be set back for a while."""

    behind = 0.0

    def __call__(self) -> float:
        return time.time() - self.behind


@pytest.fixture(scope="module")
def service_clock() -> ServiceClock:
    return ServiceClock()


@pytest.fixture(scope="module")
def stage(service_clock: ServiceClock) -> Iterator[Stage]:
    with stage_of("ownership", service_clock) as stage:
        yield stage


@pytest.fixture
def airflow(stage: Stage) -> Airflow3Stack:
    assert isinstance(stage.airflow, Airflow3Stack)
    return stage.airflow


@pytest.fixture
def make_play(stage: Stage, request: pytest.FixtureRequest) -> Callable[..., Play]:
    """Give a function that makes a play of a DAG, in the form that the sweep looks after; ``own`` is left alone."""
    number = iter(range(100))

    def make(dag: str, form: str = "swept") -> Play:
        return Play(stage.airflow, stage.service, f"{request.node.name}-{next(number)}", dag, form)

    return make


@pytest.fixture
def sweep_once(airflow: Airflow3Stack) -> Callable[..., str]:
    """Give a function that starts a sweep of a play's ingests, and waits until it is about to read the states again."""

    def start(play: Play, orphaned_for: float) -> str:
        run = airflow.trigger("sweep_once", {"prefix": play.url, "orphaned_for": orphaned_for})

        def reads() -> bool:
            return any(READS_AGAIN in line for line in airflow.task_log_lines("sweep_once", run, "sweep"))

        wait_until("the first read", reads, PATIENCE, 0.5)
        return run

    return start


def lose(play: Play) -> str:
    """Start an ingest, and kill the process of its task, which has no retries; return the name of what is left."""
    play.start()
    name = play.waits().name
    play.kill()
    play.task_is("failed")
    return name


def is_untouched(stage: Stage, *names: str) -> bool:
    """Return whether operations are left alone by two sweeps from now on."""

    def sweeps() -> int:
        return int(stage.airflow.api("GET", "dags/sweep_owned/dagRuns?state=success&limit=1")["total_entries"])

    before = sweeps()
    # The one that runs now can have listed before.
    wait_until("sweeps", lambda: sweeps() >= before + 3, PATIENCE, 1.0)
    emulator = stage.service.emulator
    return all(emulator.state(name) == "RUNNING" and not stage.service.cancels(name) for name in names)


def is_cancelled(stage: Stage, name: str) -> bool:
    """Wait until an ingest is cancelled."""
    wait_until(f"the end of {name}", lambda: stage.service.emulator.state(name) != "RUNNING", PATIENCE, 0.5)
    return stage.service.emulator.state(name) == "CANCELLED"


class TestHealthy:
    def test_what_another_system_has_started(self, stage: Stage) -> None:
        name = stage.service.emulator.start_ingest(seconds=7200, creative_url="https://media.example.com/x/swept/0.mp4")
        assert is_untouched(stage, name, stage.spared)

    def test_a_task_that_does_not_wait_in_a_run_that_has_succeeded(self, stage: Stage, make_play: Any) -> None:
        play = make_play("then_work")
        play.start(work="skip")
        play.run_is("success")
        assert is_untouched(stage, play.ingest().name)

    def test_a_task_that_waits_for_its_retry(self, stage: Stage, make_play: Any) -> None:
        play = make_play("waits_for_retry")
        play.start()
        play.task_is("up_for_retry")
        assert is_untouched(stage, play.ingest().name)

    def test_a_paused_dag_for_a_day(
        self, stage: Stage, airflow: Airflow3Stack, make_play: Any, service_clock: ServiceClock
    ) -> None:
        """By the service's clock the ingest is a day old, and nothing of the run goes on."""
        play = make_play("waits_for_retry")
        service_clock.behind = 1.1 * DAY
        try:
            play.start(seconds=10 * DAY)
            name = play.ingest().name
        finally:
            service_clock.behind = 0.0
        play.task_is("up_for_retry")
        airflow.api("PATCH", f"dags/{play.dag_id}", json={"is_paused": True})
        try:
            run = airflow.trigger("sweep_once", {"prefix": play.url})
            assert airflow.wait_for_run("sweep_once", run) == "success"
            report = airflow.xcom("sweep_once", run, "sweep")
            assert (report["passed_over"]["owned"], report["found"]) == (1, [])
            assert is_untouched(stage, name)
        finally:
            airflow.api("PATCH", f"dags/{play.dag_id}", json={"is_paused": False})

    def test_a_task_that_is_cleared_between_the_two_reads(
        self, stage: Stage, airflow: Airflow3Stack, make_play: Any, sweep_once: Any
    ) -> None:
        play = make_play("waits", "own")
        name = lose(play)
        run = sweep_once(play, 40)
        play.clear()
        play.task_is("running", tries=2)
        assert airflow.wait_for_run("sweep_once", run) == "success"
        assert airflow.xcom("sweep_once", run, "sweep")["found"] == []
        play.is_polled()
        assert (stage.service.emulator.state(name), stage.service.cancels(name)) == ("RUNNING", [])
        assert [one.name for one in stage.service.ingests(play.url)] == [name]

    def test_a_mapped_sibling(self, stage: Stage, make_play: Any) -> None:
        play = make_play("mapped")
        play.start(urls=[play.media(number) for number in range(3)])
        play.ingest(2)
        by_url = {one.url: one.name for one in stage.service.ingests(play.url)}
        play.strays = [by_url.pop(play.media(1))]
        play.kill(map_index=1, worker=True)
        play.cancelled()
        assert is_untouched(stage, *by_url.values())

    def test_the_same_media_of_another_run(self, stage: Stage, make_play: Any) -> None:
        play, other = make_play("waits"), make_play("waits")
        other.url = play.url
        play.start()
        play.strays = [play.waits().name]
        other.start()
        healthy = other.ingest(1).name
        play.kill()
        play.cancelled()
        assert is_untouched(stage, healthy)

    def test_a_task_that_is_not_meant_to_cancel(self, stage: Stage, make_play: Any) -> None:
        play = make_play("keeps")
        play.start()
        play.run_is("failed")
        assert is_untouched(stage, play.ingest().name)


class TestWithoutName:
    def test_a_start_that_was_lost_is_attempted_again(
        self, stage: Stage, airflow: Airflow3Stack, make_play: Any
    ) -> None:
        """Where a sweep has begun that has no filter."""
        assert airflow.wait_for_run("sweep_all", airflow.trigger("sweep_all")) == "success"
        play = make_play("waits")
        stage.service.emulator.inject(Fault("creatives.create", drop="before"))
        play.start(seconds=20)
        play.task_is("success")
        play.log_says("Sending the create request again")
        assert len(stage.service.ingests(play.url)) == 1

    def test_a_retry_after_a_lost_response_keeps_its_own_ingest(self, stage: Stage, make_play: Any) -> None:
        play = make_play("waits_with_retry")
        stage.service.emulator.inject(Fault("creatives.create", delay=120))
        play.start()
        play.strays = [play.ingest().name]
        play.kill(worker=True)
        healthy = play.ingest(1).name
        play.cancelled()
        play.task_is("running", tries=2)
        assert is_untouched(stage, healthy)

    def test_a_deleted_run(self, stage: Stage, airflow: Airflow3Stack, make_play: Any, sweep_once: Any) -> None:
        play = make_play("waits", "own")
        play.start()
        name = play.waits().name
        play.kill()
        play.run_is("failed")
        play.delete()
        run = sweep_once(play, 5)
        assert airflow.wait_for_run("sweep_once", run) == "success"
        (found,) = airflow.xcom("sweep_once", run, "sweep")["found"]
        assert (found["name"], found["owner"]["reason"]) == (name, "is gone with its run")
        assert is_cancelled(stage, name)


class TestDisturbed:
    def test_two_sweeps_at_once(self, stage: Stage, airflow: Airflow3Stack, make_play: Any, sweep_once: Any) -> None:
        play = make_play("waits", "own")
        name = lose(play)
        runs = [sweep_once(play, seconds) for seconds in (40, 20)]
        assert [airflow.wait_for_run("sweep_once", run) for run in runs] == ["success"] * 2
        assert is_cancelled(stage, name)

    def test_the_api_server_is_down_when_it_reads_again(
        self, stage: Stage, airflow: Airflow3Stack, make_play: Any, sweep_once: Any
    ) -> None:
        play = make_play("waits", "own")
        name = lose(play)
        run = sweep_once(play, 10)
        airflow.kill_component("api-server")
        try:
            time.sleep(40)
            assert stage.service.cancels(name) == []
        finally:
            airflow.restart_component("api-server")
        airflow.wait_for_run("sweep_once", run)
        assert stage.service.cancels(name) == []
        again = airflow.trigger("sweep_once", {"prefix": play.url})
        assert airflow.wait_for_run("sweep_once", again) == "success"
        assert is_cancelled(stage, name)

    def test_the_api_server_stalls_while_the_name_is_written(
        self, stage: Stage, airflow: Airflow3Stack, make_play: Any
    ) -> None:
        play = make_play("waits")
        stage.service.emulator.inject(Fault("creatives.create", delay=3))
        play.start(seconds=60)
        name = play.ingest().name
        airflow.pause_component("api-server")
        try:
            time.sleep(6)  # half of what Airflow takes for a lost task
        finally:
            airflow.resume_component("api-server")
        play.task_is("success")
        assert (stage.service.emulator.state(name), stage.service.cancels(name)) == ("SUCCEEDED", [])

    def test_the_endpoint_changes(self, stage: Stage, airflow: Airflow3Stack, make_play: Any, sweep_once: Any) -> None:
        """An operation of the same name and media runs there. The sweep must not take it for the task's."""
        play = make_play("waits", "own")
        name = lose(play)
        with DaiEmulator() as elsewhere:
            elsewhere.start_ingest(name, seconds=7200, creative_url=play.media())
            try:
                use_service(airflow, elsewhere)
                run = airflow.trigger("sweep_once", {"prefix": play.url})
                assert airflow.wait_for_run("sweep_once", run) == "success"
            finally:
                use_service(airflow, stage.service.emulator)
            report = airflow.xcom("sweep_once", run, "sweep")
            assert (report["found"], report["passed_over"]["younger"]) == ([], 1)
            assert {request.method for request in elsewhere.requests} == {"operations.list"}
        run = sweep_once(play, 5)
        assert airflow.wait_for_run("sweep_once", run) == "success"
        assert is_cancelled(stage, name)


def use_service(airflow: Airflow3Stack, emulator: DaiEmulator) -> None:
    """Restart the components that run tasks, which then use this service."""
    airflow.env["DAI_EMULATOR_HOST"] = emulator.host
    for component in airflow.runs_tasks:
        airflow.kill_component(component)
        airflow.restart_component(component)
