"""Routing by the raw path, the record of requests, UNIMPLEMENTED, and the server's life."""

import base64
import gc
import logging
import socket
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from emulator_testing import (
    CALLS,
    HTML,
    START,
    Client,
    Clock,
    assert_error,
    assert_no_warning,
    get,
    raw_connection,
)

from airflow_dai_provider.emulator import METHODS, DaiEmulator, Fault
from airflow_dai_provider.emulator.routes import find_route
from tests.support.threads import wait_until

RawClient = Callable[..., tuple[int, str, Any]]


@pytest.mark.parametrize(
    ("encoded", "name"),
    [
        ("operations/my-ingest", "operations/my-ingest"),
        ("operations/a/b/c", "operations/a/b/c"),
        ("operations/YWI%2BYw%3D%3D", "operations/YWI+Yw=="),
        ("operations/YWI+Yw==", "operations/YWI+Yw=="),
        ("operations/~a:b%3Ac@d", "operations/~a:b:c@d"),
        ("operations/100%25", "operations/100%"),
        ("operations/%C3%BC", "operations/ü"),
        ("operations/a%2Fb%2fc/d", "operations/a%2Fb%2fc/d"),
        ("operations/a%252Fb", "operations/a%2Fb"),
        ("operations/a%20b%3Fc%23d", "operations/a b?c#d"),
        ("operations/a%3Acancel", "operations/a:cancel"),
        ("operations/a:cancel%3Acancel", "operations/a:cancel:cancel"),
        ("operations/a:wait", "operations/a:wait"),
        ("operations/cancel", "operations/cancel"),
        ("operations/...", "operations/..."),
    ],
)
def test_name_is_decoded_from_the_raw_path(emulator: DaiEmulator, raw: RawClient, encoded: str, name: str) -> None:
    emulator.start_ingest(name, cancel_seconds=5)
    status, _, operation = raw("GET", f"/v1/{encoded}")
    assert (status, operation["name"]) == (200, name)
    assert raw("POST", f"/v1/{encoded}:cancel")[0] == 200
    assert emulator.cancel_requested(name) == 1
    assert raw("DELETE", f"/v1/{encoded}?x=1")[0] == 200
    assert [(request.method, request.name) for request in emulator.requests] == [
        ("operations.get", name),
        ("operations.cancel", name),
        ("operations.delete", name),
    ]
    assert emulator.requests[1].raw_path == f"/v1/{encoded}:cancel"


def test_name_that_is_not_utf_8_is_not_found(raw: RawClient) -> None:
    status, _, error = raw("GET", "/v1/operations/%ff")
    assert (status, error["error"]["status"]) == (404, "NOT_FOUND")


def test_bytes_that_are_not_utf_8_are_replaced() -> None:
    # Only a build of aiohttp without its C parser lets them through, as surrogates.
    route = find_route("/v1/operations/\udcc3\udcbc\udcff")
    assert route.name == "operations/ü\ufffd"


def test_creative_name_is_one_segment_and_fully_decoded(emulator: DaiEmulator, raw: RawClient) -> None:
    raw("GET", "/v1/creatives/a%3Ab")
    assert (emulator.requests[-1].method, emulator.requests[-1].name) == ("creatives.get", "creatives/a:b")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/",
        "/v2/operations",
        "/v1/operation",
        "/v1/operationsx",
        "/v1/operations/",
        "/v1/operations:cancel",
        "/v1/operations/:cancel",
        "/v1/operations//a",
        "/v1/operations/a/",
        "/v1/operations/../a",
        "/v1/operations/%2E%2E/a",
        "/v1/operations/.",
        "/v1/creatives/",
        "/v1/creatives/a/b",
        "/v1/creatives/a%2Fb%2F",
        "/v1/projects/p/operations/a",
        "/v1/<b>",
    ],
)
@pytest.mark.parametrize("http_method", ["GET", "POST"])
def test_unknown_route_is_an_html_page(emulator: DaiEmulator, raw: RawClient, http_method: str, path: str) -> None:
    status, content_type, page = raw(http_method, path)
    assert (status, content_type) == (404, HTML)
    assert "Error 404 (Not Found)" in page
    assert "<b>404.</b>" in page
    assert page.count("<b>") == 1  # that of the status; the path is escaped
    assert (emulator.requests[-1].method, emulator.requests[-1].status) == (None, 404)


