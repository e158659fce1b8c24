"""The hook over real HTTP: every method, every kind of answer, repeats, the endpoint and the wait."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
from google.api_core import exceptions
from google.auth.exceptions import DefaultCredentialsError

from airflow_dai_provider.api.errors import ANY_HICCUP, BUSY, BUSY_OR_AWAY, Code
from airflow_dai_provider.api.names import InvalidNameError
from airflow_dai_provider.api.operation import OperationState
from airflow_dai_provider.api.polling import MAX_OUTAGE, WaitTimeoutError
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook

if TYPE_CHECKING:
    from conftest import Clock, Log

    from tests.support.tiny_server import Exchange, TinyServer

NAME = "operations/ingest"
URL = "https://media.example/ad.mp4"
CREATIVE = {"adSystem": "t", "mezzanines": [{"uri": URL, "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}]}

#: What each method of the hook calls, and after which codes it may call again (the table of the API's facts).
CALLS: dict[str, tuple[Callable[[DaiHook], object], frozenset[Code]]] = {
    "operations.get": (lambda hook: hook.get_operation(NAME), ANY_HICCUP),
    "operations.cancel": (lambda hook: hook.cancel_operation(NAME), ANY_HICCUP),
    "operations.list": (lambda hook: list(hook.list_operations()), BUSY_OR_AWAY),
    "operations.delete": (lambda hook: hook.delete_operation(NAME), BUSY_OR_AWAY),
    "creatives.create": (lambda hook: hook.create_creative(CREATIVE), BUSY),
    "creatives.get": (lambda hook: hook.get_creative("creatives/gv-1"), ANY_HICCUP),
    "creatives.delete": (lambda hook: hook.delete_creative("creatives/gv-1"), BUSY_OR_AWAY),
}

#: Every rpc code: the HTTP status with which it comes, and the class that the hook raises.
CODES: dict[str, tuple[int, type[exceptions.GoogleAPICallError]]] = {
    "CANCELLED": (499, exceptions.Cancelled),
    "UNKNOWN": (500, exceptions.Unknown),
    "INVALID_ARGUMENT": (400, exceptions.InvalidArgument),
    "DEADLINE_EXCEEDED": (504, exceptions.DeadlineExceeded),
    "NOT_FOUND": (404, exceptions.NotFound),
    "ALREADY_EXISTS": (409, exceptions.AlreadyExists),
    "PERMISSION_DENIED": (403, exceptions.PermissionDenied),
    "RESOURCE_EXHAUSTED": (429, exceptions.ResourceExhausted),
    "FAILED_PRECONDITION": (400, exceptions.FailedPrecondition),
    "ABORTED": (409, exceptions.Aborted),
    "OUT_OF_RANGE": (400, exceptions.OutOfRange),
    "UNIMPLEMENTED": (501, exceptions.MethodNotImplemented),
    "INTERNAL": (500, exceptions.InternalServerError),
    "UNAVAILABLE": (503, exceptions.ServiceUnavailable),
    "DATA_LOSS": (500, exceptions.DataLoss),
    "UNAUTHENTICATED": (401, exceptions.Unauthenticated),
}

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


def cases(table: dict[str, Any]) -> dict[str, Any]:
    """Give a table's values to parametrize, with its keys as ids."""
    return {"argvalues": list(table.values()), "ids": list(table)}


def sent(emulator: DaiEmulator) -> list[str | None]:
    """Return the methods of the API that were called."""
    return [request.method for request in emulator.requests]


def lines(log: Log, words: str) -> list[str]:
    """Return the lines of the log, the emulator's own excepted, that hold these words."""
    return [line for line in log.ours if words in line]


# Methods


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


def test_cancel_twice_asks_for_the_same_thing(hook: DaiHook, emulator: DaiEmulator) -> None:
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
        with pytest.raises(error) as caught:
            once.cancel_operation(emulator.start_ingest())
    assert type(caught.value) is error


def test_get_running(hook: DaiHook, emulator: DaiEmulator) -> None:
    name = emulator.start_ingest(creative_url=URL)

    operation = hook.get_operation(name)

    assert (operation.name, operation.state) == (name, OperationState.RUNNING)
    assert operation.ingest is not None
    assert (operation.ingest.creative_url, operation.ingest.youtube_state) == (URL, "PROCESSING")
    (request,) = emulator.requests
    assert (request.http_method, request.raw_path, request.body) == ("GET", f"/v1/{name}", b"")


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED", "CANCELLED"])
def test_get_ended(hook: DaiHook, emulator: DaiEmulator, clock: Clock, state: str) -> None:
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
    operation = hook.create_creative(CREATIVE)

    (request,) = emulator.requests
    assert (request.http_method, request.raw_path) == ("POST", "/v1/creatives")
    assert request.headers["content-type"] == "application/json"
    assert json.loads(request.body) == {"creative": CREATIVE}
    assert operation.state is OperationState.RUNNING
    assert emulator.state(operation.name) == "RUNNING"


def test_create_sends_the_dynamic_info_too(hook: DaiHook, emulator: DaiEmulator) -> None:
    info = {"dynamicGroupId": "группа", "activeDuration": "3.5s"}

    creative = {**CREATIVE, "networkCode": "7"}

    hook.create_creative(creative, info)

    assert json.loads(emulator.requests[0].body) == {"creative": creative, "dynamicCreativeInfo": info}


@pytest.mark.parametrize("arguments", [("a",), (None,), ([CREATIVE],), (CREATIVE, "a")], ids=repr)
def test_create_refuses_what_is_no_json_object(hook: DaiHook, emulator: DaiEmulator, arguments: Any) -> None:
    with pytest.raises(TypeError, match="expected a JSON object"):
        hook.create_creative(*arguments)
    assert emulator.requests == []


