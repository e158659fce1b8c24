"""The methods of DaiHook, and the test of a connection."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
from google.api_core import exceptions

from airflow_dai_provider.api.names import InvalidNameError
from airflow_dai_provider.api.operation import OperationState
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from tests.support.clock import Clock
from tests.support.connections import Connect
from tests.support.emulators import methods
from tests.support.hooks import MakeHook, cases, operation
from tests.support.log import Log
from tests.support.payloads import NAME, URL, creative
from tests.support.tiny_server import Serve

GOOD_NAMES = {
    "plain": NAME,
    "segments": "operations/a/b/c",
    "base64": "operations/YWJj+ZGVm/Z2g=",
    "reserved": "operations/a+b=c~d:e@f%g!$&'()*,;[]",
    "encoded slash": "operations/a%2Fb",
    "encoded dots": "operations/%2e%2e/a",
    "percent sequence": "operations/100%25",
    "verb inside": "operations/a:cancel/b",
    "verb at the end": "operations/a:cancel",
    "dots inside": "operations/a..b/...",
    "non-ascii": "operations/рекламаé/広告-😀",
    "markup": "operations/<a>\"'{}|^`",
    "collection again": "operations/operations",
}

BAD_NAMES: dict[str, object] = {
    "none": None,
    "empty": "",
    "the word None": "None",
    "blank": "  ",
    "number": 7,
    "bytes": b"operations/a",
    "list": ["operations/a"],
    "dict": {"name": "operations/a"},
    "no collection": "a",
    "other collection": "creatives/a",
    "collection only": "operations",
    "no segment": "operations/",
    "empty segment": "operations//a",
    "slash at the end": "operations/a/",
    "slash in front": "/operations/a",
    "version in front": "v1/operations/a",
    "dot": "operations/.",
    "dot dot": "operations/a/../b",
    "query": "operations/a?alt=json",
    "fragment": "operations/a#b",
    "backslash": "operations/a\\b",
    "space": "operations/a b",
    "line break": "operations/a\nb",
    "carriage return": "operations/a\r",
    "tab": "operations/\ta",
    "nul": "operations/a\0",
    "no-break space": "operations/a\u00a0b",
    "zero-width space": "operations/a\u200bb",
    "lone surrogate": "operations/\ud800",
    "url": "https://dai.googleapis.com/v1/operations/a",
    "upper case": "Operations/a",
}

BY_OPERATION: dict[str, Callable[[DaiHook, Any], object]] = {
    "get": DaiHook.get_operation,
    "cancel": DaiHook.cancel_operation,
    "delete": DaiHook.delete_operation,
    "wait": DaiHook.wait_for_operation,
}
BY_CREATIVE: dict[str, Callable[[DaiHook, Any], object]] = {
    "get creative": DaiHook.get_creative,
    "delete creative": DaiHook.delete_creative,
}


def test_cancel_has_an_empty_body_and_no_content_type(hook: DaiHook, emulator: DaiEmulator) -> None:
    name = emulator.start_ingest()

    hook.cancel_operation(name)

    (request,) = emulator.requests
    assert (request.http_method, request.raw_path) == ("POST", f"/v1/{name}:cancel")
    assert request.body == b""
    assert request.headers.get("content-length") == "0"
    assert "content-type" not in request.headers
    assert "transfer-encoding" not in request.headers
    assert emulator.state(name) == "CANCELLED"


def test_cancel_can_be_requested_twice(hook: DaiHook, emulator: DaiEmulator) -> None:
    name = emulator.start_ingest()

    hook.cancel_operation(name)
    hook.cancel_operation(name)

    assert emulator.cancel_requested(name) == 2
    assert hook.get_operation(name).state is OperationState.CANCELLED


@pytest.mark.parametrize(
    ("answer", "error"), [("failed_precondition", exceptions.FailedPrecondition), ("not_found", exceptions.NotFound)]
)
def test_cancel_of_a_finished_operation_may_be_refused(
    once: DaiHook, clock: Clock, answer: str, error: type[Exception]
) -> None:
    with DaiEmulator(finished_cancel=answer, ingest_seconds=0, clock=clock) as emulator:
        once.api_endpoint = emulator.endpoint
        with pytest.raises(error):
            once.cancel_operation(emulator.start_ingest())


def test_get_returns_a_running_operation(hook: DaiHook, emulator: DaiEmulator) -> None:
    name = emulator.start_ingest(creative_url=URL)

    operation = hook.get_operation(name)

    assert (operation.name, operation.state) == (name, OperationState.RUNNING)
    assert operation.ingest is not None
    assert (operation.ingest.creative_url, operation.ingest.youtube_state) == (URL, "PROCESSING")
    (request,) = emulator.requests
    assert (request.http_method, request.raw_path, request.body) == ("GET", f"/v1/{name}", b"")


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED", "CANCELLED"])
def test_get_returns_each_final_state(hook: DaiHook, emulator: DaiEmulator, clock: Clock, state: str) -> None:
    outcome = {"outcome": "DOWNLOAD_ERROR", "code": 403} if state == "FAILED" else {}
    name = emulator.start_ingest(seconds=5, **outcome)  # type: ignore[arg-type]
    if state == "CANCELLED":
        hook.cancel_operation(name)
    clock.now += 5

    operation = hook.get_operation(name)

    assert operation.done
    assert operation.state == state
    assert operation.ingest is not None
    if state == "SUCCEEDED":
        assert operation.response is not None
        assert operation.response["name"] == f"creatives/{operation.ingest.gv_registry_id}"
    elif state == "FAILED":
        assert (operation.ingest.failure_reason, operation.ingest.failure_code) == ("DOWNLOAD_ERROR", 403)
    else:
        assert operation.error_code == 1


def test_delete_does_not_cancel(hook: DaiHook, emulator: DaiEmulator) -> None:
    name = emulator.start_ingest()

    hook.delete_operation(name)

    (request,) = emulator.requests
    assert (request.http_method, request.raw_path, request.body) == ("DELETE", f"/v1/{name}", b"")
    assert emulator.state(name) == "RUNNING"
    with pytest.raises(exceptions.NotFound):
        hook.get_operation(name)


def test_create_sends_the_creative_as_json(hook: DaiHook, emulator: DaiEmulator) -> None:
    operation = hook.create_creative(creative())

    (request,) = emulator.requests
    assert (request.http_method, request.raw_path) == ("POST", "/v1/creatives")
    assert request.headers["content-type"] == "application/json"
    assert json.loads(request.body) == {"creative": creative()}
    assert operation.state is OperationState.RUNNING
    assert emulator.state(operation.name) == "RUNNING"


def test_create_sends_the_dynamic_info_too(hook: DaiHook, emulator: DaiEmulator) -> None:
    info = {"dynamicGroupId": "группа", "activeDuration": "3.5s"}

    given = creative(networkCode="7")

    hook.create_creative(given, info)

    assert json.loads(emulator.requests[0].body) == {"creative": given, "dynamicCreativeInfo": info}


@pytest.mark.parametrize("arguments", [("a",), (None,), ([creative()],), (creative(), "a")], ids=repr)
def test_create_refuses_what_is_no_json_object(hook: DaiHook, emulator: DaiEmulator, arguments: Any) -> None:
    with pytest.raises(TypeError, match="expected a JSON object"):
        hook.create_creative(*arguments)
    assert emulator.requests == []


def test_get_and_delete_a_creative(hook: DaiHook, emulator: DaiEmulator, clock: Clock) -> None:
    operation = hook.create_creative(creative())
    clock.now += 100
    ingest = hook.get_operation(operation.name).ingest
    assert ingest is not None
    name = f"creatives/{ingest.gv_registry_id}"
    emulator.forget_requests()

    assert hook.get_creative(name) == {**creative(), "name": name}
    hook.delete_creative(name)
    with pytest.raises(exceptions.NotFound):
        hook.get_creative(name)

    assert methods(emulator) == ["creatives.get", "creatives.delete", "creatives.get"]
    assert {(request.raw_path, request.body) for request in emulator.requests} == {(f"/v1/{name}", b"")}


def test_list_yields_the_operations_of_all_pages(hook: DaiHook, emulator: DaiEmulator) -> None:
    names = [emulator.start_ingest() for _ in range(5)]

    assert [operation.name for operation in hook.list_operations(page_size=2)] == names

    assert [request.query.get("pageSize") for request in emulator.requests] == ["2", "2", "2"]
    assert [request.query.get("pageToken") is None for request in emulator.requests] == [True, False, False]
    assert {request.raw_path for request in emulator.requests} == {"/v1/operations"}


def test_list_requests_a_page_when_it_is_needed(hook: DaiHook, emulator: DaiEmulator) -> None:
    for _ in range(5):
        emulator.start_ingest()

    operations = hook.list_operations(page_size=2)
    assert len(emulator.requests) == 0
    assert len(list(islice(operations, 2))) == 2
    assert len(emulator.requests) == 1
    next(operations)
    assert len(emulator.requests) == 2


def test_list_of_an_empty_account_is_empty(hook: DaiHook, emulator: DaiEmulator) -> None:
    assert list(hook.list_operations()) == []
    assert [dict(request.query) for request in emulator.requests] == [{}]


def test_list_passes_the_filter_on_every_page(hook: DaiHook, emulator: DaiEmulator) -> None:
    names = [emulator.start_ingest() for _ in range(3)]
    emulator.start_ingest(seconds=0)

    assert [operation.name for operation in hook.list_operations("done=false", 2)] == names
    assert [request.query["filter"] for request in emulator.requests] == ["done=false"] * 2


@pytest.mark.parametrize("filter_", ["a=b&pageSize=9", "a b+c", 'state = "é/😀%2F"#x', ""])
def test_list_encodes_the_filter(hook: DaiHook, emulator: DaiEmulator, filter_: str) -> None:
    emulator.inject(Fault(method="operations.list", status=200, body=b"{}"))

    assert list(hook.list_operations(filter_)) == []
    assert dict(emulator.requests[0].query) == {"filter": filter_}


@pytest.mark.parametrize("size", [0, -1, "5", 2.0, True])
def test_list_refuses_an_invalid_page_size(hook: DaiHook, emulator: DaiEmulator, size: Any) -> None:
    with pytest.raises(ValueError, match="Invalid page_size"):
        next(hook.list_operations(page_size=size))
    assert emulator.requests == []


def test_list_retries_the_page_that_failed_only(hook: DaiHook, emulator: DaiEmulator) -> None:
    names = [emulator.start_ingest() for _ in range(4)]
    operations = hook.list_operations(page_size=2)
    first = [next(operations), next(operations)]
    emulator.inject(Fault(status=503, times=2))

    assert [operation.name for operation in [*first, *operations]] == names
    assert len(emulator.requests) == 4


def test_list_continues_after_an_empty_page(hook: DaiHook, emulator: DaiEmulator) -> None:
    emulator.inject(Fault(method="operations.list", status=200, body=b'{"nextPageToken": "t"}'))
    page = json.dumps({"operations": [{"name": NAME}], "nextPageToken": ""}).encode()
    emulator.inject(Fault(method="operations.list", status=200, body=page))

    assert [operation.name for operation in hook.list_operations()] == [NAME]
    assert [request.query.get("pageToken") for request in emulator.requests] == [None, "t"]


UNREADABLE: dict[str, Any] = {
    "null": None,
    "a list": [],
    "a text": NAME,
    "no name": {"done": True},
    "an empty name": {"name": ""},
    "a null name": {"name": None},
    "a number as its name": {"name": 5},
    "an invalid name": {"name": "operations/../x"},
    "another kind of name": {"name": "creatives/x"},
    "both results": {"name": NAME, "done": True, "error": {}, "response": {}},
    "done as a text": {"name": NAME, "done": "true"},
    "metadata as a list": {"name": NAME, "metadata": []},
}


@pytest.mark.parametrize("item", **cases(UNREADABLE))
def test_list_passes_over_an_item_that_cannot_be_read(
    hook: DaiHook, emulator: DaiEmulator, log: Log, item: object
) -> None:
    for items, token in (([item, {"name": "operations/a"}], "t"), ([{"name": "operations/b"}, item, item], None)):
        page = json.dumps({"operations": items, "nextPageToken": token}).encode()
        emulator.inject(Fault(method="operations.list", status=200, body=page))
    problems: list[str] = []

    listed = hook.list_operations(on_unreadable=problems.append)

    assert [operation.name for operation in listed] == ["operations/a", "operations/b"]
    assert len(problems) == 3
    (line,) = log.ours
    assert line == f"operations.list: 3 unreadable operations were passed over; of the first: {problems[0]}"
    assert len(emulator.requests) == 2


def test_list_refuses_a_page_token_that_comes_again(hook: DaiHook, emulator: DaiEmulator) -> None:
    emulator.inject(Fault(method="operations.list", status=200, body=b'{"nextPageToken": "t"}', times=None))

    with pytest.raises(exceptions.Unknown, match="same page token"):
        list(hook.list_operations())
    assert len(emulator.requests) == 2


@pytest.mark.parametrize("name", **cases(GOOD_NAMES))
def test_a_name_reaches_the_service_unchanged(hook: DaiHook, emulator: DaiEmulator, name: str) -> None:
    emulator.start_ingest(name)

    assert hook.get_operation(name).name == name
    hook.cancel_operation(name)
    assert emulator.cancel_requested(name) == 1
    hook.delete_operation(name)

    assert methods(emulator) == ["operations.get", "operations.cancel", "operations.delete"]
    assert {request.name for request in emulator.requests} == {name}


@pytest.mark.parametrize("call", **cases(BY_OPERATION))
@pytest.mark.parametrize("name", **cases(BAD_NAMES))
def test_a_bad_operation_name_is_refused_unsent(
    hook: DaiHook, emulator: DaiEmulator, name: object, call: Callable[[DaiHook, Any], object]
) -> None:
    with pytest.raises(InvalidNameError, match="Invalid operation name"):
        call(hook, name)
    assert emulator.requests == []


@pytest.mark.parametrize("call", **cases(BY_CREATIVE))
@pytest.mark.parametrize(
    "name", [None, "", "creatives", "creatives/", "creatives/a/b", "creatives/..", "creatives/a?b", NAME]
)
def test_a_bad_creative_name_is_refused_unsent(
    hook: DaiHook, emulator: DaiEmulator, name: object, call: Callable[[DaiHook, Any], object]
) -> None:
    with pytest.raises(InvalidNameError, match="Invalid creative name"):
        call(hook, name)
    assert emulator.requests == []


def test_a_connection_is_tested_by_list(hook: DaiHook, emulator: DaiEmulator) -> None:
    emulator.start_ingest()
    emulator.start_ingest()

    assert hook.test_connection() == (True, f"{emulator.endpoint} responded to operations.list.")
    assert [(request.method, request.query["pageSize"]) for request in emulator.requests] == [("operations.list", "1")]


def test_a_connection_is_tested_by_get_where_list_is_unimplemented(hook: DaiHook, emulator: DaiEmulator) -> None:
    emulator.unimplement("operations.list")

    assert hook.test_connection() == (
        True,
        f"{emulator.endpoint} responded to operations.get; it has no operations.list.",
    )
    assert methods(emulator) == ["operations.list", "operations.get"]


def test_a_connection_test_by_get_may_find_an_operation(hook: DaiHook, emulator: DaiEmulator) -> None:
    emulator.unimplement("operations.list")
    emulator.inject(Fault(method="operations.get", status=200, body=operation()))

    assert hook.test_connection()[0]


@pytest.mark.parametrize(
    ("list_status", "get_status", "words"),
    [
        ("PERMISSION_DENIED", None, "PERMISSION_DENIED"),
        ("UNAUTHENTICATED", None, "UNAUTHENTICATED"),
        ("UNAVAILABLE", None, "UNAVAILABLE"),
        ("UNIMPLEMENTED", "PERMISSION_DENIED", "PERMISSION_DENIED"),
        ("UNIMPLEMENTED", "UNIMPLEMENTED", "UNIMPLEMENTED"),
    ],
)
def test_a_connection_test_names_the_refusal_of_the_service(
    once: DaiHook, emulator: DaiEmulator, list_status: str, get_status: str | None, words: str
) -> None:
    emulator.inject(Fault(method="operations.list", rpc_status=list_status))
    if get_status:
        emulator.inject(Fault(method="operations.get", rpc_status=get_status))

    works, message = once.test_connection()

    assert not works
    assert words in message
    assert {request.http_method for request in emulator.requests} == {"GET"}


def test_a_connection_to_another_service_fails_its_test(
    connect: Connect, make_hook: MakeHook, tiny_server: Serve
) -> None:
    connect(is_anonymous=True)
    elsewhere = tiny_server(lambda exchange: exchange.answer(404, b"<html>"))

    works, message = make_hook(api_endpoint=elsewhere.endpoint).test_connection()

    assert not works
    assert "is the endpoint right?" in message


def test_connection_to_no_server(once: DaiHook, closed_port: int) -> None:
    once.api_endpoint = f"http://127.0.0.1:{closed_port}"

    works, message = once.test_connection()

    assert not works
    assert f"got no response from http://127.0.0.1:{closed_port}" in message


def test_a_connection_with_an_invalid_endpoint_fails_its_test(connect: Connect, make_hook: MakeHook) -> None:
    connect(is_anonymous=True, dai_api_endpoint="https://dai.example/v1")

    works, message = make_hook().test_connection()

    assert not works
    assert "Invalid dai_api_endpoint" in message


@pytest.mark.parametrize(
    ("chain", "account"),
    [
        (None, "ads"),
        ("robot@example.com", "ads,robot@example.com"),
        (["a@example.com", "b@example.com"], "ads,a@example.com,b@example.com"),
    ],
)
def test_the_account_is_the_connection_and_the_chain(
    monkeypatch: pytest.MonkeyPatch, chain: str | list[str] | None, account: str
) -> None:
    """A sweep with another account does not see what this one has started."""
    monkeypatch.delenv("DAI_EMULATOR_HOST", raising=False)
    assert DaiHook("ads", chain).account == account
