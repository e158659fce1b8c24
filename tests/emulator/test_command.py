"""``python -m airflow_dai_provider.emulator``, as a process and as a function."""

import json
import os
import re
import shlex
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from emulator_testing import (
    CLOUD_PLATFORM,
    Launch,
    Serve,
    assert_error,
    first_line,
    greeting_of,
    private_key,
    run,
)
from google.auth.transport.requests import AuthorizedSession
from google.oauth2 import service_account
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from airflow_dai_provider.emulator import METHODS, DaiEmulator
from airflow_dai_provider.emulator.__main__ import main
from airflow_dai_provider.emulator.fault_text import FAULT_HELP
from airflow_dai_provider.emulator.ingest import URL_HELP
from tests.support.threads import wait_until


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_serves_until_a_signal(serve: Serve, number: signal.Signals, creative: dict[str, Any]) -> None:
    process, endpoint = serve()
    creative["mediaFiles"][0]["uri"] += "?seconds=60&signature=s3cret"
    headers = {"Authorization": "Bearer s3cret"}
    response = requests.post(f"{endpoint}/creatives", json={"creative": creative}, headers=headers, timeout=5)
    name = response.json()["name"]
    assert requests.post(f"{endpoint}/{name}:cancel", timeout=5).json() == {}
    assert "done" not in requests.get(f"{endpoint}/{name}?alt=s3cret", timeout=5).json()
    process.send_signal(number)
    assert process.wait(timeout=10) == 0
    assert process.stdout is not None
    assert process.stderr is not None
    output, log = process.stdout.read(), process.stderr.read()
    for words in ("seconds=30", "outcome=success", "cancel=honoured", "cancel_seconds=2", "curl", "Ctrl+C"):
        assert words in output
    lines = [line.split(" ", 2)[2] for line in log.splitlines()]
    path = f"/v1/{name}"
    assert lines == ["POST /v1/creatives 200", f"POST {path}:cancel 200", f"GET {path} 200"]
    assert "s3cret" not in output + log


def test_flags_reach_the_service(serve: Serve, creative: dict[str, Any]) -> None:
    _, endpoint = serve(
        *("--ingest-seconds", "0", "--finished-cancel", "failed_precondition"),
        *("--unimplemented", "operations.list", "--unimplemented", "operations.delete"),
    )
    operation = requests.post(f"{endpoint}/creatives", json={"creative": creative}, timeout=5).json()
    assert operation["done"] is True
    name = operation["name"]
    cancel = requests.post(f"{endpoint}/{name}:cancel", timeout=5)
    assert_error(cancel, 400, "FAILED_PRECONDITION")
    assert requests.get(f"{endpoint}/operations", timeout=5).status_code == 501
    assert requests.delete(f"{endpoint}/{name}", timeout=5).status_code == 501


def test_start_flag_starts_ingests(serve: Serve) -> None:
    _, endpoint = serve("--start", "operations/my-ingest", "--start", "operations/a/b", "--ingest-seconds", "60")
    for name in ("operations/my-ingest", "operations/a/b"):
        assert "done" not in requests.get(f"{endpoint}/{name}", timeout=5).json()


@pytest.mark.parametrize("flags", [["--start", "my-ingest"], ["--start", "operations/a"] * 2])
def test_invalid_start_flag_is_one_line(flags: list[str]) -> None:
    done = run("--port", "0", *flags)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert flags[1] in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_cancel_seconds_flag_reaches_the_service(serve: Serve, creative: dict[str, Any]) -> None:
    _, endpoint = serve("--cancel-seconds", "0")
    name = requests.post(f"{endpoint}/creatives", json={"creative": creative}, timeout=5).json()["name"]
    requests.post(f"{endpoint}/{name}:cancel", timeout=5)
    assert requests.get(f"{endpoint}/{name}", timeout=5).json()["error"]["code"] == 1


def test_curl_line_of_the_greeting_works(serve: Serve) -> None:
    process, endpoint = serve()
    body = re.search(r"-d '\n(.*?)'\n", greeting_of(process), re.DOTALL)
    assert body
    response = requests.post(f"{endpoint}/creatives", data=body[1], timeout=5)
    assert response.status_code == 200, response.text


def test_busy_port_is_one_line(emulator: DaiEmulator) -> None:
    port = emulator.host.rpartition(":")[2]
    result = run("--port", port)
    assert result.returncode == 1
    assert result.stdout == ""
    assert re.fullmatch(rf"error: cannot listen on 127\.0\.0\.1:{port}: .*in use.*\n", result.stderr)