def test_get_and_delete_creative(hook: DaiHook, emulator: DaiEmulator, clock: Clock) -> None:
    operation = hook.create_creative(CREATIVE)
    clock.now += 100
    ingest = hook.get_operation(operation.name).ingest
    assert ingest is not None
    name = f"creatives/{ingest.gv_registry_id}"
    emulator.forget_requests()

    assert hook.get_creative(name) == {**CREATIVE, "name": name}
    hook.delete_creative(name)
    with pytest.raises(exceptions.NotFound):
        hook.get_creative(name)

    assert sent(emulator) == ["creatives.get", "creatives.delete", "creatives.get"]
    assert {(request.raw_path, request.body) for request in emulator.requests} == {(f"/v1/{name}", b"")}


# Listing


def test_list_brings_all_pages(hook: DaiHook, emulator: DaiEmulator) -> None:
    names = [emulator.start_ingest() for _ in range(5)]

    assert [operation.name for operation in hook.list_operations(page_size=2)] == names

    assert [request.query.get("pageSize") for request in emulator.requests] == ["2", "2", "2"]
    assert [request.query.get("pageToken") is None for request in emulator.requests] == [True, False, False]
    assert {request.raw_path for request in emulator.requests} == {"/v1/operations"}


def test_list_asks_for_a_page_when_it_is_needed(hook: DaiHook, emulator: DaiEmulator) -> None:
    for _ in range(5):
        emulator.start_ingest()

    operations = hook.list_operations(page_size=2)
    assert len(emulator.requests) == 0
    assert len(list(islice(operations, 2))) == 2
    assert len(emulator.requests) == 1
    next(operations)
    assert len(emulator.requests) == 2


def test_list_of_nothing(hook: DaiHook, emulator: DaiEmulator) -> None:
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
def test_list_refuses_a_page_size(hook: DaiHook, emulator: DaiEmulator, size: Any) -> None:
    with pytest.raises(ValueError, match="Invalid page_size"):
        next(hook.list_operations(page_size=size))
    assert emulator.requests == []


def test_list_repeats_the_page_that_failed_only(hook: DaiHook, emulator: DaiEmulator) -> None:
    names = [emulator.start_ingest() for _ in range(4)]
    operations = hook.list_operations(page_size=2)
    first = [next(operations), next(operations)]
    emulator.inject(Fault(status=503, times=2))

    assert [operation.name for operation in [*first, *operations]] == names
    assert len(emulator.requests) == 4


def test_list_goes_on_after_an_empty_page(hook: DaiHook, emulator: DaiEmulator) -> None:
    emulator.inject(Fault(method="operations.list", status=200, body=b'{"nextPageToken": "t"}'))
    page = json.dumps({"operations": [{"name": NAME}], "nextPageToken": ""}).encode()
    emulator.inject(Fault(method="operations.list", status=200, body=page))

    assert [operation.name for operation in hook.list_operations()] == [NAME]
    assert [request.query.get("pageToken") for request in emulator.requests] == [None, "t"]


def test_list_does_not_turn_in_circles(hook: DaiHook, emulator: DaiEmulator) -> None:
    emulator.inject(Fault(method="operations.list", status=200, body=b'{"nextPageToken": "t"}', times=None))

    with pytest.raises(exceptions.Unknown, match="same page token"):
        list(hook.list_operations())
    assert len(emulator.requests) == 2


# Names


@pytest.mark.parametrize("name", **cases(GOOD_NAMES))
def test_a_name_reaches_the_service_unchanged(hook: DaiHook, emulator: DaiEmulator, name: str) -> None:
    emulator.start_ingest(name)

    assert hook.get_operation(name).name == name
    hook.cancel_operation(name)
    assert emulator.cancel_requested(name) == 1
    hook.delete_operation(name)

    assert sent(emulator) == ["operations.get", "operations.cancel", "operations.delete"]
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


# Errors


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("rpc_status", CODES)
def test_each_code_has_its_class_and_its_repeats(
    emulator: DaiEmulator,
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    method: str,
    rpc_status: str,
) -> None:
    call, repeated = CALLS[method]
    connect(is_anonymous=True, num_retries=1)
    emulator.inject(Fault(method=method, rpc_status=rpc_status, times=None))

    with pytest.raises(exceptions.GoogleAPICallError) as caught:
        call(make_hook(api_endpoint=emulator.endpoint))

    status, error = CODES[rpc_status]
    assert type(caught.value) is error
    for words in (method, str(status), rpc_status, "The emulator was told to fail."):
        assert words in str(caught.value)
    assert sent(emulator) == [method] * (2 if rpc_status in repeated else 1)


def json_error(status: object, message: object = "m", **fields: object) -> bytes:
    return json.dumps({"error": {"code": 1, "message": message, "status": status, **fields}}).encode()