@pytest.mark.parametrize(
    ("http_method", "path", "allow"),
    [
        ("POST", "operations", "GET"),
        ("PUT", "operations/a", "GET, DELETE"),
        ("POST", "operations/a", "GET, DELETE"),
        ("POST", "operations/a%3Acancel", "GET, DELETE"),
        ("GET", "operations/a:cancel", "POST"),
        ("DELETE", "operations/a:cancel", "POST"),
        ("GET", "creatives", "POST"),
        ("PATCH", "creatives/a", "GET, DELETE"),
        ("HEAD", "operations/a", "GET, DELETE"),
    ],
)
def test_wrong_http_method_is_refused(
    emulator: DaiEmulator, client: Client, http_method: str, path: str, allow: str
) -> None:
    response = client.request(http_method, path)
    assert response.status_code == 405
    assert response.headers["Content-Type"] == HTML
    assert response.headers["Allow"] == allow
    assert emulator.requests[-1].method is None
    if http_method != "HEAD":
        assert "Error 405" in response.text


def test_requests_are_recorded(emulator: DaiEmulator, client: Client, clock: Clock) -> None:
    name = emulator.start_ingest()
    clock.advance(2)
    client.get(name, alt="json", empty="")
    client.post("creatives", data=b"{", headers={"X-Goog-Api-Client": "gl/1"})
    get, create = emulator.requests
    assert get.time == START + 2
    assert (get.method, get.http_method, get.raw_path) == ("operations.get", "GET", f"/v1/{name}")
    assert (get.name, get.query, get.body, get.status) == (name, {"alt": "json", "empty": ""}, b"", 200)
    assert (create.method, create.name, create.body, create.status) == ("creatives.create", None, b"{", 400)
    assert create.headers["x-goog-api-client"] == "gl/1"
    assert get.connection == create.connection == 1
    assert "gl/1" not in repr(create)


def test_connections_are_counted(emulator: DaiEmulator, client: Client) -> None:
    for _ in range(3):
        client.get("operations")
    assert emulator.connections == 1
    for _ in range(2):
        get(emulator)
    client.get("operations")
    assert emulator.connections == 3
    assert [request.connection for request in emulator.requests] == [1, 1, 1, 2, 3, 1]


def test_record_can_be_cleared(emulator: DaiEmulator, client: Client) -> None:
    name = emulator.start_ingest()
    client.get(name)
    emulator.forget_requests()
    assert (emulator.requests, emulator.connections) == ([], 0)
    assert client.get(name).status_code == 200
    assert (len(emulator.requests), emulator.connections) == (1, 1)


def test_record_can_have_a_bound(clock: Clock) -> None:
    with DaiEmulator(clock=clock, max_recorded_requests=2) as emulator:
        for number in range(4):
            get(emulator, f"operations/{number}")
        assert [request.name for request in emulator.requests] == ["operations/2", "operations/3"]


def test_list_of_requests_is_a_copy(emulator: DaiEmulator, client: Client) -> None:
    emulator.requests.clear()
    client.get("operations")
    emulator.requests.clear()
    assert len(emulator.requests) == 1


def test_log_shows_method_path_and_status_only(
    emulator: DaiEmulator, client: Client, creative: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="airflow_dai_provider.emulator")
    creative["mediaFiles"][0]["uri"] += "?signature=s3cret"
    body = {"creative": creative}
    client.post("creatives", json=body, headers={"Authorization": "Bearer s3cret"}, params={"key": "s3cret"})
    emulator.inject(Fault(drop="before"))
    with pytest.raises(requests.ConnectionError):
        client.get("operations")
    own = [record.getMessage() for record in caplog.records if record.name.startswith("airflow_dai_provider")]
    assert own == ["POST /v1/creatives 200", "GET /v1/operations connection dropped"]
    assert "s3cret" not in caplog.text.replace("DEBUG", "")


@pytest.mark.parametrize("method", METHODS)
def test_unimplemented_method_alone_returns_unimplemented(emulator: DaiEmulator, client: Client, method: str) -> None:
    emulator.start_ingest("operations/a")
    emulator.unimplement(method)
    for other, (http_method, path) in sorted(CALLS.items(), key=lambda call: call[0] != method):
        response = client.request(http_method, path)
        assert emulator.requests[-1].method == other
        if other == method:
            words = "not implemented, or supported, or enabled"
            assert_error(response, 501, "UNIMPLEMENTED", words)
        else:
            assert response.status_code != 501
    assert emulator.state("operations/a") == ("RUNNING" if method == "operations.cancel" else "CANCELLED")
    emulator.implement(method)
    http_method, path = CALLS[method]
    assert client.request(http_method, path).status_code != 501


def test_methods_can_be_unimplemented_from_the_start() -> None:
    with DaiEmulator(unimplemented=("operations.list",)) as emulator:
        assert_error(get(emulator), 501, "UNIMPLEMENTED")


