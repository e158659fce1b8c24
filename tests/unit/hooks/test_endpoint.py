"""The endpoint of DaiHook."""

from __future__ import annotations

from typing import Any

import pytest
from google.api_core import exceptions

from airflow_dai_provider.emulator import DaiEmulator, Fault
from tests.support.connections import Connect
from tests.support.hooks import MakeHook
from tests.support.payloads import NAME


def test_the_argument_overrides_environment_and_connection(
    emulator: DaiEmulator, monkeypatch: pytest.MonkeyPatch, connect: Connect, make_hook: MakeHook, closed_port: int
) -> None:
    monkeypatch.setenv("DAI_EMULATOR_HOST", f"127.0.0.1:{closed_port}")
    connect(is_anonymous=True, num_retries=0, dai_api_endpoint=f"http://127.0.0.1:{closed_port}")

    name = emulator.start_ingest()

    assert make_hook(api_endpoint=emulator.endpoint).get_operation(name).name == name


def test_the_emulator_variable_needs_no_connection(
    emulator: DaiEmulator, monkeypatch: pytest.MonkeyPatch, make_hook: MakeHook
) -> None:
    monkeypatch.setenv("DAI_EMULATOR_HOST", emulator.host)
    name = emulator.start_ingest()
    emulator.inject(Fault(status=503))

    hook = make_hook(gcp_conn_id="not_defined_anywhere", impersonation_chain="robot@example.com")
    hook.cancel_operation(name)

    assert emulator.state(name) == "CANCELLED"
    assert len(emulator.requests) == 2
    assert all("authorization" not in request.headers for request in emulator.requests)
    assert hook.endpoint.url == emulator.endpoint
    assert hook.test_connection()[0]


def test_the_emulator_variable_overrides_the_connection(
    emulator: DaiEmulator, monkeypatch: pytest.MonkeyPatch, connect: Connect, make_hook: MakeHook, closed_port: int
) -> None:
    monkeypatch.setenv("DAI_EMULATOR_HOST", emulator.host)
    connect(dai_api_endpoint=f"http://127.0.0.1:{closed_port}", key_path="/nowhere.json")
    name = emulator.start_ingest()

    assert make_hook().get_operation(name).name == name


def test_an_empty_emulator_variable_counts_as_unset(
    emulator: DaiEmulator, monkeypatch: pytest.MonkeyPatch, connect: Connect, make_hook: MakeHook
) -> None:
    monkeypatch.setenv("DAI_EMULATOR_HOST", "")
    connect(is_anonymous=True, dai_api_endpoint=emulator.endpoint)
    name = emulator.start_ingest()

    assert make_hook().get_operation(name).name == name


@pytest.mark.parametrize("form", ["http://{}", "http://{}/", " http://{} ", "HTTP://{}"])
def test_the_endpoint_of_the_connection_is_used(
    emulator: DaiEmulator, connect: Connect, make_hook: MakeHook, form: str
) -> None:
    connect(is_anonymous=True, dai_api_endpoint=form.format(emulator.host))
    name = emulator.start_ingest()

    assert make_hook().get_operation(name).name == name
    assert emulator.requests[0].raw_path == f"/v1/{name}"


@pytest.mark.parametrize(
    ("universe", "url"),
    [(None, "https://dai.googleapis.com"), ("", "https://dai.googleapis.com"), ("u.example", "https://dai.u.example")],
)
def test_googles_endpoint_is_the_default(
    monkeypatch: pytest.MonkeyPatch, connect: Connect, make_hook: MakeHook, universe: str | None, url: str
) -> None:
    connect(is_anonymous=True)
    if universe is not None:
        monkeypatch.setenv("GOOGLE_CLOUD_UNIVERSE_DOMAIN", universe)

    assert make_hook().endpoint.url == url


BAD_ENDPOINTS = [
    "https://dai.example/v1",
    "https://dai.example?x=1",
    "https://dai.example#x",
    "ftp://dai.example",
    "https://",
    "https://user:pa55@dai.example",
    "dai.example:",
    "dai.example:0",
    "dai.example:99999",
    "dai.example:port",
    "http://[::1",
    "dai example",
    "dai.example\nx",
]


@pytest.mark.parametrize("value", BAD_ENDPOINTS)
def test_a_bad_argument_is_refused(connect: Connect, make_hook: MakeHook, value: str) -> None:
    connect(is_anonymous=True)

    with pytest.raises(ValueError, match="Invalid api_endpoint .*expected 'host'") as caught:
        make_hook(api_endpoint=value).get_operation(NAME)
    assert "pa55" not in str(caught.value)


@pytest.mark.parametrize("value", BAD_ENDPOINTS)
def test_a_bad_emulator_variable_is_refused(monkeypatch: pytest.MonkeyPatch, make_hook: MakeHook, value: str) -> None:
    monkeypatch.setenv("DAI_EMULATOR_HOST", value)

    with pytest.raises(ValueError, match="Invalid DAI_EMULATOR_HOST .*expected 'host'"):
        make_hook()


@pytest.mark.parametrize("value", BAD_ENDPOINTS)
def test_a_bad_endpoint_of_the_connection_is_refused(connect: Connect, make_hook: MakeHook, value: str) -> None:
    connect(is_anonymous=True, dai_api_endpoint=value)

    with pytest.raises(ValueError, match="Invalid dai_api_endpoint in the connection's extra .*expected 'host'"):
        make_hook().get_operation(NAME)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("timeout", 0),
        ("timeout", -1),
        ("timeout", None),
        ("timeout", "10"),
        ("timeout", float("inf")),
        ("timeout", float("nan")),
        ("timeout", True),
        ("retry_timeout", -1),
        ("retry_timeout", None),
        ("retry_timeout", float("inf")),
    ],
)
def test_a_bad_timeout_is_refused(connect: Connect, make_hook: MakeHook, parameter: str, value: Any) -> None:
    connect(is_anonymous=True)

    with pytest.raises(ValueError, match=f"Invalid {parameter} .*expected a .* number of seconds"):
        make_hook(**{parameter: value})


def test_missing_credentials_are_an_error(connect: Connect, make_hook: MakeHook) -> None:
    connect()

    with pytest.raises(exceptions.Unauthenticated, match="default credentials were not found"):
        make_hook().get_conn()
