"""Each kind of fault as a client sees it over HTTP, how often it hits, and how it is counted."""

import inspect
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from emulator_testing import HTML, Client, Clock, assert_error, assert_no_warning, get, hang_up

from airflow_dai_provider.emulator import DaiEmulator, Fault
from tests.support.threads import wait_until

INF = float("inf")


@pytest.mark.parametrize("seconds", [0, 7])
def test_retry_after_can_be_seconds(emulator: DaiEmulator, client: Client, seconds: int) -> None:
    emulator.inject(Fault(status=503, retry_after=seconds))
    response = client.get("operations")
    assert_error(response, 503, "UNAVAILABLE")
    assert response.headers["Retry-After"] == str(seconds)


@pytest.mark.parametrize("seconds", [7, 7.9, -20])
def test_retry_after_can_be_a_date(emulator: DaiEmulator, client: Client, clock: Clock, seconds: float) -> None:
    clock.advance(0.05)
    emulator.inject(Fault(status=429, retry_after_date=seconds))
    response = client.get("operations")
    assert_error(response, 429, "RESOURCE_EXHAUSTED")
    assert response.headers["Date"] == "Sun, 15 Jun 2025 15:06:40 GMT"
    expected = {7: "15:06:47", 7.9: "15:06:47", -20: "15:06:20"}[seconds]
    assert response.headers["Retry-After"] == f"Sun, 15 Jun 2025 {expected} GMT"


def test_date_of_retry_after_counts_from_the_response(emulator: DaiEmulator, client: Client) -> None:
    ticks = itertools.count(1_750_000_000)
    emulator._api._clock = lambda: float(next(ticks))
    emulator.inject(Fault(status=503, retry_after_date=0))
    response = client.get("operations")
    assert response.headers["Retry-After"] == response.headers["Date"] == "Sun, 15 Jun 2025 15:06:41 GMT"


def test_date_in_the_headers_is_kept(emulator: DaiEmulator, client: Client) -> None:
    emulator.inject(Fault(status=503, retry_after_date=0, headers={"Date": "Thu, 01 Jan 1970 00:00:00 GMT"}))
    assert client.get("operations").headers["Date"] == "Thu, 01 Jan 1970 00:00:00 GMT"


@pytest.mark.parametrize("times", [None, 2])
def test_fault_can_last_for_some_seconds_from_its_first_hit(
    emulator: DaiEmulator, client: Client, clock: Clock, times: int | None
) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(method="operations.get", status=404, lasts=10, times=times))
    clock.advance(100)
    statuses = []
    for seconds in (0, 4, 5.5, 0.5, 100):
        clock.advance(seconds)
        statuses.append(client.get(name).status_code)
    assert statuses == [404, 404, 404 if times is None else 200, 200, 200]
    assert emulator.faults_waiting == []


@pytest.mark.parametrize("status", [None, 403, 429])
def test_refusal_can_have_a_reason_and_details(emulator: DaiEmulator, client: Client, status: int | None) -> None:
    name = emulator.start_ingest()
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "QUOTA"}]
    emulator.inject(Fault(status=status, rpc_status="PERMISSION_DENIED", reason="rateLimitExceeded", details=details))
    response = client.post(f"{name}:cancel")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["status"]) == (status or 403, status or 403, "PERMISSION_DENIED")
    assert error["details"] == details
    assert error["errors"] == [{"message": error["message"], "domain": "global", "reason": "rateLimitExceeded"}]


def test_list_can_hold_items_that_are_no_operations(emulator: DaiEmulator, client: Client) -> None:
    name = emulator.start_ingest()
    poison = [None, {"done": True}, 5, []]
    emulator.inject(Fault(method="operations.list", listed=poison))
    items = client.get("operations").json()["operations"]
    assert items[:-1] == poison
    assert items[-1]["name"] == name
    assert client.get("operations").json()["operations"] == items[-1:]


