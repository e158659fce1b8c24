"""Faults on demand: the responses in place of the real ones, changes to these, and contradictions."""

import logging
import time
from typing import Any

import pytest
import requests
from emulator_testing import HTML, JSON, Client, assert_error, assert_no_warning, get, hang_up

from airflow_dai_provider.emulator import DaiEmulator, Fault
from tests.support.threads import wait_until


@pytest.mark.parametrize(
    ("status", "rpc_status"),
    [
        (400, "INVALID_ARGUMENT"),
        (401, "UNAUTHENTICATED"),
        (403, "PERMISSION_DENIED"),
        (404, "NOT_FOUND"),
        (409, "ABORTED"),
        (429, "RESOURCE_EXHAUSTED"),
        (499, "CANCELLED"),
        (500, "INTERNAL"),
        (501, "UNIMPLEMENTED"),
        (503, "UNAVAILABLE"),
        (504, "DEADLINE_EXCEEDED"),
    ],
)
def test_status_has_its_json_error(emulator: DaiEmulator, client: Client, status: int, rpc_status: str) -> None:
    emulator.inject(Fault(status=status, headers={"Retry-After": "7"}))
    response = client.get("operations")
    assert_error(response, status, rpc_status)
    assert response.headers["Retry-After"] == "7"
    assert emulator.requests[-1].status == status
    assert client.get("operations").status_code == 200


@pytest.mark.parametrize(
    ("rpc_status", "http_status"),
    [("FAILED_PRECONDITION", 400), ("ALREADY_EXISTS", 409), ("DATA_LOSS", 500), ("UNAVAILABLE", 503)],
)
def test_rpc_status_has_its_http_status(
    emulator: DaiEmulator, client: Client, rpc_status: str, http_status: int
) -> None:
    emulator.inject(Fault(rpc_status=rpc_status))
    assert_error(client.get("operations"), http_status, rpc_status)


def test_status_and_rpc_status_can_differ(emulator: DaiEmulator, client: Client) -> None:
    emulator.inject(Fault(status=400, rpc_status="OUT_OF_RANGE"))
    assert_error(client.get("operations"), 400, "OUT_OF_RANGE")
    emulator.inject(Fault(status=503, rpc_status="NOT_FOUND"))
    assert_error(client.get("operations"), 503, "NOT_FOUND")


@pytest.mark.parametrize("status", [418, 502, 599])
def test_status_without_rpc_code_is_the_html_of_a_front_end(emulator: DaiEmulator, client: Client, status: int) -> None:
    emulator.inject(Fault(status=status))
    response = client.get("operations")
    assert (response.status_code, response.headers["Content-Type"]) == (status, HTML)
    assert f"Error {status}" in response.text


def test_body_is_sent_as_it_is(emulator: DaiEmulator, client: Client) -> None:
    emulator.inject(Fault(status=200, body=b'{"name": ', content_type="text/plain"))
    emulator.inject(Fault(status=302, body=b"", headers={"Location": "/elsewhere"}))
    broken = client.get("operations")
    assert (broken.status_code, broken.content) == (200, b'{"name": ')
    assert broken.headers["Content-Type"] == "text/plain"
    moved = client.request("GET", "operations", allow_redirects=False)
    assert (moved.status_code, moved.content, moved.headers["Location"]) == (302, b"", "/elsewhere")
    assert moved.headers["Content-Type"] == JSON


def test_request_with_a_replaced_response_is_not_processed(emulator: DaiEmulator, client: Client) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(status=503))
    client.post(f"{name}:cancel")
    assert emulator.cancel_requested(name) == 0


def test_content_type_and_headers_change_the_real_response(emulator: DaiEmulator, client: Client) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(content_type="text/plain", headers={"X-More": "1"}))
    response = client.get(name)
    assert (response.status_code, response.json()["name"]) == (200, name)
    assert (response.headers["Content-Type"], response.headers["X-More"]) == ("text/plain", "1")


def test_delay_sends_the_real_response_late(emulator: DaiEmulator, client: Client) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(delay=0.15))
    started = time.monotonic()
    response = client.post(f"{name}:cancel")
    assert time.monotonic() - started >= 0.15
    assert (response.status_code, response.json()) == (200, {})


def test_request_is_processed_in_spite_of_a_long_delay(emulator: DaiEmulator) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(method="operations.cancel", delay=60))
    hang_up(emulator, "POST", f"{name}:cancel")
    wait_until(lambda: emulator.state(name) == "CANCELLED")
    assert emulator.requests[-1].status is None


