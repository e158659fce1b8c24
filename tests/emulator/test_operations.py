"""operations.get, list, cancel and delete, and the course of an ingest."""

import base64
import math
import re
from typing import Any

import pytest
import requests
from emulator_testing import Client, Clock, assert_error

from airflow_dai_provider.emulator import DaiEmulator, State, UnknownOperationError

META = "type.googleapis.com/google.ads.dai.v1.CreateCreativeOperationMetadata"


def names(page: dict[str, Any]) -> list[str]:
    return [operation["name"] for operation in page.get("operations", [])]


def test_running_operation_has_no_result(emulator: DaiEmulator, client: Client, clock: Clock) -> None:
    name = emulator.start_ingest("operations/a", creative_url="https://media.example/a.mp4")
    clock.advance(9.999)
    assert client.operation(name) == {
        "name": "operations/a",
        "metadata": {
            "@type": META,
            "creativeUrl": "https://media.example/a.mp4",
            "createTime": "2025-06-15T15:06:40.000000Z",
            "youtubeStatus": {"state": "PROCESSING", "updateTime": "2025-06-15T15:06:40.000000Z"},
        },
    }
    assert emulator.state(name) == "RUNNING"


def test_succeeded_operation_has_a_response(emulator: DaiEmulator, client: Client, clock: Clock) -> None:
    name = emulator.start_ingest()
    clock.advance(10)
    operation = client.operation(name)
    metadata = operation["metadata"]
    creative_name = f"creatives/{metadata['gvRegistryId']}"
    assert operation["done"] is True
    assert "error" not in operation
    assert operation["response"]["@type"] == "type.googleapis.com/google.ads.dai.v1.Creative"
    assert operation["response"]["name"] == creative_name
    assert metadata["youtubeStatus"] == {"state": "SUCCESS", "updateTime": "2025-06-15T15:06:50.000000Z"}
    assert emulator.state(name) == "SUCCEEDED"
    resource = client.get(creative_name).json()
    assert {"@type": operation["response"]["@type"], **resource} == operation["response"]


@pytest.mark.parametrize(
    ("plan", "rpc_code", "reason"),
    [
        ({"outcome": "DOWNLOAD_ERROR", "code": 403}, 9, {"reason": "DOWNLOAD_ERROR", "code": 403}),
        ({"outcome": "DOWNLOAD_ERROR"}, 9, {"reason": "DOWNLOAD_ERROR", "code": 404}),
        ({"outcome": "INVALID_MEDIA"}, 3, {"reason": "INVALID_MEDIA"}),
        ({"outcome": "INTERNAL_ERROR"}, 13, {"reason": "INTERNAL_ERROR"}),
    ],
)
def test_failed_operation_has_an_error_and_a_reason(
    emulator: DaiEmulator, client: Client, clock: Clock, plan: dict[str, Any], rpc_code: int, reason: dict[str, Any]
) -> None:
    name = emulator.start_ingest(seconds=3, **plan)
    assert "done" not in client.operation(name)
    clock.advance(3)
    operation = client.operation(name)
    assert operation["done"] is True
    assert "response" not in operation
    assert operation["error"]["code"] == rpc_code
    assert operation["error"]["message"]
    assert "gvRegistryId" not in operation["metadata"]
    assert operation["metadata"]["youtubeStatus"] == {
        "state": "FAILURE",
        "failureReason": reason,
        "updateTime": "2025-06-15T15:06:43.000000Z",
    }
    assert emulator.state(name) == "FAILED"


