"""``python -m airflow_dai_provider.emulator`` with authentication, faults and the control address."""

import json
import os
import re
import shlex
import signal
import threading
import time
from pathlib import Path

import pytest
import requests
from emulator_command import Launch, Serve, first_line, greeting_of
from emulator_testing import private_key
from google.auth.transport.requests import AuthorizedSession
from google.oauth2 import service_account

from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.emulator.__main__ import main
from airflow_dai_provider.emulator.fault_text import FAULT_HELP

CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"


def test_authentication(launch: Launch, tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    process = launch("--authentication", "--key-file", str(file), "--token-lifetime", "500")
    name, _, value = first_line(process).rstrip("\n").removeprefix("export ").partition("=")
    assert name == "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT"
    connection = json.loads(shlex.split(value)[0])
    endpoint = connection["extra"]["dai_api_endpoint"]
    assert connection["conn_type"] == "google_cloud_platform"
    assert connection["extra"]["key_path"] == str(file)
    greeting = greeting_of(process)
    for words in (str(file), "good for 500 s", "DAI_EMULATOR_HOST unset", f"{endpoint}/emulator/v1/ingests"):
        assert words in greeting
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key.json"]
    key = file.read_text()
    credentials = service_account.Credentials.from_service_account_file(str(file), scopes=[CLOUD_PLATFORM])
    with AuthorizedSession(credentials) as session:
        assert session.get(f"{endpoint}/v1/operations").json() == {}
    assert requests.get(f"{endpoint}/v1/operations", timeout=5).status_code == 401
    assert requests.get(f"{endpoint}/emulator/v1/tokens", timeout=5).json()["tokens_issued"] == 1
    process.terminate()
    assert process.wait(timeout=10) == 0
    assert process.stderr is not None
    shown = greeting + process.stderr.read()
    secret = json.loads(key)["private_key"].splitlines()[1]
    assert secret not in shown
    assert str(credentials.token) not in shown


def test_key_of_an_emulator_is_replaced(launch: Launch, tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    keys = []
    for _ in range(2):
        first_line(launch("--authentication", "--key-file", str(file)))
        keys.append(json.loads(file.read_text())["private_key"])
    assert keys[0] != keys[1]
    assert file.stat().st_mode & 0o777 == 0o600


FOREIGN = ['{"type": "service_account", "project_id": "emulator"}', '["emulator"]', '"emulator"', "no JSON", "3", ""]


@pytest.mark.usefixtures("signal_handlers")
@pytest.mark.parametrize("content", FOREIGN)
def test_another_file_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    file = tmp_path / "key.json"
    file.write_text(content)
    threads = set(threading.enumerate())
    assert main(["--port", "0", "--authentication", "--key-file", str(file)]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors == f"error: key file: got '{file}', expected a path where nothing is, or the key of an emulator\n"
    assert file.read_text() == content
    assert set(threading.enumerate()) == threads


@pytest.mark.usefixtures("signal_handlers")
def test_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "missing" / "key.json"
    threads = set(threading.enumerate())
    assert main(["--port", "0", "--authentication", "--key-file", str(file)]) == 1
    assert capsys.readouterr() == ("", f"error: cannot write {file}: No such file or directory\n")
    assert set(threading.enumerate()) == threads


@pytest.mark.usefixtures("signal_handlers")
def test_function_with_authentication(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "key.json"

    def stop_when_it_serves() -> None:
        deadline = time.monotonic() + 10
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_when_it_serves)
    thread.start()
    flags = ["--authentication", "--key-file", "key.json", "--fault", "status=503,rate=0.1", "--control", "off"]
    assert main(["--port", "0", *flags]) == 0
    thread.join()
    output = capsys.readouterr().out
    assert f'"key_path": "{file}"' in output
    assert "good for 3600 s" in output
    assert re.search(r"^Faults by rate follow the seed \d+\.$", output, re.MULTILINE)
    assert "/emulator/v1" not in output


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(Path, "replace", fail)
    with DaiEmulator(authentication=True, private_key=private_key()) as emulator, pytest.raises(OSError, match="no"):
        emulator.write_key_file(tmp_path / "key.json")
    assert list(tmp_path.iterdir()) == []


def test_key_file_of_another_account(tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    with DaiEmulator(authentication=True, private_key=private_key()) as emulator:
        emulator.write_key_file(file, "other@p.iam.gserviceaccount.com")
        written = json.loads(file.read_text())
        assert written.pop("emulator") == emulator.endpoint
        assert written == emulator.service_account_key("other@p.iam.gserviceaccount.com")


def test_faults_of_the_command_line(serve: Serve) -> None:
    process, endpoint = serve(
        *("--fault", "operations.list,status=503,times=2", "--fault", '{"status": 429, "rate": 0.5}', "--seed", "7")
    )
    assert "Faults by rate follow the seed 7." in greeting_of(process)
    statuses = [requests.get(f"{endpoint}/operations", timeout=5).status_code for _ in range(22)]
    assert statuses[:2] == [503, 503]
    control = endpoint.removesuffix("/v1") + "/emulator/v1"
    faults = requests.get(f"{control}/faults", timeout=5).json()
    assert faults["seed"] == 7
    assert faults["injected"] == {"503": 2, "429": statuses.count(429)}
    assert set(statuses[2:]) == {200, 429}


def test_lines_of_the_greeting_work(serve: Serve) -> None:
    process, endpoint = serve()
    greeting = greeting_of(process)
    assert "seed" not in greeting
    lines = re.findall(r"^  curl (\S+/emulator/v1\S*)(?: -d '(.*)')?(?: +#.*)?$", greeting, re.MULTILINE)
    assert len(lines) == 5
    for url, body in lines:
        response = requests.post(url, body, timeout=5) if body else requests.get(url, timeout=5)
        assert response.status_code == 200, response.text
    assert requests.get(f"{endpoint}/operations/another", timeout=5).status_code == 503


def test_control_off(serve: Serve) -> None:
    process, endpoint = serve("--control", "off")
    assert "/emulator/v1" not in greeting_of(process)
    assert requests.get(endpoint.removesuffix("/v1") + "/emulator/v1", timeout=5).status_code == 404


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--authentication"], "--authentication and --key-file belong together"),
        (["--key-file", "key.json"], "--authentication and --key-file belong together"),
        (["--token-lifetime", "0"], "argument --token-lifetime: got '0', expected a whole number of seconds"),
        (["--token-lifetime", "1.5"], "argument --token-lifetime: got '1.5'"),
        (["--fault", "status=199"], "argument --fault: status: got 199, expected an HTTP status"),
        (["--fault", "100%s,status=503"], "argument --fault: method: got '100%s'"),
        (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["--control", "all"], "argument --control: invalid choice: 'all'"),
    ],
)
def test_bad_flags(capsys: pytest.CaptureFixture[str], flags: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as info:
        main(flags)
    output, errors = capsys.readouterr()
    assert (info.value.code, output, errors.count("\n")) == (2, "", 1)
    assert words in errors


def test_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        main(["--help"])
    output = capsys.readouterr().out
    for words in (FAULT_HELP, "--authentication", "--key-file PATH", "--token-lifetime SECONDS", "/emulator/v1"):
        assert words in output
    assert max(map(len, output.splitlines())) <= 120