def test_delay_of_one_response_does_not_hold_up_others(emulator: DaiEmulator, client: Client) -> None:
    emulator.inject(Fault(method="operations.list", delay=60))
    with pytest.raises(requests.ReadTimeout):
        get(emulator, timeout=0.05)
    wait_until(lambda: not emulator.faults_waiting)
    assert client.get("operations").status_code == 200


@pytest.mark.parametrize("fault", [Fault(delay=0.1, drop="after"), Fault(delay=0.1, truncate=1), Fault(delay=0.1)])
def test_client_can_disconnect_before_the_late_response(
    emulator: DaiEmulator, client: Client, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    caplog.set_level(logging.INFO)
    emulator.inject(fault)
    with pytest.raises(requests.ReadTimeout):
        client.request("GET", "operations", timeout=0.02)
    wait_until(lambda: emulator.requests)
    emulator.forget_requests()
    wait_until(lambda: f"GET /v1/operations {'connection dropped' if fault.drop else 200}" in caplog.messages)
    assert emulator.requests == []
    assert client.get("operations").status_code == 200
    assert_no_warning(caplog)


@pytest.mark.parametrize(("drop", "processed"), [("before", 0), ("after", 1)])
def test_connection_is_dropped(emulator: DaiEmulator, client: Client, drop: str, processed: int) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(drop=drop, delay=0.01))
    with pytest.raises(requests.ConnectionError):
        client.post(f"{name}:cancel")
    assert emulator.cancel_requested(name) == processed
    assert emulator.requests[-1].status is None
    assert client.get(name).status_code == 200
    assert emulator.connections == 2


@pytest.mark.parametrize("truncate", [0, 10])
def test_truncated_response_ends_early(emulator: DaiEmulator, client: Client, truncate: int) -> None:
    name = emulator.start_ingest()
    whole = client.get(name)
    emulator.inject(Fault(truncate=truncate))
    response = client.stream(name)
    assert response.status_code == 200
    assert response.headers["Content-Length"] == whole.headers["Content-Length"]
    assert response.headers["Content-Type"] == whole.headers["Content-Type"]
    received = b""
    with pytest.raises(requests.exceptions.ChunkedEncodingError):  # noqa: PT012 (the bytes before it count)
        for byte in response.iter_content(1):
            received += byte
    assert received == whole.content[:truncate]
    assert emulator.requests[-1].status == 200
    assert client.get(name).status_code == 200


def test_error_with_an_uncommon_status_can_be_truncated(emulator: DaiEmulator, client: Client) -> None:
    emulator.inject(Fault(status=499, truncate=5, headers={"Retry-After": "1"}))
    response = client.stream("operations")
    assert (response.status_code, response.headers["Retry-After"]) == (499, "1")
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        _ = response.content


def test_truncation_beyond_the_response_sends_it_whole(emulator: DaiEmulator, client: Client) -> None:
    emulator.inject(Fault(truncate=1000))
    assert client.get("operations").json() == {}


def test_faults_are_used_in_order_each_as_often_as_told(emulator: DaiEmulator, client: Client) -> None:
    emulator.inject(Fault(status=503, times=2))
    emulator.inject(Fault(status=429))
    assert [client.get("operations").status_code for _ in range(4)] == [503, 503, 429, 200]


def test_fault_can_last_forever(emulator: DaiEmulator, client: Client) -> None:
    emulator.inject(Fault(status=503, times=None))
    emulator.inject(Fault(status=429))
    assert {client.get("operations").status_code for _ in range(5)} == {503}


def test_fault_waits_for_its_method_and_name(emulator: DaiEmulator, client: Client) -> None:
    names = [emulator.start_ingest() for _ in range(2)]
    emulator.inject(Fault(method="operations.get", name=names[1], status=503))
    emulator.inject(Fault(method="operations.list", status=500))
    assert client.get(names[0]).status_code == 200
    assert client.post(f"{names[1]}:cancel").status_code == 200
    assert client.get("operations").status_code == 500
    assert [client.get(names[1]).status_code for _ in range(2)] == [503, 200]


def test_fault_without_method_hits_unknown_routes_too(emulator: DaiEmulator, client: Client) -> None:
    emulator.inject(Fault(status=503))
    assert client.get("nowhere").status_code == 503
    assert client.get("nowhere").status_code == 404