def test_list_can_hold_such_items_only(emulator: DaiEmulator, client: Client) -> None:
    emulator.inject(Fault(method="operations.list", listed=(None,)))
    assert client.get("operations").json() == {"operations": [None]}


def test_list_can_leave_out_an_operation(emulator: DaiEmulator, client: Client) -> None:
    names = [emulator.start_ingest() for _ in range(5)]
    emulator.inject(Fault(method="operations.list", omitted=names[2], times=None))
    first = client.get("operations?pageSize=3").json()
    rest = client.get(f"operations?pageSize=3&pageToken={first['nextPageToken']}").json()
    assert [item["name"] for page in (first, rest) for item in page["operations"]] == names[:2] + names[3:]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"listed": [None]}, "listed: .*method=operations.list"),
        ({"method": "operations.list", "status": 503, "listed": [None]}, "listed: .*its real response"),
        ({"method": "operations.get", "omitted": "operations/a"}, "omitted: .*method=operations.list"),
        ({"method": "operations.list", "listed": {}}, "listed: .*a list"),
        ({"status": 502, "reason": "a"}, "reason: .*a JSON error"),
        ({"status": 403, "html": True, "details": [{}]}, "details: .*a JSON error"),
        ({"delay": 1, "reason": "a"}, "reason: .*a JSON error"),
        ({"status": 503, "lasts": 0}, "lasts: got 0, expected a number of seconds, more than 0"),
        ({"lasts": 5}, "nothing that goes wrong"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Fault(**fields)


def test_contradicting_responses_need_one_fault(emulator: DaiEmulator, client: Client) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(method="operations.cancel", rpc_status="NOT_FOUND"))
    assert_error(client.post(f"{name}:cancel"), 404, "NOT_FOUND")
    assert client.get(name).json()["name"] == name


@pytest.mark.parametrize("status", [200, 404, 503])
def test_html_can_replace_json(emulator: DaiEmulator, client: Client, status: int) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(status=status, html=True))
    response = client.post(f"{name}:cancel")
    assert (response.status_code, response.headers["Content-Type"]) == (status, HTML)
    assert "<!DOCTYPE html>" in response.text
    assert emulator.cancel_requested(name) == 0


def test_body_can_be_empty(emulator: DaiEmulator, client: Client) -> None:
    emulator.inject(Fault(status=503, body=b"", content_type="text/plain"))
    response = client.get("operations")
    assert (response.status_code, response.content, response.headers["Content-Type"]) == (503, b"", "text/plain")


@pytest.mark.parametrize(("status", "sent"), [(None, 302), (301, 301), (307, 307), (308, 308)])
def test_redirect_leads_to_another_host(
    emulator: DaiEmulator, client: Client, clock: Clock, status: int | None, sent: int
) -> None:
    with DaiEmulator(clock=clock) as other:
        name = other.start_ingest("operations/a", seconds=60)
        target = f"{other.endpoint}/v1/{name}:cancel"
        emulator.inject(Fault(method="operations.cancel", redirect=target, status=status))
        first = client.request("POST", f"{name}:cancel", allow_redirects=False)
        assert (first.status_code, first.headers["Location"]) == (sent, target)
        assert other.requests == []
        emulator.inject(Fault(redirect=target, status=status))
        client.post(f"{name}:cancel", headers={"Authorization": "Bearer s3cret"})
        (arrived,) = other.requests
        assert arrived.http_method == ("POST" if sent in (307, 308) else "GET")
        assert "authorization" not in arrived.headers
    assert [request.status for request in emulator.requests] == [sent, sent]


def test_padding_makes_a_valid_response_large(emulator: DaiEmulator, client: Client) -> None:
    name = emulator.start_ingest()
    whole = client.get(name)
    emulator.inject(Fault(padding=1_000_000))
    response = client.get(name)
    assert len(response.content) == len(whole.content) + 1_000_000
    assert response.headers["Content-Length"] == str(len(response.content))
    assert response.json() == whole.json()
    assert client.get(name).content == whole.content
    assert emulator.connections == 1


