"""Credentials that stumble or are replaced during waits: nothing is refused for good, so no wait is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from stack import Airflow2Stack, Airflow3Stack, make_stack, wait_until
from stack_airflow_2 import CONCURRENT

from airflow_dai_provider.emulator import DaiEmulator, Fault
from tests.support.postgresql import postgresql

Stack = Airflow2Stack | Airflow3Stack

ROOT = Path(__file__).resolve().parents[2]
#: Seconds that an ingest takes, longer than any test; the tests advance the clock of the emulator instead.
INGEST_SECONDS = 800
#: Seconds for which a token is valid.
LIFETIME = 20
WAITS = 50


class Ahead:
    """A clock that runs as the real one does, and can be advanced."""

    seconds = 0.0

    def __call__(self) -> float:
        return time.time() + self.seconds


@pytest.fixture(scope="module")
def clock() -> Ahead:
    return Ahead()


@pytest.fixture(scope="module")
def google(clock: Ahead) -> Iterator[DaiEmulator]:
    with DaiEmulator(
        authentication=True, token_lifetime=LIFETIME, ingest_seconds=INGEST_SECONDS, clock=clock
    ) as google:
        yield google


@pytest.fixture(autouse=True)
def _no_fault_outlasts_its_test(google: DaiEmulator) -> Iterator[None]:
    yield
    google.clear_faults()


@pytest.fixture(scope="module")
def key_file(google: DaiEmulator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key.json"
    google.write_key_file(path)
    return path


@pytest.fixture(scope="module")
def airflow(google: DaiEmulator, key_file: Path) -> Iterator[Stack]:
    def connection(**extra: str) -> str:
        return json.dumps(
            {"conn_type": "google_cloud_platform", "extra": {"dai_api_endpoint": google.endpoint, **extra}}
        )

    env = {
        "AIRFLOW_CONN_MACHINE": connection(),
        "AIRFLOW_CONN_KEY_FILE": connection(key_path=str(key_file)),
        **google.metadata_environment,
        **CONCURRENT,
    }
    home = ROOT / ".airflow" / f"credentials-{version('apache-airflow')}"
    with postgresql() as database, make_stack(home, Path(__file__).parent / "authenticated_dags", env, database) as one:
        one.wait_for_dags("machine", "machine_cancels", "key_file")
        yield one


def polls_since(google: DaiEmulator, number: int, names: set[str]) -> bool:
    """Return whether each of these operations has been polled twice since there were so many requests."""
    answered = [r for r in google.requests[number:] if r.status == 200]
    pages = sum(r.method == "operations.list" for r in answered)
    polled = [r.name for r in answered if r.method == "operations.get"]
    return all(polled.count(name) + pages > 1 for name in names)


def stumbles(google: DaiEmulator, more: int) -> None:
    """Wait until the metadata server has stumbled a few times more."""
    before = sum(google.faults_injected.values())
    wait_until("requests for tokens", lambda: sum(google.faults_injected.values()) >= before + more, 120)


def has(airflow: Stack, dag_id: str, run: str, **states: str) -> None:
    """Wait until the tasks of a run have these states."""
    wait_until(f"{dag_id} {run} to be {states}", lambda: airflow.task_states(dag_id, run) == states, 300)


def tries(airflow: Stack, dag_id: str, run: str) -> set[int]:
    return {task["try_number"] for task in airflow.task_instances(dag_id, run)}


@pytest.mark.parametrize("stumble", [{"drop": "before"}, {"status": 404, "html": True}], ids=["is away", "answers 404"])
def test_tasks_outlast_a_metadata_server_that(
    airflow: Stack, google: DaiEmulator, clock: Ahead, stumble: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    fault = Fault("metadata", times=None, **stumble)
    known = set(google.states())
    kind = "-".join(stumble)
    succeeds = google.start_ingest(f"operations/{kind}/succeeds")
    fails = google.start_ingest(f"operations/{kind}/fails", outcome="INVALID_MEDIA")
    cancelled = google.start_ingest(f"operations/{kind}/cancelled")

    def created() -> set[str]:
        return set(google.states()) - known - {succeeds, fails, cancelled}

    early = airflow.trigger("machine", {"operation": succeeds})
    has(airflow, "machine", early, worker="running", deferred="deferred", create="deferred")
    wait_until("polls", lambda: polls_since(google, 0, {succeeds, *created()}), 60)

    google.inject(fault)  # in the middle of the waits
    stumbles(google, 6)
    google.clear_faults()
    number = len(google.requests)
    wait_until("polls", lambda: polls_since(google, number, {succeeds, *created()}), 120)

    airflow.kill_component("triggerer")
    google.inject(fault)  # at the start of the tasks, and of the waits in the triggerer
    airflow.restart_component("triggerer")
    late = airflow.trigger("machine", {"operation": fails})
    cancel = airflow.trigger("machine_cancels", {"operation": cancelled})
    has(airflow, "machine", late, worker="running", deferred="running", create="running")
    has(airflow, "machine_cancels", cancel, cancel="running")
    stumbles(google, 10)
    assert len(created()) == 1
    google.clear_faults()

    assert airflow.wait_for_run("machine_cancels", cancel) == "success"
    has(airflow, "machine", late, worker="running", deferred="deferred", create="deferred")
    number = len(google.requests)
    wait_until("polls", lambda: polls_since(google, number, {succeeds, fails, *created()}), 120)
    clock.seconds += INGEST_SECONDS
    has(airflow, "machine", early, worker="success", deferred="success", create="success")
    has(airflow, "machine", late, worker="failed", deferred="failed", create="success")

    states = google.states()
    assert (states[succeeds], states[fails], states[cancelled]) == ("SUCCEEDED", "FAILED", "CANCELLED")
    assert [states[name] for name in created()] == ["SUCCEEDED"] * 2
    assert [google.cancel_requested(name) for name in (succeeds, fails, *created())] == [0] * 4
    assert google.cancel_requested(cancelled) == 1
    assert tries(airflow, "machine", early) | tries(airflow, "machine", late) == {1}
    assert tries(airflow, "machine_cancels", cancel) == {1}


@pytest.mark.parametrize("revoked", [False, True], ids=["tokens expire", "tokens are revoked"])
def test_no_deferred_wait_is_lost_when_the_key_is_replaced(
    airflow: Stack, google: DaiEmulator, key_file: Path, clock: Ahead, revoked: bool
) -> None:
    outcomes = ["INVALID_MEDIA" if number % 5 == 0 else "success" for number in range(WAITS)]
    names = [google.start_ingest(outcome=outcome) for outcome in outcomes]
    run = airflow.trigger("key_file", {"operations": names})
    waits = [f"wait[{number}]" for number in range(WAITS)]
    has(airflow, "key_file", run, operations="success", **dict.fromkeys(waits, "deferred"))
    wait_until("polls", lambda: polls_since(google, 0, set(names)), 120)

    # No token is asked for while the old key is withdrawn and the file still has it.
    google.inject(Fault("token", status=503, times=None))
    google.replace_key()
    google.write_key_file(key_file)
    if revoked:
        google.revoke_tokens()
    number = len(google.requests)
    google.clear_faults()
    wait_until(
        "the refusal", lambda: any(r.method == "token" and r.status == 400 for r in google.requests[number:]), 60
    )
    number = len(google.requests)
    wait_until("polls", lambda: polls_since(google, number, set(names)), 120)

    clock.seconds += INGEST_SECONDS
    ended = {wait: "failed" if outcome != "success" else outcome for wait, outcome in zip(waits, outcomes, strict=True)}
    has(airflow, "key_file", run, operations="success", **ended)
    assert [google.cancel_requested(name) for name in names] == [0] * WAITS
    assert tries(airflow, "key_file", run) == {1}