ERROR_ANSWERS: dict[str, tuple[Fault, type[Exception]]] = {
    "status of the body before HTTP": (Fault(status=503, body=json_error("NOT_FOUND")), exceptions.NotFound),
    "and the other way round": (Fault(status=404, body=json_error("UNAVAILABLE")), exceptions.ServiceUnavailable),
    "json as text": (
        Fault(status=400, body=json_error("FAILED_PRECONDITION"), content_type="text/plain"),
        exceptions.FailedPrecondition,
    ),
    "json as html": (Fault(status=404, body=json_error("NOT_FOUND"), content_type="text/html"), exceptions.NotFound),
    "unknown status": (Fault(status=503, body=json_error("BRAND_NEW")), exceptions.ServiceUnavailable),
    "OK is no error": (Fault(status=403, body=json_error("OK")), exceptions.PermissionDenied),
    "null status": (Fault(status=429, body=json_error(None)), exceptions.ResourceExhausted),
    "number for a status": (Fault(status=409, body=json_error(6)), exceptions.Aborted),
    "list for a status": (Fault(status=503, body=json_error(["x"])), exceptions.ServiceUnavailable),
    "object for a status": (Fault(status=503, body=json_error({"a": 1})), exceptions.ServiceUnavailable),
    "null message": (Fault(status=400, body=json_error("OUT_OF_RANGE", None)), exceptions.OutOfRange),
    "object for a message": (Fault(status=400, body=json_error("OUT_OF_RANGE", {"a": 1})), exceptions.OutOfRange),
    "error is null": (Fault(status=403, body=b'{"error": null}'), exceptions.PermissionDenied),
    "error is a string": (Fault(status=401, body=b'{"error": "invalid_token"}'), exceptions.Unauthenticated),
    "error is empty": (Fault(status=404, body=b'{"error": {}}'), exceptions.NotFound),
    "no error object": (Fault(status=500, body=b"{}"), exceptions.InternalServerError),
    "empty body": (Fault(status=503, body=b""), exceptions.ServiceUnavailable),
    "html": (Fault(status=502), exceptions.ServiceUnavailable),
    "html 403": (Fault(status=403, body=b"<html>", content_type="text/html"), exceptions.PermissionDenied),
    "html 405": (Fault(status=405), exceptions.FailedPrecondition),
    "html 408": (Fault(status=408), exceptions.DeadlineExceeded),
    "html 418": (Fault(status=418), exceptions.FailedPrecondition),
    "html 599": (Fault(status=599), exceptions.InternalServerError),
    "list": (Fault(status=500, body=b"[]"), exceptions.InternalServerError),
    "nested too deep": (Fault(status=503, body=b"[" * 200_000), exceptions.ServiceUnavailable),
    "5 MB": (Fault(status=503, body=b"x" * 5_000_000), exceptions.ServiceUnavailable),
    "no UTF-8": (Fault(status=503, body=b'{"error": {"status": "\xff"}}'), exceptions.ServiceUnavailable),
    "redirect": (Fault(status=302, body=b"", headers={"Location": "/"}), exceptions.FailedPrecondition),
    "not modified": (Fault(status=304, body=b""), exceptions.FailedPrecondition),
}


@pytest.mark.parametrize(("fault", "error"), **cases(ERROR_ANSWERS))
def test_any_error_answer_has_a_class(
    once: DaiHook, emulator: DaiEmulator, fault: Fault, error: type[Exception]
) -> None:
    emulator.inject(fault)

    with pytest.raises(error, match=f"operations.get of {NAME} answered {fault.status} ") as caught:
        once.get_operation(NAME)

    assert type(caught.value) is error
    assert len(str(caught.value)) < 800


def test_failed_precondition_is_not_merely_a_bad_request(once: DaiHook, emulator: DaiEmulator) -> None:
    emulator.inject(Fault(rpc_status="FAILED_PRECONDITION"))

    with pytest.raises(exceptions.FailedPrecondition) as caught:
        once.cancel_operation(NAME)
    assert caught.value.code == 400


def test_json_404_is_a_missing_operation(hook: DaiHook, emulator: DaiEmulator) -> None:
    with pytest.raises(exceptions.NotFound, match=f"Operation not found: {NAME}"):
        hook.get_operation(NAME)
    assert len(emulator.requests) == 1


@pytest.mark.parametrize("method", CALLS)
def test_html_404_is_a_wrong_endpoint(
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    tiny_server: Callable[[Callable[[Exchange], None]], TinyServer],
    method: str,
) -> None:
    connect(is_anonymous=True)
    elsewhere = tiny_server(lambda exchange: exchange.answer(404, b"<!DOCTYPE html>404", Content_Type="text/html"))

    with pytest.raises(exceptions.MethodNotImplemented, match="is the endpoint right?") as caught:
        CALLS[method][0](make_hook(api_endpoint=elsewhere.endpoint))

    assert "DOCTYPE" not in str(caught.value)
    assert len(elsewhere.requests) == 1


def test_the_words_of_the_service_come_without_signatures(once: DaiHook, emulator: DaiEmulator) -> None:
    words = f"cannot download {URL}?X-Goog-Signature=s3cr3t#t0ken today"
    emulator.inject(Fault(status=400, body=json_error("INVALID_ARGUMENT", words)))

    with pytest.raises(exceptions.InvalidArgument, match=f"cannot download {URL} today$"):
        once.create_creative(CREATIVE)


# Answers that are no errors


def operation(**fields: object) -> bytes:
    return json.dumps({"name": NAME, **fields}).encode()


RUNNING, SUCCEEDED, FAILED, CANCELLED = OperationState
GOOD_ANSWERS: dict[str, tuple[Fault, OperationState]] = {
    "done false": (Fault(status=200, body=operation(done=False)), RUNNING),
    "done absent": (Fault(status=200, body=operation()), RUNNING),
    "done null": (Fault(status=200, body=operation(done=None)), RUNNING),
    "metadata null": (Fault(status=200, body=operation(metadata=None)), RUNNING),
    "metadata of another type": (Fault(status=200, body=operation(metadata={"@type": "x/y", "a": [1]})), RUNNING),
    "unknown fields": (Fault(status=200, body=operation(etag="x", done=False)), RUNNING),
    "done with neither": (Fault(status=200, body=operation(done=True)), SUCCEEDED),
    "done, both null": (Fault(status=200, body=operation(done=True, error=None, response=None)), SUCCEEDED),
    "empty response": (Fault(status=200, body=operation(done=True, response={})), SUCCEEDED),
    "cancelled": (Fault(status=200, body=operation(done=True, error={"code": 1})), CANCELLED),
    "failed": (Fault(status=200, body=operation(done=True, error={"code": 13})), FAILED),
    "failed without a code": (Fault(status=200, body=operation(done=True, error={})), FAILED),
    "json as text": (Fault(status=200, body=operation(), content_type="text/plain"), RUNNING),
    "json without a type": (Fault(status=200, body=operation(), content_type="application/octet-stream"), RUNNING),
    "blanks around": (Fault(status=200, body=b"\r\n " + operation() + b"\n\n"), RUNNING),
    "byte order mark": (Fault(status=200, body=operation().decode().encode("utf-8-sig")), RUNNING),
    "status 201": (Fault(status=201, body=operation()), RUNNING),
    "gzip": (Fault(status=200, body=gzip.compress(operation()), headers={"Content-Encoding": "gzip"}), RUNNING),
    "3 MB": (Fault(status=200, body=operation(response={"a": "x" * 3_000_000}, done=True)), SUCCEEDED),
}


