"""The events of the rows, each caused by a user, by the machine or by a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from messages import LEFT_ALONE, LEFT_TO_NEXT_TRY, NOT_FINISHED, REQUESTED
from play import Play
from stack import Airflow2Stack

from airflow_dai_provider.emulator import Fault

#: As in dags/rows.py.
SOON = 8
#: Seconds of an ingest that still runs when Airflow has noticed that its task is lost and has started the next try.
OUTLASTS_RETRY = 120

Event = Callable[[Play], Iterator[None] | None]


def stray(play: Play) -> None:
    """Note the first ingest, or those of a list, as what must not be left running."""
    play.strays = [started.name for started in play.ingests()]


def raises(play: Play) -> None:
    """Exceed the operator's own ``timeout``."""
    play.start()
    play.happens(at=play.ingest().created + SOON)
    stray(play)
    play.log_says(NOT_FINISHED)
    play.task_is("failed")


def times_out(play: Play) -> None:
    """Exceed the ``execution_timeout`` of the task."""
    play.start()
    stray(play)
    play.happens(at=play.task_started() + 2 * SOON)
    play.log_says("AirflowTaskTimeout")
    play.task_is("failed")


def raises_twice(play: Play) -> None:
    """Fail in both tries: the first leaves the ingest to the second, which must cancel it."""
    play.start()
    stray(play)
    play.task_is("failed", tries=2)
    # On Airflow 2 the second try has started an ingest of its own.
    play.strays = [started.name for started in play.service.ingests(play.url)]
    play.happens(at=play.task_started() + 6 * SOON)


def trigger_fails(play: Play) -> None:
    """Fail the wait in the triggerer while the ingest runs."""
    play.start()
    name = play.waits("deferred").name
    stray(play)
    play.happens()
    play.service.emulator.inject(Fault("operations.get", name, rpc_status="PERMISSION_DENIED", times=None))
    play.log_says("PERMISSION_DENIED")
    play.task_is("failed")


def run_times_out(play: Play) -> None:
    """Exceed the ``dagrun_timeout``."""
    play.start()
    play.ingest()
    stray(play)
    play.run_is("failed")
    play.happens(at=play.airflow.run_started(play.dag_id, play.run_id) + 3 * SOON)


def marked(state: str, waiting: str = "running", task: str = "ingest", **params: str) -> Event:
    """Return the event that a user marks a task while it runs, or is in another state."""

    def play(play: Play) -> None:
        play.start(**params)
        play.waits(waiting, task)
        stray(play)
        play.mark(state, task)

    return play


def killed(task: str = "ingest", *, worker: bool = False) -> Event:
    """Return the event that the process of a task is lost, with no retry left."""

    def play(play: Play) -> None:
        play.start()
        play.waits(task=task)
        stray(play)
        play.kill(task, worker=worker)
        play.task_is("failed", task=task)

    return play


def killed_and_retried(play: Play, *, worker: bool = False) -> None:
    """Lose the process; the next try re-attaches to the ingest, or before Airflow 3.3 starts its own."""
    play.start(seconds=OUTLASTS_RETRY)
    play.waits()
    play.kill(worker=worker)
    play.task_is("success", tries=2)
    *earlier, last = [started.name for started in play.service.ingests(play.url)]
    play.strays, play.healthy = earlier, [last]


def pod_ends(play: Play) -> None:
    """End the processes of the task as the end of its pod does; the task is over before the grace period is."""
    play.start()
    play.waits()
    stray(play)
    play.end_pod()
    play.task_is("failed")


def lost_and_called_back(play: Play) -> None:
    """Lose the worker; a late ``on_retry_callback`` may cancel the first ingest, but not the one of the next try."""
    play.start(seconds=OUTLASTS_RETRY)
    play.waits()
    play.kill(worker=True)
    play.task_is("success", tries=2)
    *earlier, last = [started.name for started in play.service.ingests(play.url)]
    play.strays, play.healthy = earlier, [last]
    names = [*earlier, last]

    def called_back() -> bool:
        logs = play.airflow.component_logs()
        return any(f"{name} {LEFT_ALONE}" in logs or f"{REQUESTED} {name}" in logs for name in names)

    play._wait("the callback", called_back)