def test_client_can_disconnect_in_the_padding(
    emulator: DaiEmulator, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    emulator.inject(Fault(padding=50_000_000))
    with client.stream("operations") as response:
        response.raw.read(10)
    assert client.get("operations").status_code == 200
    emulator.stop()
    assert_no_warning(caplog)


def test_merge_puts_any_text_and_number_into_a_real_response(emulator: DaiEmulator, client: Client) -> None:
    name = emulator.start_ingest()
    whole = client.get(name).json()
    odd = {"note": "nul \0 cut \ud83d", "n": 10**30, "deep": [[[]]]}
    emulator.inject(Fault(merge={"metadata": odd, "done": True, "error": {"code": 13}}))
    assert client.get(name).json() == {
        **whole,
        "metadata": {**whole["metadata"], **odd},
        "done": True,
        "error": {"code": 13},
    }
    assert client.get(name).json() == whole
    emulator.inject(Fault(merge={"a": 1}, status=502))
    assert client.get(name).headers["Content-Type"].startswith("text/html")


def test_padding_can_be_cut(emulator: DaiEmulator, client: Client) -> None:
    emulator.inject(Fault(status=200, body=b"{}", padding=10, truncate=5))
    response = client.stream("operations")
    assert response.headers["Content-Length"] == "12"
    assert response.raw.read(5) == b"{}   "
    with pytest.raises(Exception, match="IncompleteRead|Connection broken"):
        response.raw.read(1)


def test_body_can_be_delayed(emulator: DaiEmulator, client: Client) -> None:
    name = emulator.start_ingest()
    whole = client.get(name).content
    emulator.inject(Fault(body_delay=0.2))
    started = time.monotonic()
    response = client.stream(name)
    assert response.raw.read() == whole
    assert time.monotonic() - started >= 0.2
    assert client.get(name).content == whole
    assert emulator.connections == 1


@pytest.mark.parametrize("fault", [Fault(body_delay=INF), Fault(body_delay=INF, truncate=5)])
def test_server_can_hang_in_the_body(emulator: DaiEmulator, client: Client, fault: Fault) -> None:
    name = emulator.start_ingest()
    whole = client.get(name).content
    emulator.inject(fault)
    response = client.stream(name, timeout=0.5)
    received = b""
    with pytest.raises(requests.ConnectionError, match="timed out"):  # noqa: PT012 (the bytes before it count)
        for byte in response.iter_content(1):
            received += byte
    assert received == whole[: fault.truncate or (len(whole) + 1) // 2]
    response.close()
    assert client.get(name).content == whole


@pytest.mark.parametrize(("drop", "processed"), [(None, 1), ("before", 0), ("after", 1)])
def test_server_can_hang(
    emulator: DaiEmulator, client: Client, caplog: pytest.LogCaptureFixture, drop: str | None, processed: int
) -> None:
    caplog.set_level("INFO", logger="airflow_dai_provider.emulator")
    name = emulator.start_ingest()
    emulator.inject(Fault(method="operations.cancel", delay=INF, drop=drop))
    hang_up(emulator, "POST", f"{name}:cancel")
    wait_until(lambda: caplog.messages)
    assert emulator.cancel_requested(name) == processed
    assert emulator.requests[-1].status is None
    assert client.get(name).status_code == 200
    assert caplog.messages == [f"POST /v1/{name}:cancel left without a response", f"GET /v1/{name} 200"]


def test_hanging_request_ends_with_its_client(emulator: DaiEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_dai_provider.emulator import api

    ended = []

    async def pause(*arguments: Any) -> None:
        await real(*arguments)
        ended.append(arguments)

    real = api.pause
    monkeypatch.setattr(api, "pause", pause)
    emulator.inject(Fault(delay=INF))
    with pytest.raises(requests.ReadTimeout):
        get(emulator, timeout=0.1)
    wait_until(lambda: ended)


def test_stop_does_not_wait_for_hanging_requests(caplog: pytest.LogCaptureFixture) -> None:
    with DaiEmulator() as emulator:
        for fault in (Fault(delay=INF), Fault(body_delay=INF), Fault(body_delay=INF, truncate=1)):
            emulator.inject(fault)
            with requests.Session() as session, pytest.raises(requests.RequestException):
                session.get(f"{emulator.endpoint}/v1/operations", timeout=0.05)
            wait_until(lambda: not emulator.faults_waiting)
        started = time.monotonic()
        emulator.stop()
        assert time.monotonic() - started < 20
    assert_no_warning(caplog)


@pytest.mark.parametrize(("drop", "processed"), [("before", 0), ("after", 1)])
def test_connection_can_be_reset(emulator: DaiEmulator, client: Client, drop: str, processed: int) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(drop=drop, reset=True))
    with pytest.raises(requests.ConnectionError, match="Connection reset by peer"):
        client.post(f"{name}:cancel")
    assert emulator.cancel_requested(name) == processed
    emulator.inject(Fault(drop=drop))
    with pytest.raises(requests.ConnectionError, match="closed connection without response"):
        client.post(f"{name}:cancel")
    assert client.get(name).status_code == 200


def test_connection_can_be_reset_in_the_body(emulator: DaiEmulator, client: Client) -> None:
    name = emulator.start_ingest()
    whole = client.get(name).content
    emulator.inject(Fault(truncate=10, reset=True, body_delay=0.05))
    response = client.stream(name)
    assert response.raw.read(10) == whole[:10]
    with pytest.raises(Exception, match="Connection reset by peer"):
        response.raw.read(1)
    assert client.get(name).content == whole


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault(status=504, processed=True), 504),
        (Fault(rpc_status="INTERNAL", processed=True), 500),
        (Fault(redirect="/elsewhere", processed=True), 302),
        (Fault(status=503), 503),
    ],
)
def test_request_can_be_processed_although_a_failure_is_sent(
    emulator: DaiEmulator, client: Client, fault: Fault, status: int
) -> None:
    name = emulator.start_ingest()
    emulator.inject(fault)
    response = client.request("POST", f"{name}:cancel", allow_redirects=False)
    assert response.status_code == status
    assert emulator.cancel_requested(name) == fault.processed
    assert fault.lets_through is fault.processed