@pytest.mark.parametrize(("fault", "state"), **cases(GOOD_ANSWERS))
def test_good_answers(once: DaiHook, emulator: DaiEmulator, fault: Fault, state: OperationState) -> None:
    emulator.inject(fault)

    answer = once.get_operation(NAME)

    assert (answer.name, answer.state) == (NAME, state)


@pytest.mark.parametrize(
    "body", [b"{}", b"", b"\n", b'{"@type": "google.protobuf.Empty"}'], ids=["object", "empty", "blank", "typed"]
)
@pytest.mark.parametrize("method", ["operations.cancel", "operations.delete", "creatives.delete"])
def test_answers_whose_content_does_not_matter(once: DaiHook, emulator: DaiEmulator, method: str, body: bytes) -> None:
    emulator.inject(Fault(status=200, body=body, content_type="text/plain"))

    assert CALLS[method][0](once) is None


def test_cancel_may_answer_204(once: DaiHook, emulator: DaiEmulator) -> None:
    emulator.inject(Fault(status=204, body=b""))

    once.cancel_operation(NAME)

    assert sent(emulator) == ["operations.cancel"]


BAD_ANSWERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "an operation with a name"),
    "object": (b"{}", "an operation with a name"),
    "null": (b"null", "a JSON object"),
    "list": (b"[]", "a JSON object"),
    "list of operations": (b"[" + operation() + b"]", "a JSON object"),
    "string": (b'"operations/ingest"', "a JSON object"),
    "number": (b"1", "a JSON object"),
    "cut off": (operation(done=True)[:-4], "expected JSON"),
    "html": (b"<!DOCTYPE html><title>Sign in</title>", "expected JSON"),
    "no UTF-8": (b'{"name": "operations/\xff"}', "expected JSON"),
    "nested too deep": (b'{"a":' * 200_000, "expected JSON"),
    "number too long": (b'{"name": ' + b"9" * 5000 + b"}", "expected JSON"),
    "two objects": (operation() * 2, "expected JSON"),
    "name null": (b'{"name": null}', "an operation with a name"),
    "name empty": (b'{"name": ""}', "an operation with a name"),
    "name of another type": (b'{"name": 1}', "'name' to be of type str"),
    "done of another type": (operation(done="true"), "'done' to be of type bool"),
    "error of another type": (operation(done=True, error="x"), "'error' to be of type dict"),
    "code of another type": (operation(done=True, error={"code": "1"}), "'code' to be of type int"),
    "metadata of another type": (operation(metadata=[]), "'metadata' to be of type dict"),
    "both": (operation(done=True, error={"code": 1}, response={}), "either an error or a response"),
    "5 MB": (operation(response={"a": "x" * 5_000_000}), "larger than"),
}


@pytest.mark.parametrize(("body", "words"), **cases(BAD_ANSWERS))
def test_bad_answers(once: DaiHook, emulator: DaiEmulator, body: bytes, words: str) -> None:
    emulator.inject(Fault(status=200, body=body))

    with pytest.raises(exceptions.Unknown, match=f"operations.get of {NAME} answered HTTP 200, but.*{words}") as caught:
        once.get_operation(NAME)

    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("body", [b"[]", b"null", b"<html>", b'{"a"', b"x" * 5_000_000], ids=lambda body: str(body[:6]))
def test_cancel_is_not_believed_on_a_bad_answer(once: DaiHook, emulator: DaiEmulator, body: bytes) -> None:
    emulator.inject(Fault(status=200, body=body))

    with pytest.raises(exceptions.Unknown, match=f"operations.cancel of {NAME} answered HTTP 200, but"):
        once.cancel_operation(NAME)


@pytest.mark.parametrize(
    "page",
    [
        {"operations": {"name": NAME}},
        {"operations": "x"},
        {"operations": [None]},
        {"operations": [{}]},
        {"operations": [[]]},
        {"nextPageToken": 5},
    ],
    ids=json.dumps,
)
def test_bad_pages(once: DaiHook, emulator: DaiEmulator, page: dict[str, Any]) -> None:
    emulator.inject(Fault(status=200, body=json.dumps(page).encode()))

    with pytest.raises(exceptions.Unknown, match="operations.list of operations answered HTTP 200, but"):
        list(once.list_operations())


def test_a_bad_answer_is_asked_for_again(hook: DaiHook, emulator: DaiEmulator) -> None:
    emulator.inject(Fault(status=200, body=b'{"na'))
    emulator.inject(Fault(status=200, body=b"<html>"))
    name = emulator.start_ingest()

    assert hook.get_operation(name).name == name
    assert len(emulator.requests) == 3


def test_a_bad_answer_to_a_create_is_not_asked_for_again(hook: DaiHook, emulator: DaiEmulator) -> None:
    emulator.inject(Fault(method="creatives.create", status=200, body=b'{"na', times=None))

    with pytest.raises(exceptions.Unknown):
        hook.create_creative(CREATIVE)
    assert len(emulator.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "operations/a", "metadata": {"creativeUrl": "'
        + URL.encode()
        + b"?X-Goog-Signature="
        + b"s3cr3t" * 20,
        b'["' + b"-" * 60 + URL.encode() + b"?X-Goog-Signature=" + b"s3cr3t" * 20 + b'"]',
        b"<html>" + URL.encode() + b"?X-Goog-Signature=s3cr3t",
        json.dumps({"name": "", "metadata": {"creativeUrl": f"{URL}?X-Goog-Signature=s3cr3t"}}).encode(),
    ],
    ids=["cut off in the query", "after other words", "html", "no name"],
)
def test_a_bad_answer_is_quoted_without_signatures(once: DaiHook, emulator: DaiEmulator, body: bytes) -> None:
    emulator.inject(Fault(status=200, body=body))

    with pytest.raises(exceptions.Unknown) as caught:
        once.get_operation(NAME)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("status", [200, 503])