def test_cancelled_operation_has_error_1(emulator: DaiEmulator, client: Client, clock: Clock) -> None:
    name = emulator.start_ingest(cancel_seconds=2)
    clock.advance(1)
    response = client.post(f"{name}:cancel")
    assert (response.status_code, response.json()) == (200, {})
    clock.advance(1.5)
    assert "done" not in client.operation(name)
    assert emulator.state(name) == "RUNNING"
    clock.advance(0.5)
    operation = client.operation(name)
    assert operation["done"] is True
    assert operation["error"]["code"] == 1
    assert "response" not in operation
    assert operation["metadata"]["youtubeStatus"] == {
        "state": "PROCESSING",
        "updateTime": "2025-06-15T15:06:43.000000Z",
    }
    clock.advance(100)
    assert emulator.state(name) == "CANCELLED"


def test_second_cancel_does_not_delay_the_first(emulator: DaiEmulator, client: Client, clock: Clock) -> None:
    name = emulator.start_ingest(cancel_seconds=2)
    client.post(f"{name}:cancel")
    clock.advance(1.5)
    assert client.post(f"{name}:cancel").json() == {}
    clock.advance(0.5)
    assert emulator.state(name) == "CANCELLED"
    assert emulator.cancel_requested(name) == 2


def test_ingest_can_finish_before_its_cancellation(emulator: DaiEmulator, client: Client, clock: Clock) -> None:
    succeeding = emulator.start_ingest(seconds=3, cancel_seconds=5)
    failing = emulator.start_ingest(seconds=3, cancel_seconds=5, outcome="INVALID_MEDIA")
    for name in (succeeding, failing):
        client.post(f"{name}:cancel")
    clock.advance(6)
    assert emulator.states() == {succeeding: "SUCCEEDED", failing: "FAILED"}


def test_cancellation_wins_at_the_same_time(emulator: DaiEmulator, client: Client, clock: Clock) -> None:
    name = emulator.start_ingest(seconds=3, cancel_seconds=3)
    client.post(f"{name}:cancel")
    clock.advance(3)
    assert emulator.state(name) == "CANCELLED"


def test_cancel_can_be_ignored(emulator: DaiEmulator, client: Client, clock: Clock) -> None:
    name = emulator.start_ingest(cancel="ignored")
    assert client.post(f"{name}:cancel").json() == {}
    clock.advance(9)
    assert emulator.state(name) == "RUNNING"
    clock.advance(1)
    assert emulator.state(name) == "SUCCEEDED"
    assert emulator.cancel_requested(name) == 1


def test_ingest_can_run_forever(emulator: DaiEmulator, client: Client, clock: Clock) -> None:
    name = emulator.start_ingest(seconds=math.inf, cancel_seconds=math.inf)
    client.post(f"{name}:cancel")
    clock.advance(1e9)
    assert "done" not in client.operation(name)


def test_cancel_seconds_have_a_default(clock: Clock) -> None:
    with DaiEmulator(cancel_seconds=4, clock=clock) as emulator:
        name = emulator.start_ingest()
        requests.post(f"{emulator.endpoint}/v1/{name}:cancel", timeout=5)
        clock.advance(3.9)
        assert emulator.state(name) == "RUNNING"
        clock.advance(0.1)
        assert emulator.state(name) == "CANCELLED"


@pytest.mark.parametrize("body", [b"{}", b" ", b'{"name": "operations/a"}'])
def test_cancel_with_a_body_is_refused(emulator: DaiEmulator, client: Client, body: bytes) -> None:
    name = emulator.start_ingest()
    assert_error(client.post(f"{name}:cancel", data=body), 400, "INVALID_ARGUMENT", "must be empty")
    assert emulator.cancel_requested(name) == 0
    assert emulator.state(name) == "RUNNING"
    assert emulator.requests[-1].body == body


