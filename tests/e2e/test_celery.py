"""What only an Airflow with the CeleryExecutor has: workers that stop, a broker, and several triggerers.

The service's own record says what has become of the ingests: none runs by mistake, and none was started twice.
"""

from __future__ import annotations

import json
import re
import signal
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from play import Play
from stack import CeleryStack, wait_until
from stage import EXECUTOR, Stage, stage_of

pytestmark = pytest.mark.skipif(EXECUTOR != "celery", reason="make e2e EXECUTOR=celery")

#: Seconds of an ingest that outlasts the loss of its worker, and all that Airflow then does.
LONG = 120
#: Deferred ingests, which two triggerers share.
MANY = 500


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with stage_of("celery") as stage:
        yield stage


@pytest.fixture
def airflow(stage: Stage) -> Iterator[CeleryStack]:
    """Give the Airflow, whose workers and triggerers all run again afterwards."""
    assert isinstance(stage.airflow, CeleryStack)
    yield stage.airflow
    for component in stage.airflow.components:
        if component not in stage.airflow.processes:
            stage.airflow.start_component(component)
    stage.airflow.revive()


@pytest.fixture
def make_play(stage: Stage, request: pytest.FixtureRequest) -> Callable[[str], Play]:
    number = iter(range(100))
    name = re.sub(r"\W+", "-", request.node.name)

    def make(dag: str) -> Play:
        return Play(stage.airflow, stage.service, f"{name}-{next(number)}", dag, "own")

    return make


def ingests(play: Play) -> list[tuple[str, int]]:
    """Return the state of each ingest of a play, and how often its cancellation was requested."""
    service = play.service
    return [
        (str(service.emulator.state(one.name).value), len(service.cancels(one.name)))
        for one in service.ingests(play.url)
    ]


def is_over(play: Play, *states: str, tries: int = 1) -> None:
    play.task_is(*states, tries=tries)
    play._wait("the ingests to be over", lambda: all(found != "RUNNING" for found, _ in ingests(play)))


def waiting(play: Play, seconds: float = LONG, state: str = "running") -> Play:
    """Start a play, and wait until its task waits for the ingest."""
    play.start(seconds=seconds)
    play.waits(state)
    return play


def worker_of(airflow: CeleryStack, play: Play) -> str:
    return airflow.component_of(play.dag_id, play.run_id, "ingest")


def log_of(airflow: CeleryStack, component: str) -> str:
    return (airflow.home / f"{component}.log").read_text(errors="replace")


class TestWorker:
    def test_a_warm_shutdown_leaves_a_wait_alone_and_a_kill_is_noticed(
        self, airflow: CeleryStack, make_play: Any
    ) -> None:
        """The workers are started again. One task has no retry left; the retry of the other one re-attaches."""
        last, retried = make_play("waits"), make_play("waits_with_retry")
        for play in (last, retried):
            waiting(play)
        for worker in airflow.runs_tasks:
            airflow.end_worker(worker, signal.SIGTERM)
        for play in (last, retried):
            wait_until(
                "the shutdown", lambda play=play: "Warm shutdown" in log_of(airflow, worker_of(airflow, play)), 60
            )
            play.is_polled()
            assert ingests(play) == [("RUNNING", 0)]

        for worker in airflow.runs_tasks:
            if airflow.processes[worker].poll() is None:
                airflow.end_worker(worker)
            airflow.start_component(worker)
        is_over(last, "failed")
        is_over(retried, "success", tries=2)
        assert [state for state, _ in ingests(last)] == ["CANCELLED"]
        assert ingests(retried) == [("SUCCEEDED", 0)]

    def test_a_warm_shutdown_lets_a_short_task_finish(self, airflow: CeleryStack, make_play: Any) -> None:
        play = waiting(make_play("waits"), seconds=30)
        worker = worker_of(airflow, play)
        airflow.end_worker(worker, signal.SIGTERM)
        is_over(play, "success")
        assert ingests(play) == [("SUCCEEDED", 0)]
        assert airflow.processes.pop(worker).wait(60) == 0

    def test_a_cold_shutdown_cancels_the_ingest(self, airflow: CeleryStack, make_play: Any) -> None:
        """Celery sends SIGTERM to the process that supervises the task, which forwards it to the task."""
        play = waiting(make_play("waits"))
        shut_down_cold(airflow, play)
        is_over(play, "failed")
        assert ingests(play) == [("CANCELLED", 1)]

    def test_a_cold_shutdown_leaves_the_task_its_retry(self, airflow: CeleryStack, make_play: Any) -> None:
        play = waiting(make_play("waits_with_retry"))
        shut_down_cold(airflow, play)
        play.task_is("success", "failed")
        assert ingests(play) == [("CANCELLED", 1), ("SUCCEEDED", 0)]


def shut_down_cold(airflow: CeleryStack, play: Play) -> None:
    """Shut the worker of a task down without waiting for the task."""
    worker = worker_of(airflow, play)
    airflow.end_worker(worker, signal.SIGQUIT)
    airflow.processes[worker].wait(60)
    airflow.end_worker(worker)