def test_a_truncated_transfer(once: DaiHook, emulator: DaiEmulator, status: int) -> None:
    fault = Fault(truncate=20) if status == 200 else Fault(status=status, truncate=20)
    emulator.inject(fault)
    name = emulator.start_ingest()

    with pytest.raises(exceptions.ServiceUnavailable, match=f"operations.get of {name} got no answer"):
        once.get_operation(name)
    assert once.get_operation(name).name == name


# Repeats


def test_503_twice_then_fine(hook: DaiHook, emulator: DaiEmulator, slept: list[float], log: Log) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(status=503, times=2))

    hook.cancel_operation(name)

    assert sent(emulator) == ["operations.cancel"] * 3
    assert emulator.cancel_requested(name) == 1
    assert slept == [0.5, 1.0]
    assert [line.split(": ")[0] for line in lines(log, "; attempt")] == [
        f"operations.cancel of {name} answered 503 UNAVAILABLE"
    ] * 2
    assert [line.split("; ")[-1] for line in lines(log, "; attempt")] == [
        "attempt 1, next in 0.5 s",
        "attempt 2, next in 1.0 s",
    ]


def test_501_is_asked_once(hook: DaiHook, emulator: DaiEmulator, slept: list[float], log: Log) -> None:
    emulator.unimplement("operations.cancel")

    with pytest.raises(exceptions.MethodNotImplemented, match="operations.cancel of operations/ingest answered 501"):
        hook.cancel_operation(NAME)
    assert len(emulator.requests) == 1
    assert slept == []
    assert lines(log, "attempt") == []


@pytest.mark.parametrize(
    ("fault", "requests", "started"),
    [
        pytest.param(Fault(status=503), 1, 0, id="503"),
        pytest.param(Fault(status=500), 1, 0, id="500"),
        pytest.param(Fault(status=504), 1, 0, id="504"),
        pytest.param(Fault(status=502), 1, 0, id="502 of a front end"),
        pytest.param(Fault(rpc_status="ABORTED"), 1, 0, id="ABORTED"),
        pytest.param(Fault(drop="before"), 1, 0, id="dropped before"),
        pytest.param(Fault(drop="after"), 1, 1, id="dropped after"),
        pytest.param(Fault(truncate=10), 1, 1, id="cut off"),
        pytest.param(Fault(status=429), 2, 1, id="429"),
        pytest.param(Fault(status=429, headers={"Retry-After": "3"}), 2, 1, id="429 Retry-After"),
    ],
)
def test_a_create_is_repeated_only_where_nothing_can_have_started(
    hook: DaiHook, emulator: DaiEmulator, fault: Fault, requests: int, started: int
) -> None:
    emulator.inject(fault)

    if requests == 1:
        with pytest.raises(exceptions.GoogleAPICallError):
            hook.create_creative(CREATIVE)
    else:
        hook.create_creative(CREATIVE)

    assert len(emulator.requests) == requests
    assert len(emulator.states()) == started


@pytest.mark.parametrize("method", CALLS)
def test_a_refused_connection_is_tried_again(
    hook: DaiHook, emulator: DaiEmulator, slept: list[float], method: str
) -> None:
    """Whatever the method: a request that nobody took can have done nothing."""
    emulator.start_ingest(NAME)
    emulator.stop()
    sleep = hook._sleep

    def start_in_the_second_pause(seconds: float) -> None:
        sleep(seconds)
        if len(slept) == 2:
            emulator.start()

    hook._sleep = start_in_the_second_pause
    if method in ("creatives.get", "creatives.delete"):
        with pytest.raises(exceptions.NotFound):
            CALLS[method][0](hook)
    else:
        CALLS[method][0](hook)

    assert slept == [0.5, 1.0]
    assert sent(emulator) == [method]


def test_a_dropped_connection_is_tried_again_where_that_is_safe(hook: DaiHook, emulator: DaiEmulator) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(drop="before"))
    emulator.inject(Fault(drop="after"))

    hook.cancel_operation(name)

    assert emulator.cancel_requested(name) == 2
    assert len(emulator.requests) == 3


@pytest.mark.parametrize(
    ("setting", "requests"),
    [
        ({"num_retries": 0}, 1),
        ({"num_retries": 1}, 2),
        ({"num_retries": "2"}, 3),
        ({"num_retries": -1}, 1),
        ({"num_retries": ""}, 6),
        ({}, 6),
    ],
    ids=str,
)
def test_the_connections_num_retries(
    emulator: DaiEmulator,
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    slept: list[float],
    setting: dict[str, object],
    requests: int,
) -> None:
    connect(is_anonymous=True, **setting)
    emulator.inject(Fault(status=503, times=None))

    with pytest.raises(exceptions.ServiceUnavailable):
        make_hook(api_endpoint=emulator.endpoint).get_operation(NAME)

    assert len(emulator.requests) == requests
    assert slept == [0.5, 1.0, 2.0, 4.0, 8.0][: requests - 1]


def test_each_call_has_its_own_repeats(
    emulator: DaiEmulator, connect: Callable[..., None], make_hook: Callable[..., DaiHook]
) -> None:
    connect(is_anonymous=True, num_retries=1)
    hook = make_hook(api_endpoint=emulator.endpoint)
    for _ in range(3):
        emulator.inject(Fault(status=503))
        assert list(hook.list_operations()) == []
    assert len(emulator.requests) == 6


def test_jitter_takes_away_half_at_most(hook: DaiHook, emulator: DaiEmulator, slept: list[float]) -> None:
    hook._random = lambda: 1.0
    emulator.inject(Fault(status=503, times=None))

    with pytest.raises(exceptions.ServiceUnavailable):
        hook.get_operation(NAME)
    assert slept == [0.25, 0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_in_seconds(hook: DaiHook, emulator: DaiEmulator, slept: list[float], status: int) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(status=status, headers={"Retry-After": "7"}))
    emulator.inject(Fault(status=status))

    hook.get_operation(name)

    assert slept == [7.0, 1.0]


