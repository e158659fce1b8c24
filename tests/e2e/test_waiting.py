"""Waits in the triggerer of a running Airflow: each outcome, restarts, a second triggerer, marks by a user."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from messages import NOT_FINISHED
from stack import Airflow2Stack, Airflow3Stack, wait_until

from airflow_dai_provider.emulator import DaiEmulator, Fault
from tests.support.emulators import cancel_from_outside

Stack = Airflow2Stack | Airflow3Stack

#: Airflow 2 runs one task at a time on SQLite, where 200 would take a quarter of an hour.
MANY = 15 if version("apache-airflow").startswith("2.") else 200


def defer(airflow: Stack, dag_id: str, operation: str) -> str:
    """Start a run, wait until its only task is deferred, and return its id."""
    run = airflow.trigger(dag_id, {"operation": operation})

    def deferred() -> bool:
        return [task["state"] for task in airflow.task_instances(dag_id, run)] == ["deferred"]

    wait_until(f"{dag_id} to be deferred", deferred, 180)
    return run


def poll_times(emulator: DaiEmulator, name: str) -> list[float]:
    """Return when an operation has been polled; the first poll is before the deferral."""
    return [r.time for r in emulator.requests if r.method == "operations.get" and r.name == name]


def polls(emulator: DaiEmulator, name: str) -> int:
    return len(poll_times(emulator, name))


def log_of(airflow: Stack, dag_id: str, run: str, task_id: str) -> str:
    return "\n".join(airflow.task_log_lines(dag_id, run, task_id))


@pytest.mark.parametrize(("dag_id", "task_id"), [("deferred_sensor", "wait"), ("deferred_operator", "cancel")])
@pytest.mark.parametrize("state", ["CANCELLED", "SUCCEEDED", "FAILED"])
def test_a_deferred_task_finishes_with_the_state_of_its_operation(
    airflow: Stack, emulator: DaiEmulator, dag_id: str, task_id: str, state: str
) -> None:
    plans = {
        "CANCELLED": {"seconds": 600.0, "cancel_seconds": 8.0},
        "SUCCEEDED": {"seconds": 12.0, "cancel": "ignored"},
        "FAILED": {"seconds": 12.0, "cancel": "ignored", "outcome": "INVALID_MEDIA"},
    }
    name = emulator.start_ingest(f"operations/{dag_id}/{state}", **plans[state])
    run = defer(airflow, dag_id, name)
    if dag_id == "deferred_sensor" and state == "CANCELLED":
        cancel_from_outside(emulator, name)

    assert airflow.wait_for_run(dag_id, run) == ("failed" if state == "FAILED" else "success")
    assert emulator.state(name) == state
    if state == "FAILED":
        assert "INVALID_MEDIA" in log_of(airflow, dag_id, run, task_id)
    else:
        key = "operation" if dag_id == "deferred_operator" else "return_value"
        assert airflow.xcom(dag_id, run, task_id, key)["state"] == state


def test_unimplemented_fails_a_deferred_task(airflow: Stack, emulator: DaiEmulator) -> None:
    name = emulator.start_ingest("operations/deferred/unimplemented")
    run = defer(airflow, "deferred_sensor", name)
    emulator.inject(Fault("operations.get", name, rpc_status="UNIMPLEMENTED", times=None))

    assert airflow.wait_for_run("deferred_sensor", run) == "failed"
    assert "UNIMPLEMENTED" in log_of(airflow, "deferred_sensor", run, "wait")
    assert emulator.cancel_requested(name) == 0


def test_a_deferred_task_that_is_marked_failed_cancels_only_if_told_to(airflow: Stack, emulator: DaiEmulator) -> None:
    spared = emulator.start_ingest("operations/deferred/spared")
    killed = emulator.start_ingest("operations/deferred/killed")
    spared_run = defer(airflow, "deferred_sensor", spared)
    killed_run = defer(airflow, "deferred_sensor_that_cancels", killed)
    for name in (spared, killed):
        wait_until("polls from the triggerer", lambda name=name: polls(emulator, name) > 2, 120)
    airflow.mark("deferred_sensor", spared_run, "wait", "failed")
    airflow.mark("deferred_sensor_that_cancels", killed_run, "wait", "failed")

    wait_until("the cancel", lambda: emulator.state(killed) == "CANCELLED", 120)
    assert emulator.cancel_requested(killed) == 1
    assert emulator.cancel_requested(spared) == 0


def test_a_restart_of_the_triggerer_keeps_the_deadline(airflow: Stack, emulator: DaiEmulator) -> None:
    timed = emulator.start_ingest("operations/restart/timed")
    waiting = emulator.start_ingest("operations/restart/waiting", seconds=90)
    waiting_run = defer(airflow, "deferred_sensor_that_cancels", waiting)
    run = defer(airflow, "deferred_sensor_with_timeout", timed)

    airflow.kill_component("triggerer")
    before = polls(emulator, timed)
    airflow.start_component("triggerer")

    assert airflow.wait_for_run("deferred_sensor_with_timeout", run) == "failed"
    again = poll_times(emulator, timed)[before:]
    # A new deadline would be 20 s after the first of them. The restart takes 10 s and more of the old one.
    assert again
    assert again[-1] - again[0] < 15
    log = log_of(airflow, "deferred_sensor_with_timeout", run, "wait")
    assert "AirflowSensorTimeout" in log
    assert f"{timed} has {NOT_FINISHED} 20 s" in log
    assert airflow.wait_for_run("deferred_sensor_that_cancels", waiting_run) == "success"
    assert emulator.state(waiting) == "SUCCEEDED"
    assert emulator.cancel_requested(timed) == emulator.cancel_requested(waiting) == 0


def test_a_lost_triggerer_hands_its_waits_to_another(airflow: Stack, emulator: DaiEmulator) -> None:
    names = [emulator.start_ingest(f"operations/two/{number}", seconds=120) for number in range(4)]
    runs = [defer(airflow, "deferred_sensor_that_cancels", name) for name in names]
    # Only one triggerer can hold them so far.
    wait_until("polls of each", lambda: all(polls(emulator, name) > 2 for name in names), 120)
    airflow.start_component("second-triggerer")
    airflow.kill_component("triggerer")
    try:
        before = [polls(emulator, name) for name in names]
        assert [airflow.wait_for_run("deferred_sensor_that_cancels", run) for run in runs] == ["success"] * 4
    finally:
        airflow.start_component("triggerer")
        airflow.kill_component("second-triggerer")
    assert [polls(emulator, name) > number + 1 for name, number in zip(names, before, strict=True)] == [True] * 4
    assert [emulator.state(name) for name in names] == ["SUCCEEDED"] * 4
    assert [emulator.cancel_requested(name) for name in names] == [0] * 4


def test_many_waits_share_a_few_connections(airflow: Stack, emulator: DaiEmulator) -> None:
    names = [emulator.start_ingest(f"operations/many/{number}", seconds=1200) for number in range(MANY)]
    emulator.forget_requests()
    run = airflow.trigger("many_deferred_sensors", {"operations": names})

    def all_deferred() -> bool:
        states = airflow.task_states("many_deferred_sensors", run)
        return sum(state == "deferred" for state in states.values()) == MANY

    wait_until("all sensors to be deferred", all_deferred, 600, 2)
    before = len(emulator.requests)

    def connections() -> list[int]:
        polls = ("operations.get", "operations.list")
        return [request.connection for request in emulator.requests[before:] if request.method in polls]

    wait_until("polls of the triggerer", lambda: len(connections()) >= 40, 240)
    opened = connections()
    cancel_from_outside(emulator, *names)

    assert airflow.wait_for_run("many_deferred_sensors", run, 600) == "success"
    assert [emulator.state(name) for name in names] == ["CANCELLED"] * MANY
    # All polls of the triggerer share a session, which keeps its connections.
    assert len({*opened}) <= min(len(opened), MANY) / 2
