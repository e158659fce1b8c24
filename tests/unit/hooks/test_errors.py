"""The errors that DaiHook raises, and responses that cannot be read."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from google.api_core import exceptions

from airflow_dai_provider.api.errors import Code
from airflow_dai_provider.api.operation import OperationState
from airflow_dai_provider.api.retry import PERMANENT
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from tests.support.connections import Connect
from tests.support.emulators import methods
from tests.support.hooks import CALLS, CANCELLED, FAILED, RUNNING, SUCCEEDED, MakeHook, cases, operation
from tests.support.payloads import NAME, URL, creative
from tests.support.rpc_codes import RPC_CODES
from tests.support.tiny_server import Serve


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("rpc_status", RPC_CODES)
def test_each_code_has_its_class_and_its_retries(
    emulator: DaiEmulator, connect: Connect, make_hook: MakeHook, method: str, rpc_status: str
) -> None:
    call, repeated = CALLS[method]
    connect(is_anonymous=True, num_retries=1)
    emulator.inject(Fault(method=method, rpc_status=rpc_status, times=None))

    with pytest.raises(exceptions.GoogleAPICallError) as caught:
        call(make_hook(api_endpoint=emulator.endpoint))

    _, status, error = RPC_CODES[rpc_status]
    for words in (method, str(status), rpc_status, "The emulator was told to fail"):
        assert words in str(caught.value)
    # Of an error that a retry does not help: another server may have responded, or another account may have asked.
    source = f"({emulator.endpoint}, connection 'google_cloud_default')"
    assert (source in str(caught.value)) == (Code(rpc_status) in PERMANENT)
    assert methods(emulator) == [method] * (2 if rpc_status in repeated else 1)


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
def test_any_error_response_has_a_class(
    once: DaiHook, emulator: DaiEmulator, fault: Fault, error: type[Exception]
) -> None:
    emulator.inject(fault)

    with pytest.raises(error, match=f"operations.get of {NAME} returned {fault.status} ") as caught:
        once.get_operation(NAME)

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
def test_html_404_is_a_wrong_endpoint(connect: Connect, make_hook: MakeHook, tiny_server: Serve, method: str) -> None:
    connect(is_anonymous=True)
    elsewhere = tiny_server(lambda exchange: exchange.answer(404, b"<!DOCTYPE html>404", Content_Type="text/html"))

    with pytest.raises(exceptions.MethodNotImplemented, match="is the endpoint right?") as caught:
        CALLS[method][0](make_hook(api_endpoint=elsewhere.endpoint))

    assert "DOCTYPE" not in str(caught.value)
    assert len(elsewhere.requests) == 1


def test_the_message_of_the_service_is_shown_without_signatures(once: DaiHook, emulator: DaiEmulator) -> None:
    words = f"cannot download {URL}?X-Goog-Signature=s3cr3t#t0ken today"
    emulator.inject(Fault(status=400, body=json_error("INVALID_ARGUMENT", words)))

    with pytest.raises(exceptions.InvalidArgument, match=rf"cannot download {URL} today \({emulator.endpoint}, "):
        once.create_creative(creative())


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
def test_every_valid_response_is_read(
    once: DaiHook, emulator: DaiEmulator, fault: Fault, state: OperationState
) -> None:
    emulator.inject(fault)

    answer = once.get_operation(NAME)

    assert (answer.name, answer.state) == (NAME, state)


@pytest.mark.parametrize(
    "body", [b"{}", b"", b"\n", b'{"@type": "google.protobuf.Empty"}'], ids=["object", "empty", "blank", "typed"]
)
@pytest.mark.parametrize("method", ["operations.cancel", "operations.delete", "creatives.delete"])
def test_the_content_of_an_empty_response_does_not_matter(
    once: DaiHook, emulator: DaiEmulator, method: str, body: bytes
) -> None:
    emulator.inject(Fault(status=200, body=body, content_type="text/plain"))

    assert CALLS[method][0](once) is None


def test_a_204_confirms_a_cancel(once: DaiHook, emulator: DaiEmulator) -> None:
    emulator.inject(Fault(status=204, body=b""))

    once.cancel_operation(NAME)

    assert methods(emulator) == ["operations.cancel"]


BAD_ANSWERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "a JSON object, got an empty body"),
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
    "code of another type": (operation(done=True, error={"code": "x"}), "'code' to be of type int"),
    "metadata of another type": (operation(metadata=[]), "'metadata' to be of type dict"),
    "both": (operation(done=True, error={"code": 1}, response={}), "either an error or a response"),
    "5 MB": (operation(response={"a": "x" * 5_000_000}), "larger than"),
}


@pytest.mark.parametrize(("body", "words"), **cases(BAD_ANSWERS))
def test_every_invalid_response_is_an_error(once: DaiHook, emulator: DaiEmulator, body: bytes, words: str) -> None:
    emulator.inject(Fault(status=200, body=body))

    with pytest.raises(exceptions.Unknown, match=f"operations.get of {NAME} returned HTTP 200 .*{words}") as caught:
        once.get_operation(NAME)

    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("body", [b"[]", b"null", b"<html>", b'{"a"', b"x" * 5_000_000], ids=lambda body: str(body[:6]))
def test_an_invalid_response_does_not_confirm_a_cancel(once: DaiHook, emulator: DaiEmulator, body: bytes) -> None:
    emulator.inject(Fault(status=200, body=body))

    with pytest.raises(exceptions.Unknown, match=f"operations.cancel of {NAME} returned HTTP 200 with an invalid body"):
        once.cancel_operation(NAME)


@pytest.mark.parametrize(
    "page",
    [
        {"operations": {"name": NAME}},
        {"operations": "x"},
        {"nextPageToken": 5},
    ],
    ids=json.dumps,
)
def test_every_invalid_page_is_an_error(once: DaiHook, emulator: DaiEmulator, page: dict[str, Any]) -> None:
    emulator.inject(Fault(status=200, body=json.dumps(page).encode()))

    with pytest.raises(exceptions.Unknown, match="operations.list of operations returned HTTP 200"):
        list(once.list_operations())


def test_an_invalid_response_is_retried(hook: DaiHook, emulator: DaiEmulator) -> None:
    emulator.inject(Fault(status=200, body=b'{"na'))
    emulator.inject(Fault(status=200, body=b"<html>"))
    name = emulator.start_ingest()

    assert hook.get_operation(name).name == name
    assert len(emulator.requests) == 3


def test_an_invalid_response_to_a_create_is_not_retried(hook: DaiHook, emulator: DaiEmulator) -> None:
    emulator.inject(Fault(method="creatives.create", status=200, body=b'{"na', times=None))

    with pytest.raises(exceptions.Unknown):
        hook.create_creative(creative())
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
def test_an_invalid_response_is_quoted_without_signatures(once: DaiHook, emulator: DaiEmulator, body: bytes) -> None:
    emulator.inject(Fault(status=200, body=body))

    with pytest.raises(exceptions.Unknown) as caught:
        once.get_operation(NAME)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("status", [200, 503])
def test_a_truncated_response_is_an_error(once: DaiHook, emulator: DaiEmulator, status: int) -> None:
    fault = Fault(truncate=20) if status == 200 else Fault(status=status, truncate=20)
    emulator.inject(fault)
    name = emulator.start_ingest()

    with pytest.raises(exceptions.ServiceUnavailable, match=f"operations.get of {name} got no response"):
        once.get_operation(name)
    assert once.get_operation(name).name == name
