"""The story of who is on call, on a running Airflow: what runs, whose it is, cancel it, see it cancelled."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from outcomes import AIRFLOW
from stack import Airflow2Stack, Airflow3Stack, make_stack, wait_until

from airflow_dai_provider.emulator import DaiEmulator, Fault

Stack = Airflow2Stack | Airflow3Stack

HERE = Path(__file__).resolve().parent
CONNECTION = "on_call"
SIGNATURE = "dGhlLXNpZ25hdHVyZS1vZi10aGUtbWVkaWE"


@pytest.fixture(scope="module")
def service() -> Iterator[DaiEmulator]:
    with DaiEmulator(ingest_seconds=7200, cancel_seconds=5) as service:
        yield service


@pytest.fixture(scope="module")
def airflow(service: DaiEmulator) -> Iterator[Stack]:
    """Give an Airflow whose database, and nothing else, has the connection."""
    home = HERE.parents[1] / ".airflow" / f"on-call-{version('apache-airflow')}"
    extra = {"is_anonymous": True, "dai_api_endpoint": service.endpoint}
    with make_stack(home, HERE / "on_call_dags") as stack:
        connection = {"conn_type": "google_cloud_platform", "extra": extra}
        stack.airflow("connections", "add", CONNECTION, "--conn-json", json.dumps(connection))
        stack.wait_for_dags("stuck")
        yield stack


def dai(stack: Stack, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    """Run a command as the user of this Airflow does, and return its rows."""
    program = [stack._airflow_command(), "dai"] if AIRFLOW >= (3, 2) else [sys.executable, "-m", "airflow_dai_provider"]
    command = [*program, *arguments, "--conn-id", CONNECTION, "--output", "json"]
    done = subprocess.run(command, env=stack.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{command}: {done.stdout}{done.stderr}"
    assert SIGNATURE not in done.stdout + done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def test_a_stuck_ingest_is_found_cancelled_and_seen_cancelled(airflow: Stack, service: DaiEmulator) -> None:
    run = airflow.trigger("stuck")
    wait_until("the ingest to be deferred", lambda: airflow.task_states("stuck", run) == {"ingest": "deferred"}, 180)
    bystander = service.start_ingest()

    found = {row["name"]: row for row in dai(airflow, "list")}
    (name,) = found.keys() - {bystander}
    assert found[bystander]["dag_id"] is None
    owner = {"dag_id": "stuck", "run_id": run, "task_id": "ingest", "map_index": None, "task_state": "deferred"}
    assert {column: found[name][column] for column in owner} == owner
    assert found[name]["media_url"] == "https://media.example.com/stuck.mp4"

    (cancelled,) = dai(airflow, "cancel", name, "--yes", "--wait", "--timeout", "2m")
    assert (cancelled["name"], cancelled["result"]) == (name, "CANCELLED")

    (seen,) = dai(airflow, "get", name)
    assert (seen["state"], seen["dag_id"]) == ("CANCELLED", "stuck")
    assert (service.state(name), service.state(bystander)) == ("CANCELLED", "RUNNING")
    assert airflow.wait_for_run("stuck", run) == "failed"


def test_an_owner_that_is_over_is_told_until_the_operation_has_finished(airflow: Stack, service: DaiEmulator) -> None:
    run = airflow.trigger("stuck")
    wait_until("the ingest to be deferred", lambda: airflow.task_states("stuck", run) == {"ingest": "deferred"}, 180)
    name = airflow.xcom("stuck", run, "ingest", "operation_name")
    (owner,) = dai(airflow, "whose", name)
    assert (owner["run_id"], owner["is_stray"]) == (run, "no")
    # Otherwise the kill of the task cancels it.
    service.inject(Fault("operations.cancel", rpc_status="PERMISSION_DENIED", times=None))
    try:
        airflow.mark("stuck", run, "ingest", "failed")
        wait_until("the owner to be over", lambda: dai(airflow, "whose", name)[0]["is_stray"] == "yes", 60)
    finally:
        service.clear_faults()
    dai(airflow, "cancel", name, "--yes", "--wait", "--timeout", "2m")
    (owner,) = dai(airflow, "whose", name)
    assert (owner["is_stray"], owner["reason"]) == ("no", "is failed; the operation has finished")


def test_the_connection_can_be_checked(airflow: Stack) -> None:
    assert [row["result"] for row in dai(airflow, "check")] == ["ok", "ok"]
    done = subprocess.run(
        [sys.executable, "-m", "airflow_dai_provider", "check", "--conn-id", "no_such_connection"],
        env=airflow.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "no_such_connection" in done.stdout + done.stderr