def test_retry_after_as_a_date(hook: DaiHook, emulator: DaiEmulator, slept: list[float]) -> None:
    name = emulator.start_ingest()
    then = datetime.now(UTC) + timedelta(seconds=30)
    emulator.inject(Fault(status=503, headers={"Retry-After": format_datetime(then, usegmt=True)}))

    hook.get_operation(name)

    assert len(slept) == 1
    assert 25 < slept[0] <= 30


@pytest.mark.parametrize(
    "value",
    ["0", "", "soon", "-5", "1.5", "1, 2", "Wed, 21 Oct 2015 07:28:00 GMT", "Fri, 31 Dec 9999999999 23:59:59 GMT"],
)
def test_a_retry_after_that_says_nothing(hook: DaiHook, emulator: DaiEmulator, slept: list[float], value: str) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(status=503, headers={"Retry-After": value}))

    hook.get_operation(name)

    assert slept == [0.5]


@pytest.mark.parametrize("value", ["60", "86400", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_retry_after_is_bounded(hook: DaiHook, emulator: DaiEmulator, slept: list[float], log: Log, value: str) -> None:
    emulator.inject(Fault(status=429, headers={"Retry-After": value}, times=None))

    with pytest.raises(exceptions.ResourceExhausted):
        hook.get_operation(NAME)
    assert len(emulator.requests) == 1
    assert slept == []
    assert lines(log, "attempt") == []


def test_retry_after_does_not_make_a_call_repeatable(hook: DaiHook, emulator: DaiEmulator) -> None:
    emulator.inject(Fault(rpc_status="FAILED_PRECONDITION", headers={"Retry-After": "1"}, times=None))

    with pytest.raises(exceptions.FailedPrecondition):
        hook.get_operation(NAME)
    assert len(emulator.requests) == 1


def test_the_repeats_of_a_call_end_with_its_retry_timeout(
    emulator: DaiEmulator, connect: Callable[..., None], make_hook: Callable[..., DaiHook], slept: list[float]
) -> None:
    connect(is_anonymous=True, num_retries=1000)
    hook = make_hook(api_endpoint=emulator.endpoint, retry_timeout=30)
    emulator.inject(Fault(status=503, times=None))

    with pytest.raises(exceptions.ServiceUnavailable):
        hook.get_operation(NAME)
    assert slept == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0]


def test_no_repeat_without_retry_timeout(
    emulator: DaiEmulator,
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    slept: list[float],
    log: Log,
) -> None:
    connect(is_anonymous=True)
    hook = make_hook(api_endpoint=emulator.endpoint, retry_timeout=0)
    emulator.inject(Fault(status=503, times=None))

    with pytest.raises(exceptions.ServiceUnavailable):
        hook.get_operation(NAME)
    assert len(emulator.requests) == 1
    assert slept == []
    assert lines(log, "attempt") == []


# The endpoint


def test_the_argument_comes_first(
    emulator: DaiEmulator,
    monkeypatch: pytest.MonkeyPatch,
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    closed_port: int,
) -> None:
    monkeypatch.setenv("DAI_EMULATOR_HOST", f"127.0.0.1:{closed_port}")
    connect(is_anonymous=True, num_retries=0, dai_api_endpoint=f"http://127.0.0.1:{closed_port}")

    name = emulator.start_ingest()

    assert make_hook(api_endpoint=emulator.endpoint).get_operation(name).name == name


def test_the_emulator_variable_needs_no_connection(
    emulator: DaiEmulator, monkeypatch: pytest.MonkeyPatch, make_hook: Callable[..., DaiHook]
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


def test_the_emulator_variable_comes_before_the_connection(
    emulator: DaiEmulator,
    monkeypatch: pytest.MonkeyPatch,
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    closed_port: int,
) -> None:
    monkeypatch.setenv("DAI_EMULATOR_HOST", emulator.host)
    connect(dai_api_endpoint=f"http://127.0.0.1:{closed_port}", key_path="/nowhere.json")
    name = emulator.start_ingest()

    assert make_hook().get_operation(name).name == name


def test_an_empty_emulator_variable_counts_as_unset(
    emulator: DaiEmulator,
    monkeypatch: pytest.MonkeyPatch,
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
) -> None:
    monkeypatch.setenv("DAI_EMULATOR_HOST", "")
    connect(is_anonymous=True, dai_api_endpoint=emulator.endpoint)
    name = emulator.start_ingest()

    assert make_hook().get_operation(name).name == name


@pytest.mark.parametrize("form", ["http://{}", "http://{}/", " http://{} ", "HTTP://{}"])
def test_the_connections_endpoint(
    emulator: DaiEmulator, connect: Callable[..., None], make_hook: Callable[..., DaiHook], form: str
) -> None:
    connect(is_anonymous=True, dai_api_endpoint=form.format(emulator.host))
    name = emulator.start_ingest()

    assert make_hook().get_operation(name).name == name
    assert emulator.requests[0].raw_path == f"/v1/{name}"


@pytest.mark.parametrize(
    ("universe", "url"),
    [(None, "https://dai.googleapis.com"), ("", "https://dai.googleapis.com"), ("u.example", "https://dai.u.example")],
)
def test_googles_own_endpoint_comes_last(
    monkeypatch: pytest.MonkeyPatch,
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    universe: str | None,
    url: str,
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
def test_a_bad_argument_is_refused(connect: Callable[..., None], make_hook: Callable[..., DaiHook], value: str) -> None:
    connect(is_anonymous=True)

    with pytest.raises(ValueError, match="Invalid api_endpoint .*expected 'host'") as caught:
        make_hook(api_endpoint=value).get_operation(NAME)
    assert "pa55" not in str(caught.value)


@pytest.mark.parametrize("value", BAD_ENDPOINTS)
def test_a_bad_emulator_variable_is_refused(
    monkeypatch: pytest.MonkeyPatch, make_hook: Callable[..., DaiHook], value: str
) -> None:
    monkeypatch.setenv("DAI_EMULATOR_HOST", value)

    with pytest.raises(ValueError, match="Invalid DAI_EMULATOR_HOST .*expected 'host'"):
        make_hook()


@pytest.mark.parametrize("value", BAD_ENDPOINTS)
def test_a_bad_endpoint_of_the_connection_is_refused(
    connect: Callable[..., None], make_hook: Callable[..., DaiHook], value: str
) -> None:
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
def test_a_bad_timeout_is_refused(
    connect: Callable[..., None], make_hook: Callable[..., DaiHook], parameter: str, value: Any
) -> None:
    connect(is_anonymous=True)

    with pytest.raises(ValueError, match=f"Invalid {parameter} .*expected a .* number of seconds"):
        make_hook(**{parameter: value})


def test_no_credentials(connect: Callable[..., None], make_hook: Callable[..., DaiHook]) -> None:
    connect()

    with pytest.raises(DefaultCredentialsError):
        make_hook().get_conn()


# The test of a connection


def test_connection_by_list(hook: DaiHook, emulator: DaiEmulator) -> None:
    emulator.start_ingest()
    emulator.start_ingest()

    assert hook.test_connection() == (True, f"{emulator.endpoint} answered operations.list.")
    assert [(request.method, request.query["pageSize"]) for request in emulator.requests] == [("operations.list", "1")]


def test_connection_by_get(hook: DaiHook, emulator: DaiEmulator) -> None:
    emulator.unimplement("operations.list")

    assert hook.test_connection() == (
        True,
        f"{emulator.endpoint} answered operations.get; it has no operations.list.",
    )
    assert sent(emulator) == ["operations.list", "operations.get"]


def test_connection_by_get_that_finds_something(hook: DaiHook, emulator: DaiEmulator) -> None:
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
def test_connection_refused_by_the_service(
    once: DaiHook, emulator: DaiEmulator, list_status: str, get_status: str | None, words: str
) -> None:
    emulator.inject(Fault(method="operations.list", rpc_status=list_status))
    if get_status:
        emulator.inject(Fault(method="operations.get", rpc_status=get_status))

    works, message = once.test_connection()

    assert not works
    assert words in message
    assert {request.http_method for request in emulator.requests} == {"GET"}


def test_connection_to_something_else(
    connect: Callable[..., None],
    make_hook: Callable[..., DaiHook],
    tiny_server: Callable[[Callable[[Exchange], None]], TinyServer],
) -> None:
    connect(is_anonymous=True)
    elsewhere = tiny_server(lambda exchange: exchange.answer(404, b"<html>"))

    works, message = make_hook(api_endpoint=elsewhere.endpoint).test_connection()

    assert not works
    assert "is the endpoint right?" in message


def test_connection_to_nobody(once: DaiHook, closed_port: int) -> None:
    once.api_endpoint = f"http://127.0.0.1:{closed_port}"

    works, message = once.test_connection()

    assert not works
    assert f"got no answer from http://127.0.0.1:{closed_port}" in message


def test_connection_with_a_bad_endpoint(connect: Callable[..., None], make_hook: Callable[..., DaiHook]) -> None:
    connect(is_anonymous=True, dai_api_endpoint="https://dai.example/v1")

    works, message = make_hook().test_connection()

    assert not works
    assert "Invalid dai_api_endpoint" in message


# The wait


def looks(emulator: DaiEmulator) -> list[float]:
    """Return when the service was looked at, in seconds from the first look."""
    times = [request.time for request in emulator.requests if request.method == "operations.get"]
    return [round(time - times[0], 3) for time in times]


@pytest.mark.parametrize(
    ("plan", "state"),
    [({}, SUCCEEDED), ({"outcome": "INVALID_MEDIA"}, FAILED), ({"cancel_seconds": 20}, CANCELLED)],
    ids=["completed", "failed", "cancelled"],
)
def test_wait_until_the_end(
    hook: DaiHook, emulator: DaiEmulator, log: Log, plan: dict[str, Any], state: OperationState
) -> None:
    name = emulator.start_ingest(seconds=100 if "cancel_seconds" in plan else 20, **plan)
    if "cancel_seconds" in plan:
        hook.cancel_operation(name)

    ended = hook.wait_for_operation(name, poll_interval=30)

    assert ended.state is state
    assert looks(emulator) == [0, 1, 2.5, 4.75, 8.125, 13.188, 20.781]
    logged = lines(log, "next look")
    assert len(logged) == len(looks(emulator)) - 1
    assert logged[0] == f"{name} is RUNNING (ingest PROCESSING); 0 s elapsed, next look in 1.0 s"
    assert logged[3] == f"{name} is RUNNING (ingest PROCESSING); 5 s elapsed, next look in 3.4 s"


def test_wait_for_what_has_ended_is_one_look(
    hook: DaiHook, emulator: DaiEmulator, slept: list[float], log: Log
) -> None:
    name = emulator.start_ingest(seconds=0)

    assert hook.wait_for_operation(name, timeout=1).state is SUCCEEDED
    assert len(emulator.requests) == 1
    assert slept == []
    assert lines(log, "next look") == []


def test_wait_looks_once_per_interval_in_the_end(hook: DaiHook, emulator: DaiEmulator, slept: list[float]) -> None:
    name = emulator.start_ingest(seconds=100)

    hook.wait_for_operation(name, poll_interval=5)

    assert slept[:4] == [1.0, 1.5, 2.25, 3.375]
    assert set(slept[4:]) == {5.0}
    assert emulator.connections == 1


def test_jitter_shortens_a_wait_by_a_fifth_at_most(hook: DaiHook, emulator: DaiEmulator, slept: list[float]) -> None:
    hook._random = lambda: 1.0
    name = emulator.start_ingest(seconds=60)

    hook.wait_for_operation(name, poll_interval=5)

    assert slept[0] == 0.8
    assert slept[-1] == 4.0


def test_wait_runs_out_of_time(hook: DaiHook, emulator: DaiEmulator, slept: list[float]) -> None:
    name = emulator.start_ingest(seconds=100)

    with pytest.raises(WaitTimeoutError, match=f"{name} has not ended within 60 s.*RUNNING"):
        hook.wait_for_operation(name, timeout=60, poll_interval=30)

    assert sum(slept) == pytest.approx(60)
    assert looks(emulator)[-1] == 60
    assert emulator.state(name) == "RUNNING"
    assert emulator.cancel_requested(name) == 0


def test_a_timeout_is_a_timeout_error() -> None:
    assert issubclass(WaitTimeoutError, TimeoutError)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(method="operations.get", status=503, times=20), id="503"),
        pytest.param(Fault(method="operations.get", status=429, times=20), id="429"),
        pytest.param(Fault(method="operations.get", status=500, times=20), id="500"),
        pytest.param(Fault(method="operations.get", status=502, times=20), id="502"),
        pytest.param(Fault(method="operations.get", drop="before", times=20), id="dropped"),
        pytest.param(Fault(method="operations.get", truncate=9, times=20), id="cut off"),
        pytest.param(Fault(method="operations.get", status=200, body=b"<html>", times=20), id="html"),
    ],
)
def test_wait_goes_on_after_what_can_heal(hook: DaiHook, emulator: DaiEmulator, log: Log, fault: Fault) -> None:
    """Twenty failures are three looks, each with its five repeats, and two repeats of a fourth."""
    name = emulator.start_ingest(seconds=100)
    emulator.inject(fault)

    assert hook.wait_for_operation(name).state is SUCCEEDED

    logged = lines(log, "Could not look at")
    assert len(logged) == 3
    assert all(line.startswith(f"Could not look at {name}: operations.get of {name} ") for line in logged)
    assert all("s elapsed, next look in" in line for line in logged)