class TestBroker:
    @pytest.mark.usefixtures("airflow")
    def test_a_restart_disturbs_no_wait(self, stage: Stage, make_play: Any) -> None:
        running = waiting(make_play("waits"), seconds=60)
        # Longer than the outage: Airflow fails a task that it cannot send to a worker when its wait is over.
        deferred = waiting(make_play("defers"), seconds=90, state="deferred")
        during = make_play("waits_with_retry")
        assert stage.broker is not None
        stage.broker.stop()
        try:
            during.start(seconds=20)
            time.sleep(10)
        finally:
            stage.broker.start()
        for play in (running, deferred):
            is_over(play, "success")
            assert ingests(play) == [("SUCCEEDED", 0)]
        # Airflow fails a task whose message it cannot send, before the task has run.
        is_over(during, "success", "failed")
        assert ingests(during) in ([("SUCCEEDED", 0)], [])

    def test_a_message_of_a_running_task_that_is_delivered_twice(
        self, stage: Stage, airflow: CeleryStack, make_play: Any
    ) -> None:
        play = waiting(make_play("waits"), seconds=75)
        refused = refusals(airflow)
        assert let_the_visibility_timeout_pass(stage, play)
        wait_until("the second delivery", lambda: refusals(airflow) > refused, 120)
        play.is_polled()
        assert ingests(play) == [("RUNNING", 0)]
        is_over(play, "success")
        assert ingests(play) == [("SUCCEEDED", 0)]

    @pytest.mark.parametrize("dag", ["defers", "waits"])
    def test_a_message_that_comes_again_after_its_task(
        self, stage: Stage, airflow: CeleryStack, make_play: Any, dag: str
    ) -> None:
        play = make_play(dag)
        play.start(seconds=60 if dag == "defers" else 15)
        messages = wait_until("the message", lambda: unacknowledged(stage, play), 120, 0.05)
        state = "deferred" if dag == "defers" else "success"
        play.task_is(state)
        received = deliveries(airflow, play)
        for message, _, queue in messages.values():
            redis_of(stage).lpush(queue, json.dumps(message))
        wait_until("the second delivery", lambda: deliveries(airflow, play) > received, 60)
        time.sleep(10)
        play.task_is(state)
        is_over(play, "success")
        assert ingests(play) == [("SUCCEEDED", 0)]


class TestDatabase:
    def test_a_restart_loses_no_ingest(self, stage: Stage, airflow: CeleryStack, make_play: Any) -> None:
        """Airflow's components may exit, and are started again."""
        running = waiting(make_play("waits_with_retry"))
        deferred = waiting(make_play("defers"), state="deferred")
        stage.database.stop()
        time.sleep(3)
        stage.database.start()
        for _ in range(30):
            airflow.revive()
            time.sleep(1)
        for play in (running, deferred):
            is_over(play, "success")
            assert ingests(play) == [("SUCCEEDED", 0)]


class TestTriggerers:
    def test_one_of_two_is_killed_with_many_waits(self, stage: Stage, airflow: CeleryStack, make_play: Any) -> None:
        play = make_play("many_defer")
        play.run_id = airflow.trigger(play.dag_id, {"url": play.media(seconds=7200), "number": MANY})

        def deferred() -> bool:
            states = list(airflow.task_states(play.dag_id, play.run_id).values())
            return states.count("deferred") == MANY

        wait_until("the deferrals", deferred, 1200, 5)
        names = [one.name for one in stage.service.ingests(play.url)]
        assert len(names) == MANY
        airflow.kill_component("second-triggerer")
        before = {name: stage.service.polls(name) for name in names}
        wait_until("polls", lambda: all(stage.service.polls(name) > before[name] + 1 for name in names), 300, 5)
        assert ingests(play) == [("RUNNING", 0)] * MANY
        assert deferred()

        airflow.mark_run(play.dag_id, play.run_id, "failed")
        wait_until("the cancels", lambda: {state for state, _ in ingests(play)} == {"CANCELLED"}, 300, 5)
        assert len(ingests(play)) == MANY


def redis_of(stage: Stage) -> Any:
    import redis

    assert stage.broker is not None
    return redis.Redis.from_url(stage.broker.url)


def unacknowledged(stage: Stage, play: Play) -> dict[bytes, Any]:
    """Return the messages of a play's tasks that a worker has and has not acknowledged: (message, exchange, queue)."""
    ids = ids_of(play)
    found = {tag: json.loads(value) for tag, value in redis_of(stage).hgetall("unacked").items()}
    return {tag: one for tag, one in found.items() if any(id_ in b64decode(one[0]["body"]).decode() for id_ in ids)}


def let_the_visibility_timeout_pass(stage: Stage, play: Play) -> dict[bytes, Any]:
    """Let the messages of a play have been delivered long ago; Celery delivers them again."""
    tags = unacknowledged(stage, play)
    redis_of(stage).zadd("unacked_index", dict.fromkeys(tags, 0))
    return tags


def refusals(airflow: CeleryStack) -> int:
    """Return how often Airflow has refused to run a task that runs elsewhere."""
    return sum(log_of(airflow, worker).count("ignoring redelivered message") for worker in airflow.runs_tasks)


def deliveries(airflow: CeleryStack, play: Play) -> int:
    """Return how often a worker has begun with a task of a play."""
    lines = [line for worker in airflow.runs_tasks for line in log_of(airflow, worker).splitlines()]
    begun = [line for line in lines if "Executing workload in Celery" in line]
    return sum(any(id_ in line for id_ in ids_of(play)) for line in begun)


def ids_of(play: Play) -> list[str]:
    return [ti["id"] for ti in play.airflow.task_instances(play.dag_id, play.run_id)]