def raised_and_retried(play: Play) -> None:
    """Fail once while the ingest runs; the next try re-attaches to it."""
    # Longer than one try waits, so that it still runs when the next polls it; shorter than two tries wait.
    play.start(seconds=8 * SOON)
    play.happens(at=play.ingest().created + 6 * SOON)
    play.healthy = [started.name for started in play.ingests()]
    play.log_says(LEFT_TO_NEXT_TRY)
    play.task_is("success", tries=2)


def timed_out_and_retried(play: Play) -> None:
    """Exceed the ``execution_timeout`` once while the ingest runs; the next try re-attaches to it."""
    # Longer than one try has. If the next begins late, the ingest has succeeded meanwhile, and is its result.
    play.start(seconds=8 * SOON)
    play.healthy = [play.ingest().name]
    play.happens(at=play.task_started() + 6 * SOON)
    play.log_says(LEFT_TO_NEXT_TRY)
    play.task_is("success", tries=2)


def cleared(waiting: str, play: Play) -> None:
    """Clear the waiting task: its ingest is cancelled, or the next try re-attaches to it; the last ingest succeeds."""
    play.start(seconds=60)
    play.waits(waiting)
    play.clear()
    play.task_is("success", tries=2)
    *earlier, last = [started.name for started in play.service.ingests(play.url)]
    play.strays, play.healthy = earlier, [last]


def fixed_and_cleared(play: Play) -> None:
    """Lose the process that ingests the wrong file; correct the DAG; clear the task."""
    right = play.media(1, seconds=40)
    variable = f"row-{play.row}-{play.guards}"
    play.airflow.set_variable(variable, play.media(0))
    play.run_id = play.airflow.trigger(play.dag_id, {"url": variable})
    play.waits()
    stray(play)
    play.kill()
    play.run_is("failed")
    if isinstance(play.airflow, Airflow2Stack):
        # It can report a lost task twice, and the second report fails the task again that was cleared meanwhile.
        time.sleep(30)
    play.airflow.set_variable(variable, right)
    play.airflow.clear(play.dag_id, play.run_id, "ingest")
    play.healthy = [play.ingest(1).name]
    assert play.ingest(1).url == right
    play.task_is("success", tries=2)


def work_fails(what: str, state: str, play: Play) -> None:
    """Have another task fail, or skip, while the ingest runs and no task waits for it."""
    play.start(work=what)
    stray(play)
    play.task_is("running", state, task="work")
    play.happens()
    play.task_is(state, task="work")
    if what == "raise":
        play.log_says("the original failure", "work")


def run_marked_failed(waiting: str, play: Play) -> None:
    """Mark the whole run failed while its task waits."""
    play.start()
    if waiting == "up_for_retry":
        play.task_is(waiting)
    else:
        play.waits(waiting)
    stray(play)
    play.happens()
    play.airflow.mark_run(play.dag_id, play.run_id, "failed")
    play.task_is("skipped" if waiting == "up_for_retry" else "failed")


def run_deleted(play: Play) -> None:
    """Mark a run failed and delete it while its task still runs; Airflow requires the mark first."""
    play.start()
    play.waits()
    stray(play)
    play.happens()
    play.airflow.mark_run(play.dag_id, play.run_id, "failed")
    play.delete()


def mapped(hit: Callable[[Play], None], play: Play) -> None:
    """Hit the second of three mapped tasks; the ingests of the others succeed."""
    urls = [play.media(0, seconds=60), play.media(1), play.media(2, seconds=60)]
    play.start(urls=urls)
    play.ingest(2)
    by_url = {started.url: started.name for started in play.service.ingests(play.url)}
    play.strays = [by_url.pop(urls[1])]
    play.healthy = list(by_url.values())
    hit(play)


def second_is_marked(play: Play) -> None:
    play.happens()
    play.airflow.mark(play.dag_id, play.run_id, "ingest", "failed", 1)


def second_loses_its_worker(play: Play) -> None:
    play.kill(map_index=1, worker=True)


def deadline_missed(play: Play) -> None:
    """Miss a Deadline; nothing fails."""
    play.start()
    play.waits()
    stray(play)
    play.happens(at=play.airflow.run_started(play.dag_id, play.run_id) + 3 * SOON)
    time.sleep(max(0.0, play.event_time - time.time()))
