"""Runs that authenticate with a key: no file that Airflow writes contains a secret."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from messages import REQUESTED
from stack import Airflow2Stack, Airflow3Stack, make_stack, wait_until

from airflow_dai_provider.emulator import DaiEmulator

ROOT = Path(__file__).resolve().parents[2]
SIGNATURE = "dGhlLXNpZ25hdHVyZS1vZi10aGUtbWVkaWE"


@pytest.fixture(scope="module")
def google() -> Iterator[DaiEmulator]:
    with DaiEmulator(authentication=True) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def authenticated(google: DaiEmulator) -> Iterator[Airflow2Stack | Airflow3Stack]:
    extra = {"keyfile_dict": json.dumps(google.service_account_key()), "dai_api_endpoint": google.endpoint}
    connection = {"conn_type": "google_cloud_platform", "extra": extra}
    env = {"AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": json.dumps(connection), "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG"}
    home = ROOT / ".airflow" / f"secrets-{version('apache-airflow')}"
    with make_stack(home, Path(__file__).parent / "authenticated_dags", env) as stack:
        stack.wait_for_dags("timed_out", "cancelled")
        yield stack


def files_in(home: Path, pattern: str) -> dict[Path, bytes]:
    """Return the content of files, some of which Airflow may remove meanwhile."""
    found = {}
    for path in home.rglob(pattern):
        with suppress(FileNotFoundError, IsADirectoryError):
            found[path] = path.read_bytes()
    return found


def test_no_file_contains_a_secret(authenticated: Airflow2Stack | Airflow3Stack, google: DaiEmulator) -> None:
    timed_out, cancelled = authenticated.trigger("timed_out"), authenticated.trigger("cancelled")
    assert authenticated.wait_for_run("timed_out", timed_out) == "failed"
    assert authenticated.wait_for_run("cancelled", cancelled) == "success"
    wait_until("both cancels", lambda: set(google.states().values()) == {"CANCELLED"}, 180)

    tokens = {request.headers["authorization"].partition(" ")[2] for request in google.requests if request.account}
    assertions = {
        value
        for request in google.requests
        if request.method == "token"
        for value in parse_qs(request.body.decode()).get("assertion", [])
    }
    key = google.service_account_key()["private_key"].splitlines()[1:-1]
    secrets = {"token": tokens, "JWT": assertions, "key": set(key)}
    assert all(secrets.values())

    def requested_in_a_log() -> bool:
        return any(REQUESTED.encode() in content for content in files_in(authenticated.home, "*.log").values())

    wait_until("the cancels in the logs", requested_in_a_log, 60)
    files = files_in(authenticated.home, "*")
    logs = {path: content for path, content in files.items() if path.suffix == ".log"}
    for kind, values in secrets.items():
        found = [path.name for path, content in files.items() if any(value.encode() in content for value in values)]
        assert found == [], f"a {kind} is in {found}"
    # Only the logs: the database contains the DAG file, and with it the signature.
    assert [path.name for path, content in logs.items() if SIGNATURE.encode() in content] == []