# How often


def hits(emulator: DaiEmulator, client: Client, number: int, path: str = "operations") -> list[int]:
    return [client.get(path).status_code for _ in range(number)]


@pytest.fixture
def seeded(clock: Clock) -> Iterator[Callable[..., DaiEmulator]]:
    running: list[DaiEmulator] = []

    def start(**arguments: Any) -> DaiEmulator:
        emulator = DaiEmulator(clock=clock, **arguments)
        emulator.start()
        running.append(emulator)
        return emulator

    yield start
    for emulator in running:
        emulator.stop()


def sequence(emulator: DaiEmulator, *faults: Fault, number: int = 60) -> list[int]:
    for fault in faults:
        emulator.inject(fault)
    with requests.Session() as session:
        return hits(emulator, Client(emulator, session), number)


def test_rate_is_reproducible_by_its_seed(seeded: Callable[..., DaiEmulator]) -> None:
    faults = (Fault(status=503, rate=0.3), Fault(status=429, rate=0.5))
    one, same, other = (sequence(seeded(seed=seed), *faults) for seed in (7, 7, 8))
    assert one == same
    assert one != other
    assert {200, 429, 503} == set(one)
    assert 8 <= one.count(503) <= 28
    assert 10 <= one.count(429) <= 32


def test_random_seed_can_be_read_and_used_again(seeded: Callable[..., DaiEmulator]) -> None:
    one, other = seeded(), seeded()
    assert one.seed != other.seed
    fault = Fault(status=503, rate=0.5)
    assert sequence(one, fault) == sequence(seeded(seed=one.seed), fault) != sequence(other, fault)


