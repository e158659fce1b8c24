"""Application default credentials of a machine whose metadata server stumbles: nothing is refused, so waits go on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from google.api_core import exceptions
from google.auth.compute_engine import _metadata

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.sensors.dai import DaiOperationSensor
from tests.support.authentication import Form, Shown, live_on
from tests.support.clock import Clock
from tests.support.connections import Connect
from tests.support.credentials import ROBOT
from tests.support.emulators import MakeEmulator, count
from tests.support.hooks import cases
from tests.support.payloads import NAME

LIFETIME = 900

STUMBLES: dict[str, dict[str, Any]] = {
    "closes connections": {"drop": "before"},
    "resets connections": {"drop": "before", "reset": True},
    "answers 404": {"status": 404, "html": True},
    "answers 500": {"status": 500, "html": True},
    "answers 503": {"status": 503, "html": True},
    "is too busy": {"status": 429, "html": True},
    "answers nonsense": {"status": 200, "body": b"{"},
    "is behind a front end that refuses": {"status": 403, "html": True},
}


@pytest.fixture
def machine(
    start: MakeEmulator, connect: Connect, monkeypatch: pytest.MonkeyPatch, few_authorities: None, fake_time: Clock
) -> DaiEmulator:
    """Give the emulator as the metadata server of this machine; the connection holds nothing but the endpoint."""
    live_on(monkeypatch, fake_time)
    emulator = start(token_lifetime=LIFETIME, ingest_seconds=3000)
    for name, value in emulator.metadata_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(_metadata, "_GCE_METADATA_HOST", emulator.host, raising=False)
    monkeypatch.setattr(_metadata, "_NO_GCE_CHECK", False, raising=False)
    # Versions that read the environment only once.
    monkeypatch.setattr(_metadata, "_METADATA_ROOT", f"http://{emulator.host}/computeMetadata/v1/", raising=False)
    monkeypatch.setattr(_metadata, "_METADATA_IP_ROOT", f"http://{emulator.host}", raising=False)
    connect(dai_api_endpoint=emulator.endpoint, num_retries=1)
    emulator.start_ingest(NAME)
    return emulator


@pytest.mark.parametrize("stumble", **cases(STUMBLES))
@pytest.mark.parametrize("begun", [False, True], ids=["at the start", "in the middle"])
def test_a_wait_outlasts_a_metadata_server_that_stumbles(
    drive: Form, machine: DaiEmulator, clock: Clock, stumble: dict[str, Any], begun: bool
) -> None:
    def away() -> None:
        clock.advance(LIFETIME)  # the token has expired
        machine.inject(Fault("metadata", lasts=100, **stumble))

    first: list[Any] = [("get_operation", NAME)] if begun else []
    *_, ended = drive(*first, away, ("wait_for_operation", NAME))

    assert ended.state == "SUCCEEDED"
    assert sum(machine.faults_injected.values()) > 1
    assert {request.account for request in machine.requests if request.method == "operations.get"} == {ROBOT}


@pytest.mark.parametrize("stumble", **cases(STUMBLES))
def test_a_token_that_is_still_valid_is_used_although_its_renewal_fails(
    drive: Form, machine: DaiEmulator, clock: Clock, stumble: dict[str, Any], slept: list[float]
) -> None:
    def due() -> None:
        clock.advance(LIFETIME - 100)
        machine.inject(Fault("metadata", times=None, **stumble))

    drive(("get_operation", NAME), due, *[("get_operation", NAME)] * 5)

    assert (count(machine, "operations.get"), slept) == (6, [])
    assert sum(machine.faults_injected.values()) <= 5, "A renewal that has failed is not tried at each poll."


@pytest.mark.parametrize("stumble", **cases(STUMBLES))
def test_a_sensor_outlasts_it_and_then_cancels_when_killed(machine: DaiEmulator, stumble: dict[str, Any]) -> None:
    machine.inject(Fault("metadata", lasts=20, **stumble))
    sensor = DaiOperationSensor(task_id="wait", operation_name=NAME, cancel_on_kill=True)
    sensor.poke({})
    assert machine.faults_injected
    sensor.on_kill()
    assert machine.cancel_requested(NAME) == 1


@pytest.mark.parametrize("stumble", **cases(STUMBLES))
def test_a_sensor_that_cancels_when_killed_defers_although_it(machine: DaiEmulator, stumble: dict[str, Any]) -> None:
    machine.inject(Fault("metadata", times=None, **stumble))
    sensor = DaiOperationSensor(task_id="wait", operation_name=NAME, cancel_on_kill=True, deferrable=True)
    with pytest.raises(TaskDeferred):
        sensor.execute({})
    assert machine.cancel_requested(NAME) == 0


@pytest.mark.parametrize("stumble", **cases(STUMBLES))
def test_a_cancel_is_prepared_before_there_are_credentials(machine: DaiEmulator, stumble: dict[str, Any]) -> None:
    machine.inject(Fault("metadata", times=None, **stumble))
    with DaiHook() as hook:
        cancel = partial(hook.prepare_cancellation(), NAME, 1)
        with pytest.raises(exceptions.GoogleAPICallError, match="no access token"):
            cancel()
        machine.clear_faults()
        hook.get_operation(NAME)
        cancel()
    assert machine.cancel_requested(NAME) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_the_metadata_server_refuses_ends_the_wait(
    drive: Form, machine: DaiEmulator, clock: Clock, shown: Shown, slept: list[float], status: int
) -> None:
    def refuse() -> None:
        clock.advance(LIFETIME)
        flavor = {"Metadata-Flavor": "Google"}
        machine.inject(Fault("metadata", status=status, times=None, body=b"no account", headers=flavor))

    with shown.fails(exceptions.Unauthenticated, "no access token: .*token service: 127.0.0.1"):
        drive(("get_operation", NAME), refuse, ("wait_for_operation", NAME))
    assert slept == []


def test_a_metadata_server_that_is_away_for_too_long_ends_the_wait_as_unavailable(
    drive: Form, machine: DaiEmulator, shown: Shown, clock: Clock
) -> None:
    machine.inject(Fault("metadata", drop="before", times=None))
    began = clock.now
    with shown.fails(exceptions.ServiceUnavailable, "'google_cloud_default'.*application default credentials"):
        drive(("wait_for_operation", NAME))
    assert 300 <= clock.now - began < 360


def test_without_a_metadata_server_missing_credentials_are_permanent(
    drive: Form, machine: DaiEmulator, shown: Shown, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setattr(_metadata, "_NO_GCE_CHECK", True, raising=False)
    # The lowest version of google-auth looks for the server nevertheless.
    machine.inject(Fault("metadata", drop="before", times=None))
    with shown.fails(exceptions.Unauthenticated, "connection 'google_cloud_default' gives no usable credentials"):
        drive(("wait_for_operation", NAME))
    assert slept == []


@pytest.fixture
def google_auth(machine: DaiEmulator) -> Callable[[], str]:
    """Give a function that runs google-auth, unchanged, in a process with the variables of the emulator."""
    program = (
        "import google.auth, google.auth.transport.requests as t; c, project = google.auth.default();"
        "c.refresh(t.Request()); print(project, c.service_account_email, c.token[:5])"
    )

    def run() -> str:
        environment = {**os.environ, **machine.metadata_environment, "NO_PROXY": "127.0.0.1"}
        return subprocess.run(  # noqa: S603 - this Python
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        ).stdout

    return run


def test_the_emulator_is_a_metadata_server_for_google_auth(google_auth: Callable[[], str]) -> None:
    assert google_auth() == f"emulator {ROBOT} ya29.\n"