@pytest.mark.parametrize(
    ("rpc_status", "error"),
    [
        ("NOT_FOUND", exceptions.NotFound),
        ("PERMISSION_DENIED", exceptions.PermissionDenied),
        ("UNIMPLEMENTED", exceptions.MethodNotImplemented),
        ("UNAUTHENTICATED", exceptions.Unauthenticated),
        ("FAILED_PRECONDITION", exceptions.FailedPrecondition),
        ("DATA_LOSS", exceptions.DataLoss),
    ],
)
def test_wait_ends_with_what_cannot_heal(
    hook: DaiHook, emulator: DaiEmulator, slept: list[float], rpc_status: str, error: type[Exception]
) -> None:
    name = emulator.start_ingest(seconds=100)
    sleep = hook._sleep

    def fail_after_the_first_look(seconds: float) -> None:
        sleep(seconds)
        emulator.inject(Fault(method="operations.get", rpc_status=rpc_status))

    hook._sleep = fail_after_the_first_look
    with pytest.raises(error) as caught:
        hook.wait_for_operation(name)

    assert type(caught.value) is error
    assert len(emulator.requests) == 2
    assert slept == [1.0]


def test_wait_gives_up_on_a_service_that_stays_away(hook: DaiHook, emulator: DaiEmulator, clock: Clock) -> None:
    name = emulator.start_ingest(seconds=10_000)
    emulator.inject(Fault(method="operations.get", status=503, times=None))
    started = clock()

    with pytest.raises(exceptions.ServiceUnavailable):
        hook.wait_for_operation(name, poll_interval=30)
    assert MAX_OUTAGE <= clock() - started < MAX_OUTAGE + 100