def test_fault_comes_before_unimplemented(emulator: DaiEmulator, client: Client) -> None:
    emulator.unimplement("operations.list")
    emulator.inject(Fault(status=503))
    assert [client.get("operations").status_code for _ in range(2)] == [503, 501]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "Fault: got 'nothing that goes wrong'"),
        ({"times": 3}, "nothing that goes wrong"),
        ({"method": "operations.wait", "status": 503}, "method: got 'operations.wait', expected one of operations.get"),
        ({"method": "operations.wait", "status": 503}, "creatives.delete, token, generateAccessToken"),
        ({"status": 199}, "status: got 199, expected an HTTP status from 200 to 599"),
        ({"status": 600}, "status: got 600"),
        ({"status": 200}, "status: got 200, expected an error status"),
        ({"status": 302}, "status: got 302, expected an error status"),
        ({"rpc_status": "OK"}, "rpc_status: got 'OK', expected one of CANCELLED"),
        ({"body": b"x"}, "body: got b'x', expected a status"),
        ({"body": b"x", "status": 400, "rpc_status": "NOT_FOUND"}, "no rpc_status"),
        ({"drop": "now"}, "drop: got 'now', expected None or one of before, after"),
        ({"drop": "after", "status": 503}, "drop: got 'after', expected no status"),
        ({"drop": "before", "truncate": 0}, "expected no truncate"),
        ({"drop": "before", "headers": {"a": "b"}, "rpc_status": "NOT_FOUND"}, "no rpc_status or headers"),
        ({"delay": -1}, "delay: got -1"),
        ({"delay": float("nan")}, "delay: got nan"),
        ({"delay": float("inf"), "status": 503}, "delay: got inf, expected no status beside it: no response is sent"),
        ({"body_delay": -1}, "body_delay: got -1"),
        ({"reset": True}, "reset: got True, expected drop or truncate"),
        ({"reset": True, "status": 503}, "reset: got True"),
        ({"rate": 0, "status": 503}, "rate: got 0, expected a share"),
        ({"rate": 1.1, "status": 503}, "rate: got 1.1"),
        ({"rate": float("nan"), "status": 503}, "rate: got nan"),
        ({"html": True}, "html: got True, expected a status"),
        ({"html": True, "rpc_status": "NOT_FOUND"}, "html: got True"),
        ({"html": True, "status": 503, "body": b""}, "html: got True"),
        ({"redirect": "/a", "status": 304}, "status: got 304, expected one of 301, 302, 303, 307, 308"),
        ({"redirect": "/a", "status": 302, "body": b""}, "redirect: got '/a'"),
        ({"redirect": "/a", "rpc_status": "NOT_FOUND"}, "redirect: got '/a'"),
        ({"redirect": "/a\nb"}, "headers: got '/a\\nb', expected printable ASCII"),
        ({"headers": {"a": "ü"}, "status": 503}, "headers: got 'ü'"),
        ({"content_type": "a\r\nb: c", "status": 503}, "expected printable ASCII"),
        ({"processed": True}, "processed: got True, expected a status"),
        ({"processed": True, "drop": "after"}, "processed: got True"),
        ({"retry_after": -1, "status": 503}, "retry_after: got -1"),
        ({"retry_after": 1, "retry_after_date": 1, "status": 503}, "retry_after: got 'several'"),
        ({"retry_after": 1, "headers": {"Retry-After": "1"}, "status": 503}, "retry_after: got 'several'"),
        ({"retry_after_date": float("inf"), "status": 503}, "retry_after_date: got inf"),
        ({"retry_after_date": 1e300, "status": 503}, "retry_after_date: got 1e+300"),
        ({"padding": -1}, "padding: got -1"),
        ({"drop": "after", "padding": 1}, "expected no padding"),
        ({"drop": "after", "body_delay": 1}, "expected no body_delay"),
        ({"times": 0, "status": 503}, "times: got 0"),
        ({"truncate": -1}, "truncate: got -1"),
        ({"truncate": 2, "status": 200, "body": b"{}"}, "truncate: got 2, expected less than the 2 bytes"),
        (
            {"truncate": 5, "status": 200, "body": b"{}", "padding": 3},
            "truncate: got 5, expected less than the 5 bytes",
        ),
        ({"headers": {"Content-Length": "3"}, "status": 503}, "headers: got 'content-length'"),
        ({"headers": {"Content-Type": "text/html"}, "status": 503}, "headers: got 'content-type'"),
    ],
)
def test_fault_that_contradicts_itself_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as info:
        Fault(**fields)
    assert words in str(info.value)


def test_drop_with_a_delay_and_truncated_body_are_accepted() -> None:
    assert Fault(drop="after", delay=1).lets_through
    assert not Fault(drop="before").lets_through
    assert not Fault(status=200, body=b"{}", truncate=1).lets_through


def test_record_tells_which_requests_a_fault_has_hit(emulator: DaiEmulator, client: Client) -> None:
    emulator.inject(Fault("operations.list", status=503, retry_after=1))
    for _ in range(2):
        client.get("operations")
    assert [request.fault for request in emulator.requests] == ["503 retry-after", None]
