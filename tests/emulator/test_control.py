"""The control address: everything over HTTP that a test in the same process can have from code."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import requests
from emulator_testing import HTML, JSON, START, Client, Clock, assert_error, bearer, get, private_key

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.emulator.control import CONTROL_PREFIX, is_loopback

Call = Callable[..., requests.Response]


@pytest.fixture
def call(emulator: DaiEmulator, client: Client) -> Call:
    """Send a request to the control address."""

    def send(http_method: str, path: str = "", body: Any = None, **arguments: Any) -> requests.Response:
        url = f"{emulator.control_endpoint}{path}"
        return client.session.request(http_method, url, json=body, timeout=5, **arguments)

    return send


def test_address_is_below_the_endpoint(emulator: DaiEmulator) -> None:
    assert emulator.control_endpoint == f"{emulator.endpoint}/emulator/v1"
    assert CONTROL_PREFIX == "/emulator/v1"


@pytest.mark.parametrize("path", ["", "/", "?a=b"])
def test_summary_lists_state_and_paths(emulator: DaiEmulator, call: Call, path: str) -> None:
    summary = call("GET", path).json()
    assert summary["endpoint"] == emulator.endpoint
    assert (summary["authentication"], summary["tokens_issued"]) == (False, 0)
    assert (summary["faults_injected"], summary["seed"]) == ({}, emulator.seed)
    assert summary["paths"]["/emulator/v1/faults"] == ["GET", "POST", "DELETE"]
    for path, methods in summary["paths"].items():
        assert "GET" not in methods or call("GET", path.removeprefix(CONTROL_PREFIX)).status_code in (200, 400)


def test_ingests_can_be_started_and_listed(emulator: DaiEmulator, client: Client, call: Call, clock: Clock) -> None:
    assert call("GET", "/ingests").json() == {"ingests": []}
    given = {"name": "operations/a", "seconds": "inf", "cancel_seconds": 3, "cancel": "honoured", "code": None}
    started = call("POST", "/ingests", given)
    assert (started.status_code, started.headers["Content-Type"]) == (200, JSON)
    assert started.json() == {"name": "operations/a", "state": "RUNNING", "cancel_requested": 0}
    more = {"outcome": "DOWNLOAD_ERROR", "code": 403, "seconds": 1, "creative_url": "https://media.example/b.mp4"}
    other = call("POST", "/ingests", more).json()["name"]
    client.post("operations/a:cancel")
    clock.advance(3)
    assert call("GET", "/ingests").json() == {
        "ingests": [
            {"name": "operations/a", "state": "CANCELLED", "cancel_requested": 1},
            {"name": other, "state": "FAILED", "cancel_requested": 0},
        ]
    }
    assert client.operation(other)["metadata"]["creativeUrl"] == "https://media.example/b.mp4"
    assert emulator.state("operations/a") == "CANCELLED"


def test_ingest_can_have_defaults_only(emulator: DaiEmulator, call: Call) -> None:
    name = call("POST", "/ingests", {}).json()["name"]
    assert emulator.state(name) == "RUNNING"


def test_requests_can_be_listed_and_cleared(emulator: DaiEmulator, client: Client, call: Call) -> None:
    client.post("creatives", data='{"ü": 1}'.encode(), headers={"X-More": "1", "Authorization": "Bearer s3cret"})
    client.get("operations", pageSize=2)
    assert len(emulator.requests) == 2
    (create, listed) = call("GET", "/requests").json()["requests"]
    assert create["headers"]["x-more"] == "1"
    assert create["headers"]["authorization"] == "Bearer ..."
    del create["headers"]
    assert create == {
        "time": START,
        "method": "creatives.create",
        "http_method": "POST",
        "path": "/v1/creatives",
        "name": None,
        "query": {},
        "body": '{"ü": 1}',
        "connection": 1,
        "status": 400,
        "account": None,
    }
    assert (listed["method"], listed["query"]) == ("operations.list", {"pageSize": "2"})
    assert call("GET", "/requests", params={"method": "operations.list"}).json() == {"requests": [listed]}
    assert call("GET", "/requests", params={"method": "operations.get"}).json() == {"requests": []}
    assert call("DELETE", "/requests").json() == {}
    assert call("GET", "/requests").json() == {"requests": []}


def test_its_use_is_not_recorded_and_not_hit_by_faults(emulator: DaiEmulator, client: Client, call: Call) -> None:
    emulator.inject(Fault(status=503, times=None))
    for _ in range(2):
        assert call("GET", "/ingests").status_code == 200
    assert emulator.requests == []
    assert emulator.connections == 0
    assert client.get("operations").status_code == 503


def test_faults_can_be_injected_listed_and_cleared(emulator: DaiEmulator, client: Client, call: Call) -> None:
    fault = {"method": "operations.list", "status": 503, "retry_after": 3, "times": 2}
    assert call("POST", "/faults", fault).json() == {"injected": [{**fault, "kind": "503 retry-after"}]}
    response = client.get("operations")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "3")
    assert call("GET", "/faults").json() == {
        "waiting": [{**fault, "times": 1}],
        "injected": {"503 retry-after": 1},
        "seed": emulator.seed,
    }
    assert call("DELETE", "/faults").json() == {}
    assert client.get("operations").status_code == 200
    assert call("GET", "/faults").json()["waiting"] == []
    assert call("GET").json()["faults_injected"] == {"503 retry-after": 1}


def test_list_of_faults_is_injected_whole_or_not_at_all(emulator: DaiEmulator, call: Call) -> None:
    response = call("POST", "/faults", [{"status": 503}, {"status": 199}])
    assert_error(response, 400, "INVALID_ARGUMENT", "status: got 199, expected an HTTP status from 200 to 599")
    assert emulator.faults_waiting == []
    faults = [{"status": 503, "times": None}, {"delay": "inf", "times": 1}]
    injected = call("POST", "/faults", faults).json()["injected"]
    assert [fault["kind"] for fault in injected] == ["503", "hang"]
    waiting = call("GET", "/faults").json()["waiting"]
    assert waiting == faults


def test_reset_starts_anew(emulator: DaiEmulator, client: Client, call: Call) -> None:
    emulator.start_ingest("operations/a", seconds=0)
    emulator.unimplement("operations.list")
    emulator.inject(Fault(status=503, times=2))
    creative = client.get("operations/a").status_code
    assert creative == 503
    assert call("POST", "/reset").json() == {}
    assert (emulator.states(), emulator.requests) == ({}, [])
    assert (emulator.faults_waiting, emulator.faults_injected) == ([], {})
    assert client.get("operations").json() == {}
    assert client.get("operations/a").status_code == 404
    emulator.start_ingest("operations/a")


def test_reset_removes_creatives_and_keeps_the_constructors_options(clock: Clock) -> None:
    with DaiEmulator(clock=clock, unimplemented=["operations.list"]) as emulator:
        name = emulator.start_ingest(seconds=0)
        operation = get(emulator, name).json()
        creative = operation["response"]["name"]
        assert get(emulator, creative).status_code == 200
        emulator.implement("operations.list")
        emulator.reset()
        assert get(emulator, creative).status_code == 404
        assert get(emulator).status_code == 501


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/ingests", [], "ingest: got [], expected an object"),
        ("/ingests", {"nmae": "a"}, "ingest: got 'nmae', expected some of the fields name, seconds"),
        ("/ingests", {"name": "a"}, "name: got 'a', expected operations/"),
        ("/ingests", {"name": 1}, "name: got 1, expected a text"),
        ("/ingests", {"seconds": "soon"}, "seconds: got 'soon', expected a number"),
        ("/ingests", {"seconds": -1}, "seconds: got -1"),
        ("/ingests", {"outcome": "good"}, "outcome: got 'good'"),
        ("/ingests", {"code": "x"}, "code: got 'x', expected an HTTP status from 100 to 599"),
        ("/ingests", {"code": 404}, "code: got 404, expected none with outcome=success"),
        ("/faults", "status=503", "fault: got 'status=503', expected an object"),
        ("/faults", {}, "nothing that goes wrong"),
        ("/tokens/revoke", None, "without authentication=True"),
    ],
)
def test_invalid_input_is_refused(emulator: DaiEmulator, call: Call, path: str, body: Any, words: str) -> None:
    assert_error(call("POST", path, body), 400, "INVALID_ARGUMENT", words)
    assert emulator.states() == {}


@pytest.mark.parametrize("path", ["/ingests", "/faults"])
@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_body_that_is_not_json_is_refused(emulator: DaiEmulator, path: str, body: bytes) -> None:
    response = requests.post(f"{emulator.control_endpoint}{path}", body, timeout=5)
    assert_error(response, 400, "INVALID_ARGUMENT", f"body: got {len(body)} bytes, expected JSON")


def test_unknown_query_is_refused(call: Call) -> None:
    response = call("GET", "/requests", params={"mehtod": "operations.get"})
    assert_error(response, 400, "INVALID_ARGUMENT", "query: got 'mehtod', expected method")


def test_unknown_path_is_refused(call: Call) -> None:
    response = call("GET", "/ingest")
    assert_error(response, 404, "NOT_FOUND", "path: got /emulator/v1/ingest, expected one of /emulator/v1, ")


@pytest.mark.parametrize(("http_method", "path", "allow"), [("DELETE", "", "GET"), ("PUT", "/ingests", "GET, POST")])
def test_wrong_http_method_is_refused(call: Call, http_method: str, path: str, allow: str) -> None:
    response = call(http_method, path)
    assert_error(response, 405, "UNIMPLEMENTED", f"HTTP method: got {http_method}, expected GET")
    assert response.headers["Allow"] == allow


@pytest.mark.parametrize("path", ["/emulator", "/emulator/v2", "/emulator/v1x", "/v1/emulator/v1", "/v1/emulator"])
def test_paths_beside_it_are_unknown_to_the_api(emulator: DaiEmulator, path: str) -> None:
    response = requests.get(f"{emulator.endpoint}{path}", timeout=5)
    assert (response.status_code, response.headers["Content-Type"]) == (404, HTML)
    assert len(emulator.requests) == 1


def test_it_can_be_switched_off(clock: Clock) -> None:
    with DaiEmulator(clock=clock, control="off") as emulator:
        response = requests.get(emulator.control_endpoint, timeout=5)
        assert (response.status_code, response.headers["Content-Type"]) == (404, HTML)
        assert len(emulator.requests) == 1


def test_invalid_access_is_refused() -> None:
    with pytest.raises(ValueError, match="control: got 'all', expected one of loopback, any, off"):
        DaiEmulator(control="all")


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        (("127.0.0.1", 1), True),
        (("127.8.9.1", 1), True),
        (("::1", 1, 0, 0), True),
        (("::ffff:127.0.0.1", 1, 0, 0), True),
        (("192.0.2.1", 1), False),
        (("::ffff:192.0.2.1", 1, 0, 0), False),
        (("2001:db8::1", 1, 0, 0), False),
        (("fe80::1%eth0", 1, 0, 2), False),
        (("localhost", 1), False),
        ("", False),
        (None, False),
    ],
)
def test_loopback_addresses_are_recognised(peer: object, expected: bool) -> None:
    assert is_loopback(peer) is expected


@pytest.mark.parametrize(("access", "status"), [("loopback", 403), ("any", 200)])
def test_client_on_another_machine_needs_control_any(monkeypatch: pytest.MonkeyPatch, access: str, status: int) -> None:
    monkeypatch.setattr("airflow_dai_provider.emulator.control.is_loopback", lambda _: False)
    with DaiEmulator(control=access) as emulator:
        response = requests.post(f"{emulator.control_endpoint}/ingests", json={}, timeout=5)
        assert response.status_code == status
        assert len(emulator.states()) == (status == 200)
        if status == 403:
            assert_error(response, 403, "PERMISSION_DENIED", "control=any")


def test_needs_no_token_and_shows_none(clock: Clock) -> None:
    with DaiEmulator(authentication=True, private_key=private_key(), clock=clock) as emulator:
        token = emulator._auth.tokens.issue("a@b", emulator._auth.scopes, 3600)
        headers = {**bearer(token), "Cookie": "s3cret", "Proxy-Authorization": "Basic s3cret"}
        assert get(emulator, headers=headers).status_code == 200
        requests.post(f"{emulator.endpoint}/token", data={"assertion": "s3cret"}, timeout=5)
        control = emulator.control_endpoint
        recorded = requests.get(f"{control}/requests", timeout=5)
        assert "s3cret" not in recorded.text
        assert token not in recorded.text
        listed, asked = recorded.json()["requests"]
        shown = [listed["headers"][name] for name in ("authorization", "cookie", "proxy-authorization")]
        assert shown == ["Bearer ...", "...", "Basic ..."]
        assert (listed["account"], asked["account"], asked["body"]) == ("a@b", None, None)
        assert requests.get(f"{control}/tokens", timeout=5).json() == {"authentication": True, "tokens_issued": 1}
        assert requests.post(f"{control}/tokens/revoke", timeout=5).json() == {}
        assert get(emulator, headers=headers).status_code == 401
        assert requests.get(control, timeout=5).json()["authentication"] is True


def test_log_shows_neither_query_nor_body(emulator: DaiEmulator, call: Call, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="airflow_dai_provider.emulator")
    call("GET", "/requests?method=s3cret")
    call("POST", "/faults", {"s3cret": 1})
    assert caplog.messages == ["GET /emulator/v1/requests 200", "POST /emulator/v1/faults 400"]