@pytest.mark.parametrize(
    ("finished_cancel", "http_status", "rpc_status"),
    [("ok", 200, None), ("failed_precondition", 400, "FAILED_PRECONDITION"), ("not_found", 404, "NOT_FOUND")],
)
def test_cancel_of_a_finished_operation_is_an_option(
    clock: Clock, finished_cancel: str, http_status: int, rpc_status: str | None
) -> None:
    with DaiEmulator(finished_cancel=finished_cancel, clock=clock) as emulator:
        name = emulator.start_ingest(seconds=1)
        running = emulator.start_ingest(seconds=10)
        clock.advance(1)
        response = requests.post(f"{emulator.endpoint}/v1/{name}:cancel", timeout=5)
        if rpc_status is None:
            assert (response.status_code, response.json()) == (http_status, {})
        else:
            assert_error(response, http_status, rpc_status, name)
        assert requests.post(f"{emulator.endpoint}/v1/{running}:cancel", timeout=5).json() == {}
        assert emulator.state(name) == "SUCCEEDED"
        assert emulator.cancel_requested(name) == 1


@pytest.mark.parametrize(("http_method", "verb"), [("GET", ""), ("DELETE", ""), ("POST", ":cancel")])
def test_unknown_operation_is_not_found(emulator: DaiEmulator, client: Client, http_method: str, verb: str) -> None:
    assert_error(client.request(http_method, f"operations/none{verb}"), 404, "NOT_FOUND", "operations/none")
    assert emulator.requests[-1].name == "operations/none"


def test_ingest_goes_on_when_its_operation_is_deleted(emulator: DaiEmulator, client: Client, clock: Clock) -> None:
    name, other = emulator.start_ingest(), emulator.start_ingest()
    response = client.delete(name)
    assert (response.status_code, response.json()) == (200, {})
    assert_error(client.get(name), 404, "NOT_FOUND")
    assert_error(client.delete(name), 404, "NOT_FOUND")
    assert_error(client.post(f"{name}:cancel"), 404, "NOT_FOUND")
    assert names(client.get("operations").json()) == [other]
    assert emulator.cancel_requested(name) == 1
    clock.advance(9)
    assert emulator.state(name) == "RUNNING"
    clock.advance(1)
    assert emulator.state(name) == "SUCCEEDED"
    assert set(emulator.states()) == {name, other}


def test_state_of_an_unknown_ingest_is_an_error(emulator: DaiEmulator) -> None:
    for ask in (emulator.state, emulator.cancel_requested):
        with pytest.raises(UnknownOperationError, match="never started an ingest named 'operations/x'$") as info:
            ask("operations/x")
        assert isinstance(info.value, KeyError)
        assert info.value.name == "operations/x"


def test_states_are_strings(emulator: DaiEmulator) -> None:
    name = emulator.start_ingest()
    assert emulator.state(name) is State.RUNNING
    assert f"{emulator.state(name)}" == "RUNNING"


def test_generated_names_are_unique_and_plain(emulator: DaiEmulator) -> None:
    generated = [emulator.start_ingest() for _ in range(20)]
    assert len(set(generated)) == 20
    assert all(re.fullmatch(r"operations/[a-z0-9-]{5,20}", name) for name in generated)


@pytest.mark.parametrize(
    "name", ["my-ingest", "operations", "operations/", "operations//a", "operations/../a", "operations/a/."]
)
def test_invalid_name_is_refused(emulator: DaiEmulator, name: str) -> None:
    with pytest.raises(ValueError, match="name: got .*, expected operations/"):
        emulator.start_ingest(name)


def test_taken_name_is_refused(emulator: DaiEmulator, client: Client) -> None:
    emulator.start_ingest("operations/a")
    client.delete("operations/a")
    with pytest.raises(ValueError, match="operations/a"):
        emulator.start_ingest("operations/a")


def test_empty_list_is_an_empty_object(client: Client) -> None:
    response = client.get("operations")
    assert (response.status_code, response.json()) == (200, {})


def test_pages_follow_the_order_of_creation(emulator: DaiEmulator, client: Client) -> None:
    started = [emulator.start_ingest(f"operations/{letter}") for letter in "edcba"]
    pages, token = [], ""
    while True:
        page = client.get("operations", pageSize=2, pageToken=token).json()
        pages.append(names(page))
        if "nextPageToken" not in page:
            break
        token = page["nextPageToken"]
    assert pages == [started[:2], started[2:4], started[4:]]


