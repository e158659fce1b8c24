"""Failure callbacks on a running Airflow: each cancels its own ingest and keeps the original failure visible."""

from __future__ import annotations

import pytest
from messages import MAY_STILL_RUN, NOTHING_TO_CANCEL
from stack import Airflow2Stack, Airflow3Stack, wait_until

from airflow_dai_provider.emulator import DaiEmulator, Fault

Stack = Airflow2Stack | Airflow3Stack


def wait_for_cancel(emulator: DaiEmulator, *names: str) -> None:
    """
    Wait for a DAG's callback, which the dag processor runs after the run has finished.

    A callback that arrives while its DAG file is being parsed waits for the next parsing, up to 60 s here.
    """
    wait_until(f"the cancel of {names}", lambda: all(emulator.state(name) == "CANCELLED" for name in names), 150)


def cancels(emulator: DaiEmulator, name: str) -> int:
    return sum(r.method == "operations.cancel" and r.name == name for r in emulator.requests)


@pytest.mark.parametrize("dag_id", ["run_callback_by_name", "run_callback_by_xcom"])
def test_runs_that_fail_together_cancel_each_its_own_ingest(airflow: Stack, emulator: DaiEmulator, dag_id: str) -> None:
    names = [emulator.start_ingest(f"operations/{dag_id}/{number}") for number in range(3)]
    bystander = emulator.start_ingest(f"operations/{dag_id}/bystander")
    runs = [airflow.trigger(dag_id, {"operation": name, "operations": [name]}) for name in names]

    assert [airflow.wait_for_run(dag_id, run) for run in runs] == ["failed"] * 3
    wait_for_cancel(emulator, *names)

    assert [cancels(emulator, name) for name in names] == [1, 1, 1]
    assert emulator.state(bystander) == "RUNNING"


def test_a_dag_callback_cancels_the_ingest_of_every_map_index(airflow: Stack, emulator: DaiEmulator) -> None:
    names = [emulator.start_ingest(f"operations/every/{number}") for number in range(3)]
    run = airflow.trigger("run_callback_by_xcom", {"operations": names})

    assert airflow.wait_for_run("run_callback_by_xcom", run) == "failed"
    wait_for_cancel(emulator, *names)


def test_a_mapped_task_cancels_only_its_own_ingest(airflow: Stack, emulator: DaiEmulator) -> None:
    names = [emulator.start_ingest(f"operations/mapped/{number}") for number in range(3)]
    run = airflow.trigger("mapped_task_callback", {"operations": names, "failing": 1})

    assert airflow.wait_for_run("mapped_task_callback", run) == "failed"
    wait_for_cancel(emulator, names[1])
    assert [emulator.cancel_requested(name) for name in names] == [0, 1, 0]


def test_nothing_to_cancel_is_logged_and_is_no_error(airflow: Stack) -> None:
    run = airflow.trigger("nothing_to_cancel")

    assert airflow.wait_for_run("nothing_to_cancel", run) == "failed"
    log = wait_until("the callback", lambda: log_with(airflow, "nothing_to_cancel", run, NOTHING_TO_CANCEL), 120)
    assert "the original failure" in log
    assert "Failed to send notification" not in log


def test_a_service_that_is_down_does_not_hide_the_original_failure(airflow: Stack, emulator: DaiEmulator) -> None:
    name = emulator.start_ingest("operations/down")
    emulator.inject(Fault("operations.cancel", name, status=503, times=None))
    run = airflow.trigger("service_is_down", {"operation": name})

    assert airflow.wait_for_run("service_is_down", run) == "failed"
    log = wait_until("the callback", lambda: log_with(airflow, "service_is_down", run, f"{name} {MAY_STILL_RUN}"), 120)
    assert "the original failure" in log
    assert cancels(emulator, name) > 1


def log_with(airflow: Stack, dag_id: str, run_id: str, text: str) -> str | None:
    """Return the log of a run once it contains a text."""
    log = "\n".join(
        line
        for task in airflow.task_instances(dag_id, run_id)
        for line in airflow.task_log_lines(dag_id, run_id, task["task_id"])
    )
    return log if text in log else None


def test_unimplemented_fails_the_task_at_its_first_try(airflow: Stack, emulator: DaiEmulator) -> None:
    name = emulator.start_ingest("operations/unimplemented")
    emulator.inject(Fault("operations.cancel", name, rpc_status="UNIMPLEMENTED", times=None))
    run = airflow.trigger("retries", {"operation": name})

    assert airflow.wait_for_run("retries", run) == "failed"
    (task,) = airflow.task_instances("retries", run)
    assert (task["state"], task["try_number"], cancels(emulator, name)) == ("failed", 1, 1)


def test_two_errors_are_retried_within_one_try(airflow: Stack, emulator: DaiEmulator) -> None:
    name = emulator.start_ingest("operations/two-errors")
    emulator.inject(Fault("operations.cancel", name, status=503, times=2))
    run = airflow.trigger("retries", {"operation": name})

    assert airflow.wait_for_run("retries", run) == "success"
    (task,) = airflow.task_instances("retries", run)
    assert (task["state"], task["try_number"], cancels(emulator, name)) == ("success", 1, 3)


def test_a_service_that_stays_down_leaves_the_task_up_for_retry(airflow: Stack, emulator: DaiEmulator) -> None:
    name = emulator.start_ingest("operations/stays-down")
    emulator.inject(Fault("operations.cancel", name, status=503, times=None))
    run = airflow.trigger("retries", {"operation": name})

    def waits_for_retry() -> bool:
        return [task["state"] for task in airflow.task_instances("retries", run)] == ["up_for_retry"]

    assert wait_until("up_for_retry", waits_for_retry, 180)
    assert cancels(emulator, name) == 6
