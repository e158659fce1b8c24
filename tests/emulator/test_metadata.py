"""The metadata server of a machine, the replacement of keys, and faults that last for some seconds."""

import os
import shlex
import subprocess
import sys
from typing import Any

import pytest
import requests
from emulator_testing import CLOUD_PLATFORM, ROBOT, Launch, credentials_of
from google.auth.exceptions import RefreshError
from google.auth.transport.requests import Request

from airflow_dai_provider.emulator import DaiEmulator

FLAVOR = {"Metadata-Flavor": "Google"}
ACCOUNT = "/computeMetadata/v1/instance/service-accounts/default"


def ask(emulator: DaiEmulator, path: str, **options: Any) -> requests.Response:
    return requests.get(f"{emulator.endpoint}{path}", timeout=5, **{"headers": FLAVOR, **options})


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/", "computeMetadata/\n"),
        ("/computeMetadata/v1/project/project-id", "emulator"),
        ("/computeMetadata/v1/universe/universe-domain", "googleapis.com"),
    ],
)
def test_the_machine_is_described(guarded: DaiEmulator, path: str, text: str) -> None:
    response = ask(guarded, path)
    assert (response.status_code, response.text) == (200, text)
    assert response.headers["Metadata-Flavor"] == "Google"


@pytest.mark.parametrize("account", ["default", ROBOT])
@pytest.mark.parametrize("http_method", ["GET", "POST"])
def test_a_token_of_the_machine_gives_access(guarded: DaiEmulator, account: str, http_method: str) -> None:
    path = f"/computeMetadata/v1/instance/service-accounts/{account}"
    assert ask(guarded, f"{path}/?recursive=true").json()["email"] == ROBOT
    url = f"{guarded.endpoint}{path}/token?scopes={CLOUD_PLATFORM}"
    token = requests.request(http_method, url, headers=FLAVOR, timeout=5).json()
    assert token["expires_in"] == 900
    headers = {"Authorization": f"Bearer {token['access_token']}"}
    assert requests.get(f"{guarded.endpoint}/v1/operations", headers=headers, timeout=5).ok
    assert guarded.requests[-1].account == ROBOT


def test_metadata_needs_its_header(guarded: DaiEmulator) -> None:
    assert ask(guarded, f"{ACCOUNT}/token", headers={}).status_code == 403
    assert guarded.tokens_issued == 0


def test_unknown_metadata_is_not_found(guarded: DaiEmulator) -> None:
    assert ask(guarded, "/computeMetadata/v1/instance/zone").status_code == 404


def test_without_authentication_there_is_no_metadata_server(emulator: DaiEmulator) -> None:
    assert ask(emulator, f"{ACCOUNT}/token").status_code == 404
    with pytest.raises(RuntimeError, match="authentication=True"):
        _ = emulator.metadata_environment


def test_a_replaced_key_is_refused_and_the_new_one_gives_access(guarded: DaiEmulator) -> None:
    old = credentials_of(guarded)
    new = guarded.replace_key()
    assert new == guarded.service_account_key() != old
    with pytest.raises(RefreshError, match="Invalid JWT Signature"):
        old.refresh(Request())
    fresh = credentials_of(guarded)
    fresh.refresh(Request())
    assert fresh.valid


def test_another_process_replaces_a_key(guarded: DaiEmulator) -> None:
    response = requests.post(f"{guarded.control_endpoint}/keys/replace", timeout=5)
    assert response.json() == guarded.service_account_key()


def test_the_variables_of_the_command_let_google_auth_find_the_machine(launch: Launch) -> None:
    process = launch("--authentication", "--metadata-server")
    assert process.stdout is not None
    words = shlex.split(process.stdout.readline())
    assert words[0] == "export"
    variables = dict(word.split("=", 1) for word in words[1:])
    program = "import google.auth; print(google.auth.default()[1])"
    environment = {**os.environ, **variables, "NO_PROXY": "127.0.0.1", "HOME": "/nowhere"}
    found = subprocess.run(  # noqa: S603 - this Python
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout == "emulator\n"