def test_unknown_method_is_refused_and_nothing_switched(emulator: DaiEmulator, client: Client) -> None:
    for switch in (emulator.unimplement, emulator.implement):
        with pytest.raises(ValueError, match="got 'operations.wait', expected one of .*creatives.delete"):
            switch("operations.list", "operations.wait")
        with pytest.raises(ValueError, match="got 'token', expected one of .*creatives.delete$"):
            switch("token")
    assert client.get("operations").status_code == 200


def test_address_is_loopback_with_a_free_port(emulator: DaiEmulator) -> None:
    host, _, port = emulator.host.partition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0
    assert emulator.endpoint == f"http://{emulator.host}"


def test_address_can_be_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    with DaiEmulator(host="::1") as emulator:
        assert emulator.host.startswith("[::1]:")
        assert get(emulator).status_code == 200


def test_address_is_unknown_before_the_start() -> None:
    with pytest.raises(RuntimeError, match="before it is started"):
        _ = DaiEmulator().host


def open_descriptors() -> int:
    """Count the open files and sockets of this process, where the system shows them."""
    directory = Path("/proc/self/fd")
    return len(list(directory.iterdir())) if directory.exists() else 0


def test_stop_leaves_nothing_behind(recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture) -> None:
    gc.collect()  # the garbage of earlier tests, so that it is not collected in between
    recwarn.clear()
    threads = set(threading.enumerate())
    descriptors = open_descriptors()
    with warnings.catch_warnings(), requests.Session() as session:
        warnings.simplefilter("error")
        for _ in range(3):
            with DaiEmulator() as emulator:
                assert session.get(f"{emulator.endpoint}/v1/operations", timeout=5).status_code == 200
            with pytest.raises(requests.ConnectionError):
                get(emulator)
    gc.collect()
    assert set(threading.enumerate()) == threads
    assert open_descriptors() == descriptors
    assert not recwarn.list
    assert_no_warning(caplog)


def test_stop_does_not_wait_for_a_late_response(caplog: pytest.LogCaptureFixture) -> None:
    with DaiEmulator() as emulator:
        emulator.inject(Fault(delay=60))
        with raw_connection(emulator) as connection:
            connection.sendall(b"GET /v1/operations HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(lambda: emulator.requests)
            started = time.monotonic()
            emulator.stop()
            assert time.monotonic() - started < 20
            assert connection.recv(1) == b""
    assert emulator.requests[0].status is None
    assert_no_warning(caplog)


@pytest.mark.parametrize("path", ["/v1/creatives", "/emulator/v1/ingests"])
def test_client_can_disconnect_in_the_middle_of_its_request(
    emulator: DaiEmulator, client: Client, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    with raw_connection(emulator) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{{".encode())
        client.get("operations")  # by now the server has begun to read the other request
    assert client.get("operations").status_code == 200
    assert emulator.states() == {}
    emulator.stop()
    assert {request.method for request in emulator.requests} == {"operations.list"}
    assert_no_warning(caplog)


def test_second_start_is_refused(emulator: DaiEmulator) -> None:
    with pytest.raises(RuntimeError, match=f"already listens on {emulator.host}"):
        emulator.start()


def test_stop_twice_and_start_again_keeps_port_and_state(emulator: DaiEmulator, client: Client) -> None:
    name, host = emulator.start_ingest(), emulator.host
    emulator.stop()
    emulator.stop()
    assert emulator.state(name) == "RUNNING"
    emulator.start()
    assert emulator.host == host
    assert client.operation(name)["name"] == name


def test_busy_port_is_refused(emulator: DaiEmulator) -> None:
    threads = set(threading.enumerate())
    other = DaiEmulator(port=int(emulator.host.rpartition(":")[2]))
    with pytest.raises(OSError, match="in use"):
        other.start()
    assert set(threading.enumerate()) == threads
    other.stop()


def test_several_threads_can_use_it_at_once(emulator: DaiEmulator, client: Client) -> None:
    name = emulator.start_ingest()

    def work() -> None:
        with requests.Session() as session:
            for _ in range(10):
                emulator.start_ingest()
                session.post(f"{emulator.endpoint}/v1/{name}:cancel", timeout=5)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert emulator.cancel_requested(name) == 80
    assert len(emulator.states()) == 81
    assert emulator.connections == 8


@pytest.mark.parametrize(
    ("method", "path", "sent"),
    [
        ("POST", "/v1/creatives", {"data": b"[" * 100_000}),
        (
            "GET",
            "/v1/operations",
            {"params": {"pageToken": base64.urlsafe_b64encode(b"after:" + b"9" * 5000 + b":None")}},
        ),
    ],
    ids=["nested", "digits"],
)
def test_unparsable_input_is_refused_in_json(
    emulator: DaiEmulator, method: str, path: str, sent: dict[str, Any]
) -> None:
    response = requests.request(method, f"{emulator.endpoint}{path}", timeout=10, **sent)
    assert (response.status_code, response.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")