def test_other_requests_draw_no_number(seeded: Callable[..., DaiEmulator]) -> None:
    fault = Fault(method="operations.list", status=503, rate=0.5)
    alone = sequence(seeded(seed=1), fault)
    emulator = seeded(seed=1)
    emulator.inject(fault)
    mixed = []
    with requests.Session() as session:
        client = Client(emulator, session)
        for _ in range(60):
            assert client.get("operations/none").status_code == 404
            mixed.append(client.get("operations").status_code)
    assert mixed == alone


def test_rate_of_one_hits_always_and_times_bounds_it(emulator: DaiEmulator, client: Client) -> None:
    emulator.inject(Fault(status=503, rate=1, times=3))
    assert hits(emulator, client, 5) == [503, 503, 503, 200, 200]


def test_default_of_times_follows_the_rate() -> None:
    assert Fault(status=503).times == 1
    assert Fault(status=503, rate=0.5).times is None
    assert Fault(status=503, rate=0.5, times=1).times == 1
    assert Fault(status=503, times=None).times is None
    assert "times: int | None = 1, or None with a rate or lasts," in str(inspect.signature(Fault))


def test_reset_begins_the_sequence_again(seeded: Callable[..., DaiEmulator]) -> None:
    emulator = seeded(seed=5)
    fault = Fault(status=503, rate=0.5)
    first = sequence(emulator, fault)
    emulator.reset()
    assert sequence(emulator, fault) == first


def test_cleared_faults_hit_nothing(emulator: DaiEmulator, client: Client) -> None:
    emulator.inject(Fault(status=503, times=2))
    emulator.inject(Fault(status=429, times=None))
    client.get("operations")
    assert [(fault.status, left) for fault, left in emulator.faults_waiting] == [(503, 1), (429, None)]
    emulator.clear_faults()
    assert emulator.faults_waiting == []
    assert hits(emulator, client, 2) == [200, 200]
    assert emulator.faults_injected == {"503": 1}


# Its name


KINDS = {
    "503": Fault(status=503),
    "418 html": Fault(status=418),
    "503 html": Fault(status=503, html=True),
    "200 body": Fault(status=200, body=b""),
    "400 FAILED_PRECONDITION": Fault(rpc_status="FAILED_PRECONDITION"),
    "404 NOT_FOUND": Fault(status=404, rpc_status="NOT_FOUND"),
    "302 redirect": Fault(redirect="/a"),
    "307 redirect": Fault(redirect="/a", status=307),
    "504 processed": Fault(status=504, processed=True),
    "429 retry-after": Fault(status=429, retry_after=1),
    "503 retry-after-date delay": Fault(status=503, retry_after_date=1, delay=0.001),
    "content-type": Fault(content_type="text/plain"),
    "headers": Fault(headers={"a": "b"}),
    "padding": Fault(padding=1),
    "merge": Fault(merge={"a": 1}),
    "hang": Fault(delay=INF),
    "hang drop-before": Fault(delay=INF, drop="before"),
    "delay": Fault(delay=0.001),
    "body-hang": Fault(body_delay=INF),
    "body-delay": Fault(body_delay=0.001),
    "drop-before": Fault(drop="before"),
    "reset-after": Fault(drop="after", reset=True),
    "truncate": Fault(truncate=0),
    "truncate-reset": Fault(truncate=0, reset=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kind_describes_the_fault(kind: str) -> None:
    assert KINDS[kind].kind == kind


def test_injected_faults_are_counted_by_kind(emulator: DaiEmulator, client: Client) -> None:
    emulator.inject(Fault(status=503, times=2))
    emulator.inject(Fault(method="operations.get", status=503))
    emulator.inject(Fault(truncate=0))
    assert emulator.faults_injected == {}
    assert hits(emulator, client, 2) == [503, 503]
    with pytest.raises(requests.RequestException):
        client.get("operations")
    assert emulator.faults_injected == {"503": 2, "truncate": 1}
    client.get("operations/a")
    emulator.faults_injected.clear()
    assert emulator.faults_injected == {"503": 3, "truncate": 1}