def test_last_page_that_is_full_has_no_token(emulator: DaiEmulator, client: Client) -> None:
    started = [emulator.start_ingest() for _ in range(2)]
    page = client.get("operations", pageSize=2).json()
    assert names(page) == started
    assert "nextPageToken" not in page


def test_pages_neither_skip_nor_repeat_when_operations_come_and_go(emulator: DaiEmulator, client: Client) -> None:
    started = [emulator.start_ingest() for _ in range(4)]
    token = client.get("operations", pageSize=2).json()["nextPageToken"]
    client.delete(started[0])
    late = emulator.start_ingest()
    assert names(client.get("operations", pageToken=token).json()) == [*started[2:], late]


def test_listed_operation_is_what_get_returns(emulator: DaiEmulator, client: Client, clock: Clock) -> None:
    name = emulator.start_ingest()
    clock.advance(10)
    assert client.get("operations").json()["operations"] == [client.operation(name)]


@pytest.mark.parametrize(("size", "expected"), [(None, 100), (0, 100), (1000, 1000), (5000, 1000)])
def test_page_size_default_and_limit(emulator: DaiEmulator, client: Client, size: int | None, expected: int) -> None:
    for _ in range(1001):
        emulator.start_ingest()
    page = client.get("operations", **({} if size is None else {"pageSize": size})).json()
    assert len(page["operations"]) == expected
    assert page["nextPageToken"]


@pytest.mark.parametrize("size", ["-1", "many", "1.5"])
def test_invalid_page_size_is_refused(client: Client, size: str) -> None:
    assert_error(client.get("operations", pageSize=size), 400, "INVALID_ARGUMENT", "pageSize")


@pytest.mark.parametrize(
    "token", ["x", "%", "é", base64.urlsafe_b64encode(b"after:x:None").decode(), base64.b64encode(b"\xff").decode()]
)
def test_invalid_page_token_is_refused(client: Client, token: str) -> None:
    assert_error(client.get("operations", pageToken=token), 400, "INVALID_ARGUMENT", "pageToken")


def test_page_token_with_an_addition_is_refused(emulator: DaiEmulator, client: Client) -> None:
    for _ in range(2):
        emulator.start_ingest()
    token = client.get("operations", pageSize=1).json()["nextPageToken"]
    assert_error(client.get("operations", pageToken=f"!{token}"), 400, "INVALID_ARGUMENT", "pageToken")


def test_page_token_belongs_to_its_filter(emulator: DaiEmulator, client: Client) -> None:
    for _ in range(3):
        emulator.start_ingest()
    token = client.get("operations", pageSize=1, filter="done=false").json()["nextPageToken"]
    assert len(client.get("operations", filter="done=false", pageToken=token).json()["operations"]) == 2
    assert_error(client.get("operations", pageToken=token), 400, "INVALID_ARGUMENT", "filter")


def test_filter_selects_finished_or_running_ones(emulator: DaiEmulator, client: Client, clock: Clock) -> None:
    finished = emulator.start_ingest(seconds=1)
    cancelled = emulator.start_ingest(seconds=50)
    running = emulator.start_ingest(seconds=50)
    client.post(f"{cancelled}:cancel")
    clock.advance(1)
    assert names(client.get("operations", filter="done=true").json()) == [finished, cancelled]
    assert names(client.get("operations", filter=" done = false ").json()) == [running]
    assert names(client.get("operations", filter=" ").json()) == [finished, cancelled, running]


@pytest.mark.parametrize("text", ["done", "done=True", "name=operations/a", "done=true AND done=false"])
def test_unsupported_filter_is_refused(client: Client, text: str) -> None:
    assert_error(client.get("operations", filter=text), 400, "INVALID_ARGUMENT", "done=true and done=false")