def test_an_outage_counts_from_its_own_beginning(hook: DaiHook, emulator: DaiEmulator, clock: Clock) -> None:
    """Four outages of a hundred seconds, each followed by a good look, are not one of four hundred."""
    name = emulator.start_ingest(seconds=2000)
    sleep = hook._sleep
    start = clock()

    def sometimes_away(seconds: float) -> None:
        sleep(seconds)
        if (clock() - start) % 400 > 200:
            emulator.inject(Fault(method="operations.get", status=503))

    hook._sleep = sometimes_away
    assert hook.wait_for_operation(name).state is SUCCEEDED


def test_wait_says_what_the_last_look_was_when_it_failed(once: DaiHook, emulator: DaiEmulator) -> None:
    emulator.inject(Fault(method="operations.get", status=503, times=None))

    with pytest.raises(WaitTimeoutError, match=f"{NAME} has not ended within 10 s; the last look failed: .*503"):
        once.wait_for_operation(NAME, timeout=10)


def test_wait_obeys_retry_after(once: DaiHook, emulator: DaiEmulator, slept: list[float]) -> None:
    name = emulator.start_ingest(seconds=100)
    emulator.inject(Fault(method="operations.get", status=503, headers={"Retry-After": "17"}))

    once.wait_for_operation(name)

    assert slept[0] == 17


def test_retry_after_does_not_outlast_the_wait(once: DaiHook, emulator: DaiEmulator, slept: list[float]) -> None:
    name = emulator.start_ingest(seconds=10_000)
    emulator.inject(Fault(method="operations.get", status=503, headers={"Retry-After": "3600"}, times=None))

    with pytest.raises(WaitTimeoutError, match=f"{name} has not ended within 60 s"):
        once.wait_for_operation(name, timeout=60)
    assert sum(slept) == pytest.approx(60)


def test_repeats_do_not_outlast_the_wait(hook: DaiHook, emulator: DaiEmulator, clock: Clock) -> None:
    name = emulator.start_ingest(seconds=10_000)
    emulator.inject(Fault(method="operations.get", status=503, times=None))
    started = clock()

    with pytest.raises(WaitTimeoutError, match=f"{name} has not ended within 5 s"):
        hook.wait_for_operation(name, timeout=5)
    assert clock() - started <= 5


@pytest.mark.parametrize("arguments", [{"timeout": -1}, {"poll_interval": 0}, {"poll_interval": None}], ids=str)
def test_wait_refuses_what_is_no_duration(hook: DaiHook, emulator: DaiEmulator, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Invalid {next(iter(arguments))} "):
        hook.wait_for_operation(NAME, **arguments)
    assert emulator.requests == []
