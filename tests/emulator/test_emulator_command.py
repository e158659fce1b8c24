"""``python -m airflow_dai_provider.emulator``, as a process."""

import os
import re
import signal
import threading
from typing import Any

import pytest
import requests
from emulator_command import Serve, run
from emulator_testing import assert_error
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from airflow_dai_provider.emulator import METHODS, DaiEmulator
from airflow_dai_provider.emulator.__main__ import main


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_until_it_is_told_to_stop(serve: Serve, number: signal.Signals, creative: dict[str, Any]) -> None:
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


def test_flags_reach_the_service(serve: Serve) -> None:
    _, endpoint = serve(
        *("--ingest-seconds", "0", "--finished-cancel", "failed_precondition"),
        *("--unimplemented", "operations.list", "--unimplemented", "operations.delete"),
    )
    media = {"uri": "https://m.example/a", "delivery": "DELIVERY_STREAMING", "mimeType": "video/mp4"}
    creative = {"adSystem": "tests", "mezzanines": [media]}
    operation = requests.post(f"{endpoint}/creatives", json={"creative": creative}, timeout=5).json()
    assert operation["done"] is True
    name = operation["name"]
    cancel = requests.post(f"{endpoint}/{name}:cancel", timeout=5)
    assert_error(cancel, 400, "FAILED_PRECONDITION")
    assert requests.get(f"{endpoint}/operations", timeout=5).status_code == 501
    assert requests.delete(f"{endpoint}/{name}", timeout=5).status_code == 501


def test_ingests_that_run_from_the_start(serve: Serve) -> None:
    _, endpoint = serve("--start", "operations/my-ingest", "--start", "operations/a/b", "--ingest-seconds", "60")
    for name in ("operations/my-ingest", "operations/a/b"):
        assert "done" not in requests.get(f"{endpoint}/{name}", timeout=5).json()


@pytest.mark.parametrize("flags", [["--start", "my-ingest"], ["--start", "operations/a"] * 2])
def test_an_ingest_that_cannot_be_started_is_one_line(flags: list[str]) -> None:
    done = run("--port", "0", *flags)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert flags[1] in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_cancel_seconds_flag(serve: Serve, creative: dict[str, Any]) -> None:
    _, endpoint = serve("--cancel-seconds", "0")
    name = requests.post(f"{endpoint}/creatives", json={"creative": creative}, timeout=5).json()["name"]
    requests.post(f"{endpoint}/{name}:cancel", timeout=5)
    assert requests.get(f"{endpoint}/{name}", timeout=5).json()["error"]["code"] == 1


def test_curl_line_of_the_greeting_works(serve: Serve) -> None:
    process, endpoint = serve()
    assert process.stdout is not None
    hint = "".join(iter(process.stdout.readline, "Ctrl+C stops it.\n"))
    body = re.search(r"-d '\n(.*?)'\n", hint, re.DOTALL)
    assert body
    response = requests.post(f"{endpoint}/creatives", data=body[1], timeout=5)
    assert response.status_code == 200, response.text


def test_busy_port(emulator: DaiEmulator) -> None:
    port = emulator.host.rpartition(":")[2]
    result = run("--port", port)
    assert result.returncode == 1
    assert result.stdout == ""
    assert re.fullmatch(rf"error: cannot listen on 127\.0\.0\.1:{port}: .*in use.*\n", result.stderr)


def test_bad_flag_is_one_line() -> None:
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
    ],
)
def test_bad_flags(capsys: pytest.CaptureFixture[str], flags: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as info:
        main(flags)
    output, errors = capsys.readouterr()
    assert (info.value.code, output, errors.count("\n")) == (2, "", 1)
    assert words in errors


def test_help_tells_how_a_url_chooses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main(["--help"])
    assert info.value.code == 0
    output = capsys.readouterr().out
    for words in ("outcome=success", "DOWNLOAD_ERROR", "cancel_seconds=2", "ignored", *METHODS):
        assert words in output


@pytest.mark.usefixtures("signal_handlers")
def test_function_serves_until_a_signal(capsys: pytest.CaptureFixture[str]) -> None:
    with DaiEmulator() as emulator:
        port = emulator.host.rpartition(":")[2]  # free again in a moment

    def stop_when_it_serves() -> None:
        with requests.Session() as session:
            session.mount("http://", HTTPAdapter(max_retries=Retry(connect=100, backoff_factor=0.01)))
            session.get(f"http://127.0.0.1:{port}/v1/operations", timeout=5)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_when_it_serves)
    thread.start()
    assert main(["--port", port, "--ingest-seconds", "3"]) == 0
    thread.join()
    assert f"export DAI_EMULATOR_HOST=127.0.0.1:{port}" in capsys.readouterr().out.splitlines()


@pytest.mark.usefixtures("signal_handlers")
def test_function_with_a_busy_port(emulator: DaiEmulator, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--port", emulator.host.rpartition(":")[2]]) == 1
    output, errors = capsys.readouterr()
    assert (output, errors.count("\n")) == ("", 1)