def test_invalid_flag_of_a_process_is_one_line() -> None:
    result = run("--port", "http")
    assert result.returncode == 2
    assert result.stdout == ""
    expected = "error: argument --port: got 'http', expected a number from 0 to 65535\n"
    assert result.stderr == f"python -m airflow_dai_provider.emulator: {expected}"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--port", "65536"], "argument --port: got '65536', expected a number from 0 to 65535"),
        (["--port", "-1"], "--port"),
        (["--ingest-seconds", "-1"], "--ingest-seconds"),
        (["--ingest-seconds", "soon"], "argument --ingest-seconds: got 'soon', expected a number of seconds"),
        (["--cancel-seconds", "nan"], "argument --cancel-seconds: got 'nan'"),
        (["--unimplemented", "operations.wait"], "operations.get"),
        (["--finished-cancel", "no"], "failed_precondition"),
        (["--ingest", "3"], "--ingest"),
        (["--authentication"], "--authentication needs --key-file or --metadata-server"),
        (["--key-file", "key.json"], "--authentication needs --key-file or --metadata-server"),
        (["--token-lifetime", "0"], "argument --token-lifetime: got '0', expected a whole number of seconds"),
        (["--token-lifetime", "1.5"], "argument --token-lifetime: got '1.5'"),
        (["--fault", "status=199"], "argument --fault: status: got 199, expected an HTTP status"),
        (["--fault", "100%s,status=503"], "argument --fault: method: got '100%s'"),
        (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["--control", "all"], "argument --control: invalid choice: 'all'"),
    ],
)
def test_invalid_flag_is_one_line(capsys: pytest.CaptureFixture[str], flags: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as info:
        main(flags)
    output, errors = capsys.readouterr()
    assert (info.value.code, output, errors.count("\n")) == (2, "", 1)
    assert words in errors


def test_help_is_complete(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as info:
        main(["--help"])
    assert info.value.code == 0
    output = capsys.readouterr().out
    for words in (URL_HELP, FAULT_HELP, *METHODS):
        assert words in output
    for words in ("--authentication", "--key-file PATH", "--token-lifetime SECONDS", "/emulator/v1"):
        assert words in output
    assert max(map(len, output.splitlines())) <= 120


def main_until(condition: Callable[[], object], *arguments: str) -> int:
    """Run the function until a signal, which is sent when the condition holds; fail if it never does."""
    held: list[bool] = []

    def stop() -> None:
        try:
            wait_until(condition)
            held.append(True)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    code = main(arguments)
    thread.join()  # a signal that comes after this test would hit another one
    assert held, "The condition never held while the function ran."
    return code


@pytest.mark.usefixtures("signal_handlers")
def test_function_serves_until_a_signal(capsys: pytest.CaptureFixture[str]) -> None:
    with DaiEmulator() as emulator:
        port = emulator.host.rpartition(":")[2]  # free again in a moment

    def is_served() -> bool:
        with requests.Session() as session:
            session.mount("http://", HTTPAdapter(max_retries=Retry(connect=100, backoff_factor=0.01)))
            return session.get(f"http://127.0.0.1:{port}/v1/operations", timeout=5).ok

    assert main_until(is_served, "--port", port, "--ingest-seconds", "3") == 0
    assert f"export DAI_EMULATOR_HOST=127.0.0.1:{port}" in capsys.readouterr().out.splitlines()


@pytest.mark.usefixtures("signal_handlers")
def test_busy_port_of_the_function_is_one_line(emulator: DaiEmulator, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--port", emulator.host.rpartition(":")[2]]) == 1
    output, errors = capsys.readouterr()
    assert (output, errors.count("\n")) == ("", 1)


# Authentication, faults and the control address


def test_key_file_gives_access(launch: Launch, tmp_path: Path) -> None:
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
def test_file_of_another_kind_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
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
def test_key_file_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "missing" / "key.json"
    threads = set(threading.enumerate())
    assert main(["--port", "0", "--authentication", "--key-file", str(file)]) == 1
    assert capsys.readouterr() == ("", f"error: cannot write {file}: No such file or directory\n")
    assert set(threading.enumerate()) == threads


@pytest.mark.usefixtures("signal_handlers")
def test_function_writes_a_relative_key_file_and_prints_the_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "key.json"

    flags = ["--authentication", "--key-file", "key.json", "--fault", "status=503,rate=0.1", "--control", "off"]
    assert main_until(file.exists, "--port", "0", *flags) == 0
    output = capsys.readouterr().out
    assert f'"key_path": "{file}"' in output
    assert "good for 3600 s" in output
    assert re.search(r"^Faults by rate follow the seed \d+\.$", output, re.MULTILINE)
    assert "/emulator/v1" not in output


def test_incomplete_key_file_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(Path, "replace", fail)
    with DaiEmulator(authentication=True, private_key=private_key()) as emulator, pytest.raises(OSError, match="no"):
        emulator.write_key_file(tmp_path / "key.json")
    assert list(tmp_path.iterdir()) == []


def test_key_file_can_be_of_another_account(tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    with DaiEmulator(authentication=True, private_key=private_key()) as emulator:
        emulator.write_key_file(file, "other@p.iam.gserviceaccount.com")
        written = json.loads(file.read_text())
        assert written.pop("emulator") == emulator.endpoint
        assert written == emulator.service_account_key("other@p.iam.gserviceaccount.com")


def test_fault_flags_reach_the_service(serve: Serve) -> None:
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


def test_control_lines_of_the_greeting_work(serve: Serve) -> None:
    process, endpoint = serve()
    greeting = greeting_of(process)
    assert "seed" not in greeting
    lines = re.findall(r"^  curl (\S+/emulator/v1\S*)(?: -d '(.*)')?(?: +#.*)?$", greeting, re.MULTILINE)
    assert len(lines) == 5
    for url, body in lines:
        response = requests.post(url, body, timeout=5) if body else requests.get(url, timeout=5)
        assert response.status_code == 200, response.text
    assert requests.get(f"{endpoint}/operations/another", timeout=5).status_code == 503


def test_control_can_be_switched_off(serve: Serve) -> None:
    process, endpoint = serve("--control", "off")
    assert "/emulator/v1" not in greeting_of(process)
    assert requests.get(endpoint.removesuffix("/v1") + "/emulator/v1", timeout=5).status_code == 404
