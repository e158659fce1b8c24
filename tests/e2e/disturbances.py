"""The phases in which rows are played, what disturbs a whole Airflow in some, and the events of those rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import methodcaller

from play import Play, Stack
from plays import SOON, stray

from airflow_dai_provider.emulator import Fault

TOGETHER = "together"
ALONE = "alone"
TRIGGERER_DOWN = "triggerer down"
TRIGGERER_STALLED = "triggerer stalled"
SCHEDULER_LOST = "scheduler lost"
API_SERVER_DOWN = "API server down"


def _stall(airflow: Stack) -> None:
    airflow.pause_component("triggerer")
    airflow.start_component("second-triggerer")


def _wake(airflow: Stack) -> None:
    airflow.resume_component("triggerer")


#: What disturbs a whole Airflow, and what puts it right again. At each, the events of that phase have come to a yield.
DISTURBANCES: Mapping[str, tuple[Callable[[Stack], None], Callable[[Stack], None]]] = {
    TRIGGERER_DOWN: (methodcaller("kill_component", "triggerer"), methodcaller("start_component", "triggerer")),
    TRIGGERER_STALLED: (_stall, _wake),
    API_SERVER_DOWN: (methodcaller("kill_component", "api-server"), methodcaller("restart_component", "api-server")),
    SCHEDULER_LOST: (methodcaller("lose_scheduler"), methodcaller("start_component", "scheduler")),
}


def answer_lost(play: Play) -> None:
    """Lose the answer to the request that starts the ingest; then mark the task failed."""
    play.service.emulator.inject(Fault("creatives.create", drop="after"))
    play.start()
    play.waits()
    stray(play)
    play.log_says("by its media URL and create time")
    play.mark("failed")


def answer_lost_for_good(play: Play) -> None:
    """Lose the answer, on a server without a list: nobody knows the ingest's name."""
    play.service.emulator.inject(Fault("creatives.create", drop="after"))
    play.service.emulator.inject(Fault("operations.list", rpc_status="UNIMPLEMENTED"))
    play.start()
    play.task_is("failed")
    play.happens()
    play.log_says("may run under an unknown name")
    stray(play)


def lives_through(play: Play) -> Iterator[None]:
    """Disturb the triggerer while a task is deferred: its ingest goes on."""
    play.start(seconds=100)
    play.waits("deferred")
    play.healthy = [play.ingest().name]
    yield
    play.happens()
    yield
    play.looked_at()
    play.task_is("success")


def lives_through_a_stall(play: Play) -> Iterator[None]:
    """Stall the triggerer until another has taken the wait over; woken, the first kills its own, and must ask first."""
    play.start(seconds=75)
    play.waits("deferred")
    play.healthy = [play.ingest().name]
    yield
    play.happens()
    play.looked_at()
    yield
    play.log_says("its task is still deferred")
    play.task_is("success")


def deferral_times_out(play: Play) -> Iterator[None]:
    """Have the triggerer down at the deadline: Airflow itself ends the deferral, 60 s after it."""
    play.start()
    play.happens(at=play.waits("deferred").created + 3 * SOON + 60)
    stray(play)
    yield
    play.task_is("failed")
    yield


def marked_without_triggerer(state: str, play: Play) -> Iterator[None]:
    play.start()
    play.waits("deferred")
    stray(play)
    yield
    play.mark(state)
    yield


def scheduler_lost(play: Play) -> Iterator[None]:
    """Lose the scheduler while the task runs: a second try starts, and exactly one ingest is left to end well."""
    play.start(seconds=75)
    play.waits()
    yield
    play.happens()
    yield
    play.task_is("success", tries=1)
    names = [started.name for started in play.service.ingests(play.url)]
    play.healthy = [name for name in names if play.service.emulator.state(name) == "SUCCEEDED"]
    assert len(play.healthy) == 1, "not exactly one ingest has ended well"
    play.strays = [name for name in names if name not in play.healthy]


def api_server_lost(play: Play) -> Iterator[None]:
    """Lose the API server: the scheduler hears of no heartbeat; after three in vain, the task is killed."""
    play.start()
    play.waits()
    stray(play)
    yield
    play.happens()
    play.cancelled()
    yield
