"""The phases in which rows are played, how some of them disturb a whole Airflow, and the events of those rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import methodcaller

from events import SOON, stray
from messages import NAME_UNKNOWN, RECOVERED, STILL_DEFERRED
from play import Play, Stack

from airflow_dai_provider.emulator import Fault

TOGETHER = "together"
ALONE = "alone"
TRIGGERER_DOWN = "triggerer down"
TRIGGERER_STALLED = "triggerer stalled"
SCHEDULER_LOST = "scheduler lost"
API_SERVER_DOWN = "API server down"


def _stall(airflow: Stack) -> None:
    for triggerer in airflow.triggerers:
        airflow.pause_component(triggerer)
    airflow.start_component("another-triggerer")


def _resume(airflow: Stack) -> None:
    for triggerer in airflow.triggerers:
        airflow.resume_component(triggerer)


#: How a phase disturbs Airflow, and how it repairs it. Before each, the events of the phase run to their next yield.
DISTURBANCES: Mapping[str, tuple[Callable[[Stack], None], Callable[[Stack], None]]] = {
    TRIGGERER_DOWN: (methodcaller("kill_triggerers"), methodcaller("start_triggerers")),
    TRIGGERER_STALLED: (_stall, _resume),
    API_SERVER_DOWN: (methodcaller("kill_component", "api-server"), methodcaller("restart_component", "api-server")),
    SCHEDULER_LOST: (methodcaller("lose_scheduler"), methodcaller("start_component", "scheduler")),
}


def response_lost(play: Play) -> None:
    """Lose the response to creatives.create; the ingest is recovered; then mark the task failed."""
    play.service.emulator.inject(Fault("creatives.create", drop="after"))
    play.start()
    play.waits()
    stray(play)
    play.log_says(RECOVERED)
    play.mark("failed")


def response_lost_without_list(play: Play) -> None:
    """Lose the response of a server without operations.list: the ingest's name stays unknown."""
    emulator = play.service.emulator
    emulator.inject(Fault("creatives.create", drop="after"))
    # For all requests, since a sweep can come before the task.
    emulator.unimplement("operations.list")
    try:
        play.start()
        play.task_is("failed")
        play.happens()
        play.log_says(NAME_UNKNOWN)
    finally:
        emulator.implement("operations.list")
    stray(play)


def lost_before_response(play: Play) -> None:
    """Lose the worker while it waits for the response to creatives.create: no name was pushed."""
    play.service.emulator.inject(Fault("creatives.create", delay=120))
    play.start()
    stray(play)
    play.kill(worker=True)
    play.task_is("failed")


def lives_through(play: Play) -> Iterator[None]:
    """Disturb the triggerer while a task is deferred: its ingest runs on."""
    # Longer than the triggerer is away, which another row of the phase decides.
    play.start(seconds=150)
    play.waits("deferred")
    play.healthy = [play.ingest().name]
    yield
    play.happens()
    yield
    play.is_polled()
    play.task_is("success")


def lives_through_a_stall(play: Play) -> Iterator[None]:
    """Stall a triggerer until another takes over its trigger; resumed, it kills its own, which must not cancel."""
    play.start(seconds=75)
    play.waits("deferred")
    play.healthy = [play.ingest().name]
    yield
    play.happens()
    play.is_polled()
    yield
    play.log_says(STILL_DEFERRED)
    play.task_is("success")


def deferral_times_out(play: Play) -> Iterator[None]:
    """Have no triggerer at the deadline: Airflow itself fails the deferral, 60 s later."""
    play.start()
    play.happens(at=play.waits("deferred").created + 3 * SOON + 60)
    stray(play)
    yield
    play.task_is("failed")
    yield


def marked_without_triggerer(state: str, play: Play) -> Iterator[None]:
    """Mark a deferred task while there is no triggerer."""
    play.start()
    play.waits("deferred")
    stray(play)
    yield
    play.mark(state)
    yield


def scheduler_lost(play: Play) -> Iterator[None]:
    """Lose the scheduler while the task runs: a second try starts, and exactly one ingest succeeds."""
    play.start(seconds=75)
    play.waits()
    yield
    play.happens()
    yield
    play.task_is("success", tries=1)
    names = [started.name for started in play.service.ingests(play.url)]
    play.healthy = [name for name in names if play.service.emulator.state(name) == "SUCCEEDED"]
    assert len(play.healthy) == 1, "expected exactly one ingest that succeeded"
    play.strays = [name for name in names if name not in play.healthy]


def api_server_lost(play: Play) -> Iterator[None]:
    """Lose the API server: no heartbeat reaches the scheduler; after three failed ones, the task is killed."""
    play.start()
    play.waits()
    stray(play)
    yield
    play.happens()
    play.cancelled()
    yield
